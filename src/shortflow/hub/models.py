"""Trained models on disk: one self-describing safetensors file, opened by its path and nothing else.

The header of RUN/model.safetensors holds, as JSON, the resolved run (from which the network and the flow map are
rebuilt) and the data spec (shape, classes, scaling). No code is stored and none is executed.
"""

import hashlib
import inspect
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from shortflow.config import RunConfig, from_plain, to_plain
from shortflow.data import DataSpec
from shortflow.errors import CheckpointError, ShortflowError
from shortflow.flowmap import FlowMap
from shortflow.train.weights import SUM, sum_of

__all__ = ["FORMAT", "Model", "build_flow", "check", "describe", "fingerprint", "load", "outline", "read_header"]

FORMAT = 1
# What files without a sum, of earlier versions, say. Without a sum and with anything else, the sum is what was damaged.
_EARLIER = {"format", "run", "data", "references", "guided", "images", "step"}
_LARGEST_BUFFERS = 2**28  # numbers that a network holds beside its weights (positions): 1 GiB


@dataclass(frozen=True, kw_only=True)
class Model:
    """A trained flow map and what it was trained on.

    Attributes:
        flow: the flow map with the averaged weights, in evaluation mode.
        spec: the data: shape, classes, and the map between pixels and network units.
        run: the resolved run.
        images, step: how far it was trained.
        path: the file it came from.
        imported: where weights of others are from (`shortflow.hub.interop`): kind, file, sha256, weights, notes.
    """

    flow: FlowMap
    spec: DataSpec
    run: RunConfig
    images: int
    step: int
    path: Path
    imported: Mapping[str, Any] | None = None


def build_flow(run: RunConfig, spec: DataSpec) -> FlowMap:
    """A new flow map for the run: the network with random weights under the recipe's parameterisation.

    Raises:
        ShortflowError: if the network is not one for data of this shape.
    """
    told: dict[str, Any] = {}
    if spec.condition is not None:
        told = {"condition": spec.condition}
        known = inspect.signature(run.network.build).parameters.values()
        if not any(each.name == "condition" or each.kind is each.VAR_KEYWORD for each in known):
            raise ShortflowError(
                f"{type(run.network).__name__} is told classes only, and the data have {spec.told} for each sample; "
                "let its build take condition= (see shortflow.nn), or use another network"
            )
    network = run.network.build(
        spec.shape,
        num_classes=spec.num_classes,
        null_class=run.recipe.null_class and spec.conditional,
        **told,
        second_time=run.recipe.conditioning.second,
        log_variance=run.recipe.log_variance,
        guidance=run.recipe.objective.guidance is not None,
        velocity_head=run.recipe.objective.velocity_head,
    )
    return run.recipe.flow_map(network)


def check(run: RunConfig, spec: DataSpec) -> FlowMap:
    """The flow map of `build_flow` without memory for its weights, to see that network and data fit each other.

    Raises:
        ShortflowError: as `build_flow`.
    """
    with torch.device("meta"):
        return build_flow(run, spec)


def describe(
    run: RunConfig,
    spec: DataSpec,
    *,
    references: Mapping[str, Any] | None = None,
    guided: str | None = None,
    imported: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What a model file's header says about the model.

    Args:
        references: the frozen models it was trained with, role → {"run": path, "sha256": of the file}. A record only:
            opening the model needs none of them.
        guided: guidance that it has from them, in words.
        imported: where the weights of others are from, see `Model`.
    """
    header = {"format": FORMAT, "run": to_plain(run), "data": spec.to_dict()}
    more = {"references": references, "guided": guided, "imported": imported}
    return header | {name: value if isinstance(value, str) else dict(value) for name, value in more.items() if value}


def load(path: str | Path, device: str | None = None) -> Model:
    """The model at `path`: a run directory or a model.safetensors file, on `device` (by default a GPU if there is one).

    Raises:
        CheckpointError: if there is no model, the file is damaged (its sum is verified, where it has one), or its
            weights do not fit its description.
    """
    with _opened(path) as (model, tensors):
        flow = build_flow(model.run, model.spec)
        flow.load_state_dict(tensors)
    flow.guided = model.flow.guided
    flow.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).requires_grad_(False).eval()
    return replace(model, flow=flow)


def outline(path: str | Path) -> Model:
    """The model at `path` without memory for its weights: enough to see what it is and what it fits.

    Raises:
        CheckpointError: as `load`.
    """
    with _opened(path) as (model, _):
        return model


@contextmanager
def _opened(path: str | Path) -> Iterator[tuple[Model, dict[str, Tensor]]]:
    """The model without its weights, and the weights; what goes wrong here or inside is the file's fault."""
    file = _file(path)
    header, written = _read(file)
    try:
        with safe_open(str(file), "pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} is damaged: {error}; copy or download it again") from error
    whole = header.keys() <= _EARLIER if written is None else written == sum_of(header, tensors)
    if not whole:
        raise CheckpointError(
            f"{file} is damaged: its weights or its description are not those that were written (SHA-256); copy or "
            "download it again, or, if you have changed it, write it with shortflow.train.weights.save_weights"
        )
    try:
        run = from_plain(RunConfig, header["run"])
        spec = DataSpec.from_dict(header["data"])
        images, step = int(header["images"]), int(header["step"])
        flow = _check_weights(run, spec, tensors)
        if "guided" in header:
            flow.guided = str(header["guided"])
        imported = header["imported"] if isinstance(header.get("imported"), dict) else None
        yield Model(flow=flow, spec=spec, run=run, images=images, step=step, path=file, imported=imported), tensors
    except KeyError as error:
        raise CheckpointError(f"{file}: the description in the header lacks {error}") from error
    except ShortflowError as error:
        raise CheckpointError(f"{file}: the description in the header cannot be used:\n{error}") from error
    except (ValueError, TypeError, AttributeError, OverflowError, RuntimeError) as error:
        raise CheckpointError(f"{file}: the description in the header makes no sense: {error}") from error


def fingerprint(path: str | Path) -> str:
    """The SHA-256 (hex) of the model file at `path`.

    Raises:
        CheckpointError: if there is no model.
    """
    with open(_file(path), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_header(path: str | Path) -> dict[str, Any]:
    """What the file at `path` (or the model of that run directory) says about itself: format, run, data, images, step.

    Raises:
        CheckpointError: if there is no such file, or it is damaged, something else, or of another format.
    """
    return _read(_file(path))[0]


def _read(file: Path) -> tuple[dict[str, Any], Any]:
    """The description in a file's header, and the sum that it was written with; None where it has none."""
    try:
        with safe_open(str(file), "pt") as opened:
            text = (opened.metadata() or {}).get("shortflow")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{file} is no safetensors file, or only a part of one ({error}); copy or download it again"
        ) from error
    if text is None:
        raise CheckpointError(
            f"{file} is a safetensors file, but no shortflow model: its header has no description. "
            "Give a model.safetensors that training has written"
        )
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: the description in the header is not JSON ({error})") from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        found = header.get("format") if isinstance(header, dict) else header
        raise CheckpointError(
            f"{file} has format {found!r}, this version of shortflow reads format {FORMAT}; "
            "install the version that wrote it"
        )
    return header, header.pop(SUM, None)


def _file(path: str | Path) -> Path:
    file = Path(path).expanduser()
    file = file / "model.safetensors" if file.is_dir() else file
    if not file.is_file():
        raise CheckpointError(
            f"there is no model at {path}: expected a run directory with model.safetensors in it, or such a file "
            "(a run writes it with its first saved state)"
        )
    return file


def _check_weights(run: RunConfig, spec: DataSpec, tensors: Mapping[str, Tensor]) -> FlowMap:
    """The flow map without weights. Raises `CheckpointError` unless the tensors are those of the network described.

    A description is only believed as far as the weights bear it out, so a wrong one costs no time and no memory.
    """
    blocks = run.network.blocks
    if blocks > len(tensors):
        raise CheckpointError(f"the network described has {blocks} blocks, the file has {len(tensors)} tensors")
    flow = check(run, spec)
    if sum(buffer.numel() for buffer in flow.buffers()) > _LARGEST_BUFFERS:
        raise CheckpointError(f"data of shape {spec.shape} are too large for this network")
    expected = {name: tuple(value.shape) for name, value in flow.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in tensors.items()}
    faults = [f"{name} is missing" for name in expected if name not in found]
    faults += [f"{name} is not in the network" for name in found if name not in expected]
    faults += [
        f"{name} has the shape {found[name]}, the network wants {shape}"
        for name, shape in expected.items()
        if found.get(name, shape) != shape
    ]
    faults += [f"{name} holds {value.dtype}" for name, value in tensors.items() if not value.is_floating_point()]
    if faults:
        more = f", and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise CheckpointError(f"the weights are not those of the network described: {'; '.join(faults[:3])}{more}")
    return flow
