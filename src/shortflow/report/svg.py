"""Figures as SVG that takes the colours and the type of the page around it.

Figures are drawn in place-holder colours, which become the variables of the style sheet: one figure serves light, dark
and print. Texts stay texts, in the page's font; names of elements are made unique in the page.
"""

import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html import escape
from typing import Any

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

__all__ = ["DASHES", "GRID", "INK", "MARKERS", "MUTED", "PAPER", "SERIES", "colour", "figure", "swatch", "to_svg"]

INK, MUTED, GRID, PAPER = "#010203", "#010204", "#010205", "#010206"
SERIES = 8  # colours that differ; the style sheet has them for light and dark
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES = ("-", (0, (6, 2)), (0, (2, 1.5)), (0, (7, 2, 1.5, 2)))

_VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--grid", PAPER: "--paper"}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "shortflow",
    "text.parse_math": False,
    "axes.unicode_minus": True,
    "font.size": 11.5,
    "axes.titlesize": 11.5,
    "axes.labelsize": 11.5,
    "xtick.labelsize": 11,
    "ytick.labelsize": 11,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "lines.linewidth": 1.8,
    "lines.markersize": 6,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
}


def colour(place: int) -> str:
    """The place-holder of a colour of the palette."""
    return f"#0a00{place % SERIES:02x}"


@contextmanager
def figure(width: float = 5.0, height: float = 3.2) -> Iterator[Figure]:
    """A figure in the style of the pages, of so many inches; what is drawn in it is drawn within the context."""
    with mpl.rc_context(_STYLE):
        made = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(made)
        yield made


def to_svg(drawn: Figure, name: str, title: str, description: str) -> Markup:
    """The figure as an element of a page.

    Args:
        name: unique in the page.
        title, description: what a reader who cannot see it is told.
    """
    file = io.StringIO()
    drawn.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return themed(file.getvalue(), name, title, description)


def themed(text: str, name: str, title: str, description: str) -> Markup:
    """An SVG file as an element of a page."""
    body = text[text.index("<svg") :]
    head, _, rest = body.partition(">")
    box = re.search(r'viewBox="([^"]+)"', head)
    assert box is not None
    rest = re.sub(r"<metadata>.*?</metadata>", "", rest, flags=re.DOTALL)
    rest = re.sub(r"font-family: [^;\"]+;? ?", "", rest)
    rest = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", rest)
    rest = re.sub(r'(\sid=")', rf"\1{name}-", rest)
    rest = re.sub(r"url\(#", f"url(#{name}-", rest)
    rest = re.sub(r'href="#', f'href="#{name}-', rest)
    rest = re.sub(r"#[0-9a-f]{6}\b", lambda found: _variable(found[0]), rest)
    # In tags, not in texts: hundredths of a point are enough.
    rest = re.sub(r"<[^>]+>", lambda tag: re.sub(r"(?<=\d\.\d\d)\d+", "", tag[0]), rest)
    said = f'<title id="{name}-title">{escape(title)}</title><desc id="{name}-desc">{escape(description)}</desc>'
    opened = (
        f'<svg viewBox="{box[1]}" role="img" aria-labelledby="{name}-title {name}-desc" '
        'xmlns:xlink="http://www.w3.org/1999/xlink" xmlns="http://www.w3.org/2000/svg">'
    )
    return Markup(opened + said + rest.strip())  # texts in it are escaped by matplotlib


def _variable(found: str) -> str:
    if found in _VARIABLES:
        return f"var({_VARIABLES[found]})"
    series: Callable[[int], str] = lambda place: f"var(--s{place + 1})"  # noqa: E731
    return series(int(found[5:7], 16)) if found.startswith("#0a00") else found


_SHAPES = {
    "o": '<circle cx="14" cy="7" r="3.6"/>',
    "s": '<rect x="10.6" y="3.6" width="6.8" height="6.8"/>',
    "^": '<path d="M14 2.8 18 10.4H10Z"/>',
    "D": '<path d="M14 2.2 18.8 7 14 11.8 9.2 7Z"/>',
    "v": '<path d="M14 11.2 18 3.6H10Z"/>',
    "P": '<path d="M12.7 3h2.6v2.7H18v2.6h-2.7V11h-2.6V8.3H10V5.7h2.7Z"/>',
    "X": '<path d="m11.7 3 2.3 2.3L16.3 3 18 4.7 15.7 7 18 9.3 16.3 11 14 8.7 11.7 11 10 9.3 12.3 7 10 4.7Z"/>',
    "*": '<path d="m14 2 1.4 3.5 3.8.2-2.9 2.5.9 3.7L14 9.8l-3.2 2.1.9-3.7-2.9-2.5 3.8-.2Z"/>',
}
_STROKES = ("", "6 2", "2 1.5", "7 2 1.5 2")


def swatch(place: int, marked: bool = True) -> Markup:
    """The sign of a series in a legend: its line and its marker."""
    hue, dashes = f"var(--s{place % SERIES + 1})", _STROKES[place % len(_STROKES)]
    line = f'<path d="M0 7H28" stroke="{hue}" stroke-width="2" stroke-dasharray="{dashes}"/>'
    shape = _SHAPES[MARKERS[place % SERIES]] if marked else ""
    return Markup(f'<svg class="swatch" viewBox="0 0 28 14" aria-hidden="true" fill="{hue}">{line}{shape}</svg>')


def bare(axes: Axes) -> None:
    """Leave out the frame and the ticks."""
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
