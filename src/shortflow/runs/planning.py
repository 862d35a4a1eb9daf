"""A run that is looked at and not begun: every check that training makes before its first step, and what it needs."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from shortflow.config import RunConfig
from shortflow.data import Dataset, DataSpec
from shortflow.data.encoded import Encoded
from shortflow.data.identity import DataIdentity
from shortflow.errors import CheckpointError
from shortflow.estimate import Estimate, estimate
from shortflow.hub import check, describe, fingerprint
from shortflow.lock import check_free
from shortflow.nn.configs import parameter_count
from shortflow.references import ROLES, check_references
from shortflow.runs.configuring import check_batch, notes
from shortflow.runs.decoding import Decoding, decoding
from shortflow.runs.running import check_data, check_directory
from shortflow.train.ema import averages_of
from shortflow.train.engine import Engine
from shortflow.train.fit import check_states
from shortflow.train.launcher import unheeded
from shortflow.train.saved import SavedRun
from shortflow.train.space import bytes_of
from shortflow.train.state import DamagedState, check_state
from shortflow.train.step import TrainStep
from shortflow.train.trackers import check_trackers

__all__ = ["Plan", "plan"]

_MOMENTS = 2  # numbers that Adam and its relatives keep for each weight


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run would do.

    Attributes:
        parameters: of the network.
        begun: steps that the newest whole state has; 0 for a new run.
        processes, device: that it would run in, if it were started like this.
        parts, rows: parts of a batch, and the rows of each.
        state, models: bytes of a training state, and of the models beside the states.
        disk: bytes that the run needs at most for both, while a state is written.
        free: bytes that are free where it would be.
        estimate: operations and memory, counted.
        memory: bytes of a process: weights, gradient, moments and averages, and the activations of a part's rows.
        notes: for its user.
    """

    parameters: int
    begun: int
    processes: int
    device: str
    parts: int
    rows: int
    state: int
    models: int
    disk: int
    free: int
    estimate: Estimate
    memory: int
    notes: tuple[str, ...]


def plan(run: RunConfig, dataset: Dataset, directory: Path, *, resume: bool | Literal["auto"] = False) -> Plan:
    """What `training` with these arguments would do. Nothing is written, and nothing trained.

    Raises:
        ConfigError, CheckpointError, ShortflowError: as `training`.
    """
    begun = check_directory(directory, resume)
    engine = Engine()
    _, parts = engine.parts(run.train.parts, run.train.batch)
    check_batch(run, parts)
    check_trackers(run.train.trackers)
    check_free(directory)
    if isinstance(dataset.samples, Encoded):
        dataset.samples.to(engine.device)
    spec, resumed = DataSpec.fit(dataset, run.recipe.sigma_data), bool(resume) and begun
    found = check_states(directory, "auto" if resumed else False)
    if found and (directory / "model.safetensors").is_file():
        check_data(directory, spec)
    check_references(run, spec, started=found)
    saved, sizes = _outline(run, spec, directory, parts, DataIdentity.of(dataset) if found else None)
    step, remarks = _whole_state(saved) if found else (0, [])
    decoded = not run.train.preview_every or isinstance(dataset.samples, Encoded)
    shown = Decoding() if decoded else decoding(spec, run.data.encoder, device="cpu")
    remarks += [] if shown.note is None else [f"previews are written as .npz: {shown.note}"]
    remarks += [] if shown.unverified is None else [f"the autoencoder of the previews is {shown.unverified}"]
    free = shutil.disk_usage(next(path for path in (directory, *directory.absolute().parents) if path.is_dir())).free
    kept = run.train.keep + (run.train.keep_best is not None)
    disk = (kept + 1) * sizes["state"] + sizes["models"]
    if free < disk:
        remarks.append(
            f"the states and models of this run need up to {disk / 2**20:,.0f} MiB in {directory}, and "
            f"{free / 2**20:,.0f} MiB are free; make space, or keep fewer states (train.keep)"
        )
    needs, rows = estimate(run, spec), run.train.batch // parts
    return Plan(
        parameters=parameter_count(saved.module.flow.network),
        begun=step,
        processes=engine.world,
        device=str(engine.device),
        parts=parts,
        rows=rows,
        **sizes,
        disk=disk,
        free=free,
        estimate=needs,
        memory=needs.held + rows * needs.kept // (2 if run.train.precision == "bf16" else 1),
        notes=(*notes(run, dataset), *unheeded(run.train), *remarks),
    )


def _outline(
    run: RunConfig, spec: DataSpec, directory: Path, parts: int, data: DataIdentity | None
) -> tuple[SavedRun, dict[str, int]]:
    """What the run saves, without memory for it; bytes of a state, and of the models."""
    flow = check(run, spec)
    with torch.device("meta"):
        module = TrainStep(flow, run.recipe.objective)
        averages = averages_of(flow, run.recipe.optimizer)
    identity = {role: {"run": path, "sha256": fingerprint(path)} for role in ROLES if (path := getattr(run, role))}
    unused = torch.optim.SGD(flow.parameters())  # it is neither loaded nor saved
    saved = SavedRun(
        directory=directory,
        settings=run.train,
        metadata=describe(run, spec, references=identity),
        module=module,
        averages=averages,
        adamw=unused,
        parts=parts,
        data=data,
    )
    weights = sum(weight.numel() * weight.element_size() for weight in flow.parameters() if weight.requires_grad)
    models = [average.module for average in averages.values()]
    state = sum(map(bytes_of, (flow, *models, *(each.module for each in module.averages.values()))))
    best = bytes_of(flow) if run.train.keep_best is not None else 0
    return saved, {"state": state + _MOMENTS * weights, "models": sum(map(bytes_of, models)) + best}


def _whole_state(saved: SavedRun) -> tuple[int, list[str]]:
    """The step of the newest state that is whole, and a remark on each that is not."""
    damaged: list[str] = []
    for state in sorted(filter(_is_state, saved.states.iterdir()), key=lambda path: -int(path.name)):
        try:
            info = check_state(state)
        except DamagedState as error:
            damaged.append(str(error))
            continue
        return int(info["step"]), damaged + saved.check(state, info)
    raise CheckpointError("\n".join([f"no training state in {saved.states} is whole:", *damaged]))


def _is_state(path: Path) -> bool:
    return path.name.isdecimal()
