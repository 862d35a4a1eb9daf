"""Trained models on disk: one self-describing safetensors file, opened by its path and nothing else.

The header of RUN/model.safetensors holds, as JSON, the resolved run (from which the network and the flow map are
rebuilt) and the data spec (shape, classes, scaling). No code is stored and none is executed.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from shortflow.config import RunConfig, from_plain, to_plain
from shortflow.data import DataSpec
from shortflow.errors import CheckpointError, ConfigError
from shortflow.flowmap import FlowMap

__all__ = ["FORMAT", "Model", "build_flow", "describe", "load"]

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Model:
    """A trained flow map and what it was trained on.

    Attributes:
        flow: the flow map with the averaged weights, in evaluation mode.
        spec: the data: shape, classes, and the map between pixels and network units.
        run: the resolved run.
        images, step: how far it was trained.
        path: the file it came from.
    """

    flow: FlowMap
    spec: DataSpec
    run: RunConfig
    images: int
    step: int
    path: Path


def build_flow(run: RunConfig, spec: DataSpec) -> FlowMap:
    """A new flow map for the run: the network with random weights under the recipe's parameterisation."""
    network = run.network.build(
        spec.shape,
        num_classes=spec.num_classes,
        null_class=run.recipe.null_class and spec.num_classes > 0,
        second_time=run.recipe.conditioning.second,
        log_variance=run.recipe.log_variance,
    )
    return run.recipe.flow_map(network)


def describe(run: RunConfig, spec: DataSpec) -> dict[str, Any]:
    """What a model file's header says about the model."""
    return {"format": FORMAT, "run": to_plain(run), "data": spec.to_dict()}


def load(path: str | Path) -> Model:
    """The model at `path`: a run directory or a model.safetensors file.

    Raises:
        CheckpointError: if there is no model, the file is damaged, or its weights do not fit its description.
    """
    file = Path(path)
    file = file / "model.safetensors" if file.is_dir() else file
    if not file.is_file():
        raise CheckpointError(
            f"there is no model at {path}: expected a run directory with model.safetensors in it, or such a file "
            "(a run writes it with its first saved state)"
        )
    try:
        with safe_open(str(file), "pt") as opened:
            header = json.loads((opened.metadata() or {})["shortflow"])
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, json.JSONDecodeError, OSError) as error:
        raise CheckpointError(f"{file} is not a shortflow model or is damaged: {error}") from error
    if header.get("format") != FORMAT:
        raise CheckpointError(f"{file} has format {header.get('format')}; this version reads format {FORMAT}")
    try:
        run = from_plain(RunConfig, header["run"])
        spec = DataSpec.from_dict(header["data"])
        flow = build_flow(run, spec)
        flow.load_state_dict(tensors)
    except (ConfigError, RuntimeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file}: the weights do not fit the description in the header: {error}") from error
    flow.requires_grad_(False).eval()
    return Model(flow=flow, spec=spec, run=run, images=int(header["images"]), step=int(header["step"]), path=file)
