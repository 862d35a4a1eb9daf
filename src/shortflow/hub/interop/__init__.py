"""Published weights of others as models of this library: ESC, MeanFlow, SiT, REPA and DiT.

flow = load("sit", "SiT-XL-2-256x256.pt")                      a flow map, to be sampled, scored, distilled
write(read("esc", "1200000.pt"), Path("out/esc"))              a run directory, as `shortflow import` makes it

files     what a file holds, without executing anything in it
kinds     the conventions of each project
layout    sizes from shapes, and the tensors in the names and conventions of `shortflow.nn.sit`
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shortflow.config import DataConfig, RunConfig, nearest, override
from shortflow.data import DataSpec
from shortflow.data.encoders import by_channel
from shortflow.data.latentspec import LatentSpec
from shortflow.errors import CheckpointError, ConfigError, DataError
from shortflow.flowmap import FlowMap
from shortflow.hub.interop.files import AVERAGED, Weights, read_weights
from shortflow.hub.interop.kinds import KINDS, Kind, without_head
from shortflow.hub.interop.layout import LAST, Layout, faults, laid_out, read_layout, tidied
from shortflow.hub.models import build_flow, check, describe
from shortflow.train.weights import save_model

__all__ = ["KINDS", "Given", "Imported", "load", "read", "write"]

FACTOR = 8  # pixels of an image to one of its latents


@dataclass(frozen=True, kw_only=True)
class Given:
    """What the tensors do not say. All of it has a default.

    Attributes:
        average: take the averaged weights, or those that were trained; None: the average where there is one.
        heads: attention heads; None: of the published size of that width, else one for every 64 numbers.
        classes: number of classes; None: one less than the rows of the table, whose last is "no class".
        resolution: side of the images in pixels, for weights without positions.
        pixels: the network sees images in [−1, 1] and no latents.
        latent_scale, latent_shift: what latents were multiplied by after the shift was taken off, one number or one
            for each channel; None: the number of the project, and 0.
        encoder: the name of the autoencoder that they were made with; None: that of the project.
        data: name of the data that the weights were trained on.
        settings: "field.path=value" of the run that is recorded, where the weights were trained otherwise.
        dtype: of the weights.
    """

    average: bool | None = None
    heads: int | None = None
    classes: int | None = None
    resolution: int | None = None
    pixels: bool = False
    latent_scale: float | Sequence[float] | None = None
    latent_shift: float | Sequence[float] | None = None
    encoder: str | None = None
    data: str = "imagenet"
    settings: Sequence[str] = ()
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        for name in ("heads", "classes", "resolution"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"--{name} must be at least 1, got {value}")
        scales, shifts = _listed(self.latent_scale), _listed(self.latent_shift)
        if not all(value > 0 and math.isfinite(value) for value in scales):
            raise ConfigError(f"--latent-scale must be positive and finite, got {','.join(map(str, scales))}")
        if not all(map(math.isfinite, shifts)):
            raise ConfigError(f"--latent-shift must be finite, got {','.join(map(str, shifts))}")
        for name in ("latent_scale", "latent_shift", "encoder"):
            if self.pixels and getattr(self, name) is not None:
                option = f"--{name.replace('_', '-')}"
                raise ConfigError(f"--pixels and {option} contradict each other; leave one of them out")
        if self.resolution is not None and not self.pixels and self.resolution % FACTOR:
            raise ConfigError(
                f"--resolution {self.resolution}: latents have an eighth of the side of an image; give a multiple of "
                f"{FACTOR}, or --pixels"
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class Imported:
    """Weights of others as a model, and where they are from.

    Attributes:
        flow: the flow map, in evaluation mode.
        spec, run: the data and the run, as far as they are known, as in a model file.
        origin: kind, project, file, sha256, weights, notes: the record in the header.
        step: of the training, 0 where the file does not say.
    """

    flow: FlowMap
    spec: DataSpec
    run: RunConfig
    origin: dict[str, Any]
    step: int


def load(kind: str, path: str | Path, **given: Any) -> FlowMap:
    """The flow map in a file of weights of others, on the processor; `given` are the fields of `Given`.

    Raises:
        ConfigError: for an unknown kind, or if what is given contradicts the file.
        CheckpointError: if the file is missing, damaged, needs unpickling, or is not of this kind; key by key.
    """
    return read(kind, path, **given).flow


def read(kind: str, path: str | Path, **given: Any) -> Imported:
    """As `load`, with all that is known of the model."""
    if kind not in KINDS:
        raise ConfigError(f"there are no weights of kind {kind!r}, {nearest(kind, KINDS)}")
    options, conventions = Given(**given), KINDS[kind]
    weights = read_weights(Path(path).expanduser(), options.average)
    try:
        return _read(kind, conventions, weights, options)
    except CheckpointError as error:
        raise CheckpointError(f"{weights.path} ({kind}, {weights.which}): {error}") from error


def write(imported: Imported, directory: Path) -> Path:
    """Write DIRECTORY/model.safetensors, which opens as the model of a run does. Returns its path.

    Raises:
        CheckpointError: if the directory holds a run or a model already.
    """
    file = directory / "model.safetensors"
    if file.exists() or (directory / "run.yaml").exists() or (directory.exists() and not directory.is_dir()):
        raise CheckpointError(f"{directory} is in use already; give another --out")
    header = describe(imported.run, imported.spec, imported=imported.origin)
    save_model(imported.flow, file, header | {"images": 0, "step": imported.step})
    return file


# -------------------------------------------------------------------------------------------------------- from the file


def _read(name: str, kind: Kind, weights: Weights, given: Given) -> Imported:
    tensors, notes = tidied(name, kind, weights.tensors)
    side = given.resolution if given.pixels or given.resolution is None else given.resolution // FACTOR
    layout = read_layout(tensors, kind, heads=given.heads, classes=given.classes, side=side)
    spec, run = _described(kind, layout, given)
    _check_shapes(kind, layout, tensors, check(run, spec))
    flow = build_flow(run, spec).to(given.dtype)
    found = laid_out(tensors, kind, layout, given.dtype)
    flow.load_state_dict({f"network.{key}": value for key, value in found.items()})
    notes += _remarks(name, layout, weights)
    origin = {
        "kind": name,
        "project": kind.project,
        "file": weights.path.name,
        "sha256": weights.sha256,
        "weights": weights.which,
        "notes": notes,
    }
    return Imported(flow=flow.requires_grad_(False).eval(), spec=spec, run=run, origin=origin, step=weights.step)


def _described(kind: Kind, layout: Layout, given: Given) -> tuple[DataSpec, RunConfig]:
    """The data and the run that the weights stand for."""
    spec = DataSpec(
        name=given.data,
        shape=layout.shape,
        classes=tuple(map(str, range(layout.classes))),
        image=given.pixels,
        latent=None if given.pixels else _latents(kind, layout, given),
    )
    recipe = kind.recipe(layout.network.dimensions.width)
    if recipe.log_variance and not layout.log_variance:
        recipe = without_head(recipe)
    if not layout.null:  # no guidance in training, which needs "no class"
        recipe = recipe.unconditional()
    run = RunConfig(recipe=recipe, network=layout.network, data=DataConfig(source=given.data))
    return spec, override(run, given.settings) if given.settings else run


def _latents(kind: Kind, layout: Layout, given: Given) -> LatentSpec:
    """What the latents are. The sum of the autoencoder is nowhere recorded: it is known by its name."""
    channels, *sides = layout.shape
    height, width = (FACTOR * side for side in sides)
    scale = kind.latent_scale if given.latent_scale is None else given.latent_scale
    shift = 0.0 if given.latent_shift is None else given.latent_shift
    try:
        return LatentSpec(
            encoder=given.encoder or kind.autoencoder,
            sha256=None,
            pixels=(3, height, width),
            shift=by_channel(shift, channels, "--latent-shift"),
            scale=by_channel(scale, channels, "--latent-scale"),
        )
    except DataError as error:
        raise ConfigError(str(error)) from error


def _listed(values: float | Sequence[float] | None) -> list[float]:
    if values is None:
        return []
    return [values] if isinstance(values, int | float) else list(values)


def _check_shapes(kind: Kind, layout: Layout, tensors: dict[str, Tensor], flow: FlowMap) -> None:
    """Raise `CheckpointError`, key by key, unless the tensors are those of the network described."""
    expected = {name: tuple(value.shape) for name, value in flow.network.state_dict().items()}
    if "pos_embed" in tensors:
        expected["pos_embed"] = (*tensors["pos_embed"].shape[:-1], layout.network.dimensions.width)
    weight, bias = f"{LAST}.weight", f"{LAST}.bias"
    rows, width = expected[weight]
    if layout.doubled:
        expected |= {weight: (2 * rows, width), bias: (2 * rows,)}
    lines = faults(tensors, expected)
    if not lines:
        return
    if not kind.doubled and tensors[weight].shape[0] == 2 * rows:
        others = " or ".join(f"--from {name}" for name, other in KINDS.items() if other.doubled)
        lines.append(f"the output has twice the channels of the input, as that of {others} may have")
    if any(".attn.q_norm." in name for name in tensors):
        lines.append("queries and keys are normalised (qk_norm) with weights of their own, which cannot be read")
    size = layout.network.dimensions
    raise CheckpointError(
        f"the weights are not those of a network of {size.depth} blocks, width {size.width}, patch "
        f"{layout.network.patch} and {layout.classes} classes, which these sizes were read from:\n" + "\n".join(lines)
    )


def _remarks(name: str, layout: Layout, weights: Weights) -> list[str]:
    """What a user should know of the weights."""
    found = []
    if weights.which != AVERAGED and AVERAGED not in weights.others:
        named = "the trained weights" if weights.which != "weights" else "one set of weights, which it does not name"
        found.append(f"the file holds {named}, and no average beside them")
    if name in ("sit", "dit") and layout.doubled:
        found.append("sit and dit have the same layout: nothing in the file tells a flow from a diffusion")
    if layout.network.positions == "stored":
        found.append("its positions are not those that a shape has by itself, and are kept")
    return found
