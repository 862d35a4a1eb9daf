"""The closed table of what a run file can name, and objects → plain values.

A part is a frozen dataclass of one of the families below whose fields are numbers, texts, choices and other parts.
"""

import collections.abc
import dataclasses
import inspect
import math
import types
import typing
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from shortflow import (
    coupling,
    flowmap,
    grids,
    guidance,
    laws,
    losses,
    paths,
    sample,
    tangent,
    targets,
    teachers,
    times,
    velocity,
)
from shortflow.data.images import Crop
from shortflow.data.latentspec import LatentSpec
from shortflow.errors import ConfigError, ShortflowError
from shortflow.nn import configs as networks
from shortflow.nn.configs import NetworkConfig, SiTConfig
from shortflow.objective import Objective
from shortflow.optimizer import Optimizer
from shortflow.pairs import Pairs
from shortflow.recipe import Published, Recipe
from shortflow.train.settings import TrainSettings

__all__ = ["DataConfig", "RunConfig", "defaults", "fields_of", "kinds", "part_named", "register", "to_plain", "whole"]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the data come from.

    Args:
        source: a built-in name, images in any form (see docs/data.md), or a folder of latents.
        resolution: the side to crop and resize images to; None: as they are.
        crop: how images become squares of that side: "centre", the central square (as in ADM); "resize", stretched; or
            "pad", whole on white. Of latents: how their images did; others are refused.
        image, label: of shards and tables: the field or column that is the image, and the label; null: found by its
            type. The label "none" leaves the labels of any data out, for an unconditional model of all images, however
            deep in folders they lie; "folder" is the first sub-folder.
        corrupt: of images that cannot be read: "refuse" lists them before anything starts, "skip" leaves them out and
            lists them in left-out.txt.
        flip: mirror half of the images of a batch, left to right, by random choice. Not for what has a left and a
            right, such as digits.
        encoder: of latents: the folder or the name of the autoencoder that decodes previews and samples; null: what it
            was called when they were made. Of images: the one that makes latents of them while the run goes on.
        latent: what latents the run is for. Those of another autoencoder, or of images of another side, are refused;
            other scales and shifts are said aloud. null: any.
    """

    source: str = "digits"
    resolution: int | None = None
    crop: Crop = "centre"
    image: str | None = None
    label: str | None = None
    corrupt: Literal["refuse", "skip"] = "refuse"
    flip: bool = False
    encoder: str | None = None
    latent: LatentSpec | None = None

    def __post_init__(self) -> None:
        if self.encoder is not None and not self.encoder.strip():
            raise ShortflowError("data.encoder is empty; give the folder or the name of an autoencoder, or null")
        if not self.source.strip():
            raise ShortflowError("data.source is empty; give a name such as digits, or a folder of images")
        for name in ("image", "label"):
            value = getattr(self, name)
            if value is not None and not value.strip():
                raise ShortflowError(f"data.{name} is empty; give the name of a field or column, or null")
        if self.resolution is not None and self.resolution < 1:
            raise ShortflowError(
                f"data.resolution is the side of the images in pixels and must be at least 1, got {self.resolution}"
            )


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that determines a run.

    Attributes:
        recipe, network, data, train: the method, the network, the data and the budget.
        teacher, weak: runs or model files that the targets follow: the model that is distilled, and a weaker one.
        init_from: run or model file that the weights start from.
        pairs: the pairs that a recipe of coupled data learns from; made by the teacher.
    """

    recipe: Recipe
    network: NetworkConfig = SiTConfig()
    data: DataConfig = DataConfig()
    train: TrainSettings = TrainSettings()
    teacher: str | None = None
    weak: str | None = None
    init_from: str | None = None
    pairs: Pairs | None = None

    def __post_init__(self) -> None:
        for name in ("teacher", "weak", "init_from"):
            value = getattr(self, name)
            if value is not None and not value.strip():
                raise ShortflowError(f"{name} is empty; give a run directory or a model file, or null")


# Groups of settings that come in one form only, so they are written without a kind.
WHOLES: list[type] = [
    RunConfig,
    Recipe,
    Published,
    Objective,
    Optimizer,
    DataConfig,
    LatentSpec,
    TrainSettings,
    Pairs,
]

FAMILIES: tuple[type, ...] = (
    paths.Path,
    tangent.Derivative,
    flowmap.Parameterization,
    flowmap.Conditioning,
    laws.Law,
    times.TimeSampler,
    times.Fraction,
    grids.ConstantCount,
    grids.KarrasGrid,
    grids.SquareRootCount,
    grids.DoublingCount,
    grids.UniformIndex,
    grids.LogNormalIndex,
    velocity.Velocity,
    targets.Target,
    targets.TangentWeight,
    losses.Metric,
    losses.Weighting,
    teachers.Teacher,
    guidance.PowerGuidance,
    coupling.Coupling,
    sample.Sampler,
    NetworkConfig,
)

_KINDS: dict[str, type] = {}

Part = TypeVar("Part", bound=type)


# ------------------------------------------------------------------------------------------------------------ the table


def whole(settings: Part) -> Part:
    """Make a frozen dataclass a group of settings of its own kind of file, read by `from_plain` as run files are."""
    WHOLES.append(settings)
    return settings


def register(part: Part) -> Part:
    """Make a frozen dataclass of yours a part that run files can name by its class name. Usable as a decorator.

    Whoever opens such a run file or model later has to register the part first.

    Raises:
        ConfigError: if it is not a complete frozen dataclass of a known family with plain fields, or the name is taken.
    """
    name = getattr(part, "__name__", repr(part))
    fault = _fault(part)
    if fault:
        raise ConfigError(f"{name} cannot stand in a run file: {fault}")
    if _KINDS.get(name, part) is not part:
        raise ConfigError(f"there is already a part called {name}; choose another name")
    _KINDS[name] = part
    return part


def _fault(part: Any) -> str | None:
    """What keeps `part` from being a part, with the remedy."""
    if not isinstance(part, type) or not dataclasses.is_dataclass(part) or "__dataclass_params__" not in vars(part):
        return "it must be a dataclass; add @dataclass(frozen=True, kw_only=True)"
    if not part.__dataclass_params__.frozen:  # pyright: ignore[reportAttributeAccessIssue]
        return "it can be changed after it was checked; add @dataclass(frozen=True, kw_only=True)"
    if not issubclass(part, FAMILIES):
        names = ", ".join(f"{family.__module__.removeprefix('shortflow.')}.{family.__name__}" for family in FAMILIES)
        return f"it belongs to no family of parts; make it a subclass of one of {names}"
    if inspect.isabstract(part):
        lacking = sorted(getattr(part, "__abstractmethods__", ()))
        return f"it lacks {', '.join(lacking)}"
    try:
        hints = fields_of(part)
    except (NameError, TypeError) as error:
        return f"its field types cannot be read ({error}); write them as types that are imported where it is defined"
    odd = [name for name, hint in hints.items() if not _plain_hint(hint)]
    if odd:
        return (
            f"{', '.join(odd)} can be neither numbers, texts nor parts; "
            "write the functions as methods of a frozen dataclass of your own and register() that"
        )
    return None


def _plain_hint(hint: Any) -> bool:
    """Whether values of the type can be written down."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is typing.Literal:
        return True
    if origin in (typing.Union, types.UnionType):
        return all(_plain_hint(argument) for argument in arguments)
    if origin in (tuple, collections.abc.Sequence):
        return all(_plain_hint(argument) for argument in arguments if argument is not Ellipsis)
    return isinstance(hint, type) and (hint in (bool, int, float, str, type(None)) or is_part(hint))


def is_part(hint: Any) -> bool:
    """Whether a field of this type holds a part or a whole."""
    return isinstance(hint, type) and (hint in WHOLES or issubclass(hint, FAMILIES))


def part_named(name: Any) -> type | None:
    """The part of that name, or None."""
    return _KINDS.get(name) if isinstance(name, str) else None


def is_registered(part: Any) -> bool:
    """Whether the class itself is in the table, not only those made from it."""
    return part in _KINDS.values()


def kinds(base: type) -> list[str]:
    """Names of the parts that are a `base`."""
    return sorted(name for name, part in _KINDS.items() if issubclass(part, base))


def fields_of(part: type) -> dict[str, Any]:
    """Name and type of every setting of a part or whole."""
    hints = get_type_hints(part)
    return {f.name: hints[f.name] for f in dataclasses.fields(part) if f.init}


def defaults(part: type) -> dict[str, Any]:
    """The default settings of a part or whole as plain values; settings without a default are left out."""
    plain = {}
    for f in dataclasses.fields(part):
        if f.init and f.default is not dataclasses.MISSING:
            plain[f.name] = to_plain(f.default)
        elif f.init and f.default_factory is not dataclasses.MISSING:
            plain[f.name] = to_plain(f.default_factory())
    return plain


_MODULES = (
    coupling,
    flowmap,
    grids,
    guidance,
    laws,
    losses,
    networks,
    paths,
    sample,
    tangent,
    targets,
    teachers,
    times,
    velocity,
)

for _module in _MODULES:
    for _name in _module.__all__:
        _part = getattr(_module, _name)
        # CustomPath, made of functions, is the one part with a fault.
        if isinstance(_part, type) and issubclass(_part, FAMILIES) and _fault(_part) is None:
            register(_part)


# -------------------------------------------------------------------------------------------------------------- writing


def to_plain(value: Any) -> Any:
    """The value as mappings, lists, finite numbers and strings, such that `from_plain` gives it back.

    Raises:
        ConfigError: for values that could not be read again: functions, parts that are not registered, NaN, infinity.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        part = type(value)
        if part not in WHOLES and _KINDS.get(part.__name__) is not part:
            fault = _fault(part) or "it is not registered; call shortflow.register on it"
            raise ConfigError(f"{part.__name__} cannot stand in a run file: {fault}")
        plain = {name: to_plain(getattr(value, name)) for name in fields_of(part)}
        return plain if part in WHOLES else {"kind": part.__name__, **plain}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{value} cannot stand in a run file: numbers must be finite (null stands for none)")
    for kind in (int, float, str):
        if isinstance(value, kind):
            return kind(value)  # subclasses, such as NumPy's, would not survive YAML
    raise ConfigError(f"{value!r} cannot stand in a run file: only numbers, texts and registered parts can")
