"""What a page is made of: sections of blocks, each of which the template knows how to set."""

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from markupsafe import Markup

__all__ = [
    "Block",
    "Chart",
    "Code",
    "Facts",
    "Notes",
    "Page",
    "Picture",
    "Row",
    "Section",
    "Sentences",
    "Table",
    "number",
    "png",
    "probability",
    "share",
    "with_error",
]


class Block:
    """One part of a section; `kind` is the macro of the template that sets it."""

    kind: ClassVar[str]


@dataclass(frozen=True, kw_only=True)
class Sentences(Block):
    """Paragraphs, or with `points` a list."""

    kind: ClassVar[str] = "sentences"
    texts: Sequence[str]
    points: bool = False
    lead: bool = False


@dataclass(frozen=True, kw_only=True)
class Notes(Block):
    """What a reader must know: faults, and what cannot be compared."""

    kind: ClassVar[str] = "notes"
    texts: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Facts(Block):
    """Key figures: (what, value, a remark or "")."""

    kind: ClassVar[str] = "facts"
    rows: Sequence[tuple[str, str, str]]


@dataclass(frozen=True, kw_only=True)
class Table(Block):
    """A table with a caption; the first column heads the rows. `words`: which columns hold words, not numbers;
    `strong`: the cells (row, column) that are set in bold.

    A cell that is longer than its column should be wide is broken.
    """

    kind: ClassVar[str] = "table"
    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: frozenset[int] = frozenset()
    strong: frozenset[tuple[int, int]] = frozenset()
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Chart(Block):
    """A figure as SVG: its heading, what it shows, the legend (name, place in the palette), and its numbers.

    `marked`: whether its lines have markers.
    """

    kind: ClassVar[str] = "chart"
    title: str
    svg: Markup
    caption: str = ""
    legend: Sequence[tuple[str, int]] = ()
    numbers: Table | None = None
    marked: bool = True


@dataclass(frozen=True, kw_only=True)
class Picture(Block):
    """An image: what it is called, what it shows, and its data."""

    kind: ClassVar[str] = "picture"
    title: str
    data: str
    alt: str
    width: int
    height: int
    caption: str = ""


@dataclass(frozen=True, kw_only=True)
class Row(Block):
    """Figures beside each other where there is space."""

    kind: ClassVar[str] = "row"
    blocks: Sequence[Block]
    narrow: bool = False


@dataclass(frozen=True, kw_only=True)
class Code(Block):
    """Commands or a file."""

    kind: ClassVar[str] = "code"
    text: str
    label: str
    folded: bool = False


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading and what stands below it; `parts` are sections one level deeper."""

    title: str
    blocks: Sequence[Block] = ()
    parts: "Sequence[Section]" = ()

    def __bool__(self) -> bool:
        return bool(self.blocks or self.parts)


@dataclass(frozen=True, kw_only=True)
class Page:
    """A page: its title, a line below it, sections."""

    title: str
    line: str
    sections: Sequence[Section]
    style: Sequence[Markup] = field(default_factory=tuple)


def png(content: bytes, title: str, alt: str, caption: str = "") -> Picture:
    """The picture of a PNG file."""
    width, height = (int.from_bytes(content[at : at + 4], "big") for at in (16, 20))
    data = f"data:image/png;base64,{base64.b64encode(content).decode()}"
    return Picture(title=title, data=data, alt=alt, width=width, height=height, caption=caption)


def number(value: Any, digits: int = 4) -> str:
    """A figure to so many significant digits, counts in full; – where there is none."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if not isinstance(value, float):
        return str(value)
    text = f"{value:.{digits}g}"
    if "e" in text and 1e-5 <= abs(value) < 1e12:
        text = f"{value:,.0f}" if abs(value) >= 1 else f"{value:.{digits + 4}f}".rstrip("0")
    return text.replace("-", "−")


def with_error(mean: float | int, error: float | int | None) -> str:
    """A mean with its standard error to two digits, both to the same place; the mean alone where there is none."""
    if error is None or not math.isfinite(error) or error < 0:
        return number(float(mean))
    if not error > 0:
        return f"{number(float(mean))} ± 0"
    places = 1 - math.floor(math.log10(error))
    if not 0 <= places <= 8:
        return f"{number(float(mean))} ± {number(float(error), 2)}"
    return f"{mean:,.{places}f} ± {error:,.{places}f}".replace("-", "−")


def probability(value: float | None) -> str:
    """A p-value: to two digits, and no more of very small ones than that they are."""
    return "< 0.0001" if value is not None and value < 1e-4 else number(value, 2)


def share(value: float) -> str:
    """A share in per cent."""
    return f"{100 * value:.3g} %"
