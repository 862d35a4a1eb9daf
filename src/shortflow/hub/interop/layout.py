"""The layout that published transformers share: sizes from shapes, and the tensors as `shortflow.nn.sit` wants them.

Sizes: `x_embedder.proj.weight` (width, channels, patch, patch), the number of `blocks`, the rows of `blocks.0.mlp.fc1`,
the columns of `t_embedder.mlp.0` (frequencies), the rows of `y_embedder.embedding_table` (classes, then "no class"),
the number of positions in `pos_embed` (the side), the rows of `final_layer.linear` (channels, or twice as many). The
number of heads leaves no trace: it is that of the published size of this width.

A network with the time τ = 1 − t is one with the time t: with e(t) = [cos ωt, sin ωt],

    A cos ω(1 − t) + B sin ω(1 − t) = (A cos ω + B sin ω) cos ωt + (A sin ω − B cos ω) sin ωt,

so the first layer of the embedding takes the turn over, exactly, and the last layer of the network takes the sign of a
velocity. What comes out is told its time, and answers, as all other networks here.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from shortflow.errors import CheckpointError, ConfigError
from shortflow.hub.interop.kinds import KINDS, Kind
from shortflow.nn.configs import SiTConfig
from shortflow.nn.embeddings import BASE, position_embedding
from shortflow.nn.sit import SIZES

__all__ = ["Layout", "faults", "laid_out", "read_layout", "tidied"]

LAST, TABLE, TIME = "final_layer.linear", "y_embedder.embedding_table.weight", "t_embedder.mlp.0.weight"
PUBLISHED = ("S", "B", "M", "L", "XL")
HEADS = {SIZES[name].width: SIZES[name].heads for name in PUBLISHED}
WIDTH_OF_A_HEAD = 64
DRIFT = 1e-6  # of a position: less is another rounding of the fixed ones
_SHOWN = 12  # lines of a report


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What the shapes of a file say of its network.

    Attributes:
        shape: (channels, side, side) of what it sees.
        network: the network without what the data and the method decide.
        classes: number of classes; 0: unconditional.
        null: whether a row for "no class" comes after them.
        log_variance: whether there is a head for it.
        doubled: whether the output has twice the channels.
    """

    shape: tuple[int, int, int]
    network: SiTConfig
    classes: int
    null: bool
    log_variance: bool
    doubled: bool


# --------------------------------------------------------------------------------------------------------------- names


def tidied(name: str, kind: Kind, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors that make up the network, and remarks on what was left out or filled in.

    Raises:
        CheckpointError: if what is there, or is not, shows that the weights are of another kind.
    """
    found = {key: value for key, value in tensors.items() if not key.startswith(kind.ignored)}
    notes = []
    if len(found) < len(tensors):
        notes.append(f"{len(tensors) - len(found)} tensors that only its training needs are left out")
    found = _one_stack(found)
    _check_kind(name, kind, found)
    second = "r_embedder.mlp"
    biases = [found.get(f"{second}.{layer}.bias") for layer in (0, 2)]
    if kind.second and all(bias is not None and not bool(bias.any()) for bias in biases):
        # Weights are drawn, biases start at zero: this embedding has never had a gradient.
        found |= {f"r_{key[2:]}": value for key, value in found.items() if key.startswith("t_embedder.")}
        notes.append("its second embedding was never trained, as in early versions, where t − r has the embedding of t")
    return found, notes


def _one_stack(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The blocks of early REPA weights, which count their `decoder_blocks` apart, in one row."""
    first = len({match[1] for key in tensors if (match := re.match(r"blocks\.(\d+)\.", key))})

    def renamed(key: str) -> str:
        return re.sub(r"^decoder_blocks\.(\d+)\.", lambda match: f"blocks.{first + int(match[1])}.", key)

    return {renamed(key): value for key, value in tensors.items()}


def _check_kind(name: str, kind: Kind, tensors: Mapping[str, Tensor]) -> None:
    """Raise `CheckpointError` if there are inputs or heads that this kind has not, or none that it has."""
    signs = {"r_embedder.": "a second time", "logvar_linear.": "a log-variance head", "projectors.": "projectors"}
    fits = {
        "r_embedder.": [each for each, other in KINDS.items() if other.second],
        "logvar_linear.": [each for each, other in KINDS.items() if other.log_variance],
        "projectors.": [each for each, other in KINDS.items() if "projectors." in other.ignored],
    }
    for prefix, what in signs.items():
        if name not in fits[prefix] and any(key.startswith(prefix) for key in tensors):
            raise CheckpointError(
                f"weights of kind {name} have no {prefix.rstrip('.')}, and these do: they have {what}; "
                f"choose {' or '.join(f'--from {each}' for each in fits[prefix])}"
            )
    if kind.second and not any(key.startswith("r_embedder.") for key in tensors):
        others = [each for each, other in KINDS.items() if not other.second]
        raise CheckpointError(
            f"weights of kind {name} have an r_embedder, the embedding of t − r, and these have none; "
            f"choose one of {', '.join(f'--from {each}' for each in others)}"
        )


# --------------------------------------------------------------------------------------------------------------- sizes


def read_layout(
    tensors: Mapping[str, Tensor],
    kind: Kind,
    *,
    heads: int | None = None,
    classes: int | None = None,
    side: int | None = None,
) -> Layout:
    """The sizes of the network that the tensors make up. What is given replaces what the shapes do not say.

    Raises:
        CheckpointError: if a tensor that tells a size is missing or has another number of axes.
        ConfigError: if what is given contradicts the shapes, or is needed.
    """
    width, channels, patch, rows, columns = _anchors(tensors)
    depth = _depth(tensors)
    if heads is None:
        heads = HEADS.get(width, max(1, width // WIDTH_OF_A_HEAD))
        if width % heads:
            raise ConfigError(
                f"the number of attention heads leaves no trace in the weights, and a width of {width} is none of the "
                "published ones; give --heads"
            )
    known = next((name for name in PUBLISHED if SIZES[name] == (depth, width, heads)), None)
    size = {"size": known} if known else {"size": "S", "depth": depth, "width": width, "heads": heads}
    count, null = _classes(tensors, classes)
    pixels = patch * patch * channels
    last = _shape(tensors, f"{LAST}.weight", 2)[0]
    side = _side(tensors, patch, side)
    fixed = _fixed(tensors, side // patch, width)
    network = SiTConfig(
        **size,  # pyright: ignore[reportArgumentType]
        patch=patch,
        mlp_ratio=_ratio(rows, width),
        frequencies=columns,
        positions="fixed" if fixed else "stored",
    )
    return Layout(
        shape=(channels, side, side),
        network=network,
        classes=count,
        null=null,
        log_variance="logvar_linear.weight" in tensors,
        doubled=kind.doubled and last == 2 * pixels,
    )


def _shape(tensors: Mapping[str, Tensor], name: str, axes: int) -> tuple[int, ...]:
    """The shape of a tensor that tells sizes."""
    value = tensors.get(name)
    if value is None or value.ndim != axes or 0 in value.shape:
        found = "is missing" if value is None else f"has the shape {tuple(value.shape)}"
        raise CheckpointError(
            f"these are no weights of a DiT or SiT: {name}, which tells sizes, {found} and should have {axes} axes. "
            f"The file has {', '.join(list(tensors)[:5]) or 'nothing'}{', …' if len(tensors) > 5 else ''}"
        )
    return tuple(value.shape)


def _anchors(tensors: Mapping[str, Tensor]) -> tuple[int, int, int, int, int]:
    """(width, channels, patch, hidden units of an MLP, cosines and sines of a time)."""
    width, channels, patch, across = _shape(tensors, "x_embedder.proj.weight", 4)
    if patch != across:
        raise CheckpointError(f"x_embedder.proj.weight has patches of {patch}×{across}; only square ones can be read")
    hidden = _shape(tensors, "blocks.0.mlp.fc1.weight", 2)[0]
    return width, channels, patch, hidden, _shape(tensors, TIME, 2)[1]


def _depth(tensors: Mapping[str, Tensor]) -> int:
    blocks = {int(match[1]) for key in tensors if (match := re.match(r"blocks\.(\d{1,9})\.", key))}
    depth = max(blocks) + 1
    if depth > len(tensors):
        raise CheckpointError(f"blocks.{depth - 1} is the last of the blocks, but there are {len(tensors)} tensors")
    return depth


def _classes(tensors: Mapping[str, Tensor], classes: int | None) -> tuple[int, bool]:
    """The number of classes, and whether the last row of the table stands for none."""
    rows = _shape(tensors, TABLE, 2)[0]
    if classes is None:
        # All of these projects hide classes in training, so that the last row is "no class".
        return (rows - 1, True) if rows > 1 else (1, False)
    if rows not in (classes, classes + 1):
        raise ConfigError(
            f"--classes {classes}: {TABLE} has {rows} rows, which is {rows} classes, or {rows - 1} and one for no class"
        )
    return classes, rows == classes + 1


def _side(tensors: Mapping[str, Tensor], patch: int, side: int | None) -> int:
    """The side of what the network sees."""
    if "pos_embed" not in tensors:
        if side is None:
            raise ConfigError("there is no pos_embed that would tell the side of the images; give --resolution")
        if side % patch:
            raise ConfigError(f"a side of {side} is no multiple of the patch of {patch}; give another --resolution")
        return side
    value = tensors["pos_embed"]
    count = math.isqrt(value.shape[-2]) if value.ndim in (2, 3) else 0
    if not count or count**2 != value.shape[-2] or (value.ndim == 3 and value.shape[0] != 1):
        raise CheckpointError(
            f"pos_embed has the shape {tuple(value.shape)}; expected (1, n, width) with the n positions of a square"
        )
    if side is not None and side != count * patch:
        raise ConfigError(
            f"--resolution gives a side of {side}, but pos_embed has {count}×{count} positions, patches of "
            f"{patch}, which is a side of {count * patch}; leave it out"
        )
    return count * patch


def _fixed(tensors: Mapping[str, Tensor], rows: int, width: int) -> bool:
    """Whether the positions are those that a shape has by itself. Averages of weights let them drift by rounding."""
    value = tensors.get("pos_embed")
    if value is None or value.shape[-1] != width or width % 4:
        return True  # what is wrong is reported with all other shapes
    wanted = position_embedding(rows, rows, width).double()
    return bool((value.reshape(wanted.shape).double() - wanted).abs().max() <= DRIFT)


def _ratio(hidden: int, width: int) -> float:
    """mlp_ratio with int(width · ratio) = hidden."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else (hidden + 0.5) / width


# ------------------------------------------------------------------------------------------------------------- tensors


def laid_out(
    tensors: Mapping[str, Tensor], kind: Kind, layout: Layout, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """The tensors for the network of `layout`, which is told its time, and answers, as all others here."""
    found = dict(tensors)
    position = found.pop("pos_embed", None)
    if position is not None and layout.network.positions == "stored":
        found["pos_embed"] = position.reshape(position.shape[-2:])
    if layout.doubled:
        for part in ("weight", "bias"):
            found[f"{LAST}.{part}"] = _first_half(found[f"{LAST}.{part}"], layout)
    if kind.reversed:
        found[TIME] = _turned(found[TIME])
        for part in ("weight", "bias"):
            found[f"{LAST}.{part}"] = -found[f"{LAST}.{part}"]
    return {name: value.detach().to(dtype).contiguous() for name, value in found.items()}


def _first_half(value: Tensor, layout: Layout) -> Tensor:
    """The rows of the last layer for the first half of the channels; rows count (row, column, channel) of a patch."""
    channels, patch = layout.shape[0], layout.network.patch
    return value.unflatten(0, (patch * patch, 2 * channels))[:, :channels].flatten(0, 1)


def _turned(weight: Tensor) -> Tensor:
    """The first layer of an embedding of 1 − t as one of t (see the module), in double precision."""
    half = weight.shape[1] // 2
    omega = BASE ** (-torch.arange(half, dtype=torch.float64) / half)
    a, b = weight.double().chunk(2, 1)
    return torch.cat([a * omega.cos() + b * omega.sin(), a * omega.sin() - b * omega.cos()], 1)


def faults(tensors: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]]) -> list[str]:
    """What is missing, unexpected or of another shape, one line a group; what blocks have in common is said once."""
    found = {name: tuple(value.shape) for name, value in tensors.items()}
    missing = [(name, "") for name in expected if name not in found]
    unexpected = [(name, f" {found[name]}") for name in found if name not in expected]
    shapes = [
        (name, f": {found[name]}, expected {shape}")
        for name, shape in expected.items()
        if found.get(name, shape) != shape
    ]
    whole = [(name, f": {value.dtype}") for name, value in tensors.items() if not value.is_floating_point()]
    lines = []
    groups = {"missing": missing, "unexpected": unexpected, "another shape": shapes, "no floating point": whole}
    for title, entries in groups.items():
        gathered = _gathered(entries)
        lines += [f"{title} ({len(entries)}):"] * bool(entries)
        lines += [f"  {line}" for line in gathered[:_SHOWN]]
        lines += [f"  and {len(gathered) - _SHOWN} more lines"] * (len(gathered) > _SHOWN)
    return lines


def _gathered(entries: Iterable[tuple[str, str]]) -> list[str]:
    """Names with a remark, one line for all blocks that share them."""
    blocks: dict[tuple[str, str], list[int]] = defaultdict(list)
    for name, remark in entries:
        match = re.match(r"blocks\.(\d+)\.(.*)", name)
        key = (f"blocks.N.{match[2]}" if match else name, remark)
        blocks[key].append(int(match[1]) if match else -1)
    lines = []
    for (name, remark), where in blocks.items():
        numbers = ", ".join(map(str, sorted(where)[:8])) + (", …" if len(where) > 8 else "")
        lines.append(f"{name}{remark}" + ("" if where == [-1] else f" (N = {numbers})"))
    return lines
