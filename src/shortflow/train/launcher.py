"""What a launcher asks for beside processes, by the variables that `accelerate launch` sets.

How a run computes is said in its run file, so that it is the same run however it is started. What a launcher asks for
beyond processes and sharding is therefore refused where nothing here stands in for it, and else not heeded; a run that
differs from what was asked for says so.
"""

import os

from shortflow.errors import ConfigError
from shortflow.train.settings import TrainSettings

__all__ = ["SHARD", "asked_for", "refuse", "unheeded"]

SHARD = "ACCELERATE_USE_FSDP"  # how `accelerate launch --use_fsdp` asks for it

_ENGINES = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "tensor, context or sequence parallelism",
}


def asked_for(name: str) -> bool:
    """Whether a variable of the launcher says yes."""
    return os.environ.get(name, "false").lower() in ("1", "true", "yes", "y", "on")


def refuse() -> None:
    """Raise `ConfigError` where the launcher asks for an engine that would take the training step over."""
    for name, what in _ENGINES.items():
        if asked_for(name):
            raise ConfigError(
                f"the launcher asks for {what} ({name}={os.environ[name]}), which this training step does not run "
                "under; start it by torchrun or `accelerate launch --multi_gpu`, and where weights, gradients and "
                "moments do not fit into a device, divide them with --shard (FSDP2)"
            )


def unheeded(settings: TrainSettings) -> list[str]:
    """What the launcher asks for and the run does otherwise, with the setting that decides."""
    found = []
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if precision not in ("no", settings.precision):
        found.append(("mixed precision " + precision, "train.precision", settings.precision))
    compiler = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no")
    if compiler.lower() != "no" and not settings.compile:
        found.append((f"the compiler {compiler}", "train.compile", "false"))
    steps = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if steps not in ("1", str(settings.parts)):
        found.append((f"gradients accumulated over {steps} steps", "train.parts", str(settings.parts)))
    if asked_for(SHARD) and asked_for("FSDP_ACTIVATION_CHECKPOINTING") and not settings.checkpoint:
        found.append(("activation checkpointing", "train.checkpoint", "false"))
    said = [f"the launcher asks for {what}; {name} decides, and is {value}" for what, name, value in found]
    if asked_for(SHARD) and asked_for("FSDP_OFFLOAD_PARAMS"):
        said.append("the launcher asks for weights to be offloaded; sharded weights stay on the devices here")
    return said
