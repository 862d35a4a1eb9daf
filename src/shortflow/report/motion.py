"""One step beside many, in motion: points of the plane on their ways from noise to data, as SVG that CSS moves.

No script is needed. Where motion is unwelcome (`prefers-reduced-motion`) or on paper the points stand at their ends,
with their ways behind them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import ClassVar

import numpy as np
from markupsafe import Markup

from shortflow.report.blocks import Block, Chart

__all__ = ["Motion", "cloud", "motion"]

SIDE, GAP, HEAD = 260, 24, 46  # of a panel, between two, above
SECONDS = 8
BEGIN, END = 12, 82  # per cent of the time in which points move
FRAMES = 16  # of the longest way
CLOUD = 260  # points of the data behind


@dataclass(frozen=True, kw_only=True)
class Motion(Block):
    """A figure that moves, with its rules of style. `name` is unique in the page."""

    kind: ClassVar[str] = "motion"
    name: str
    title: str
    svg: Markup
    style: Markup
    caption: str = ""


def motion(
    name: str, title: str, panels: Sequence[tuple[str, np.ndarray]], data: np.ndarray | None, caption: str = ""
) -> Motion:
    """The ways of points side by side.

    Args:
        panels: (heading, states (k + 1, n, 2) from noise to data). A panel of fewer states is through sooner, as it
            takes fewer evaluations of the network.
        data: points (m, 2) to land on.
    """
    everything = np.concatenate([states.reshape(-1, 2) for _, states in panels])
    reach = float(np.quantile(np.abs(everything), 0.995)) * 1.06
    longest = max(len(states) for _, states in panels) - 1
    drawn, rules = [], []
    for k, (heading, states) in enumerate(panels):
        until = BEGIN + (END - BEGIN) * (len(states) - 1) / longest
        at = _Frame(x=float(k * (SIDE + GAP)), reach=reach)
        drawn.append(_panel(at, heading, states, data, k, f"{name}-{k}"))
        rules += _moves(at, states, f"{name}-{k}", until)
    width, height = len(panels) * (SIDE + GAP) - GAP, SIDE + HEAD
    said = "; ".join(heading for heading, _ in panels)
    svg = (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-labelledby="{name}-title {name}-desc" '
        f'xmlns="http://www.w3.org/2000/svg"><title id="{name}-title">{escape(title)}</title>'
        f'<desc id="{name}-desc">Points go from noise to data on the ways that the network gives them: {escape(said)}.'
        f"</desc>{''.join(drawn)}</svg>"
    )
    return Motion(name=name, title=title, svg=Markup(svg), style=Markup("\n".join(rules)), caption=caption)


def cloud(name: str, title: str, points: np.ndarray, reach: float, real: bool = False) -> Chart:
    """Points in the plane, on both axes from −reach to reach."""
    at = _Frame(x=0.0, reach=reach)
    dots = "".join(f"M{x:.1f} {y - HEAD:.1f}h0" for x, y in at.of(points))
    said = f"{len(points):,} points; both axes go from {-reach:.2g} to {reach:.2g}."
    svg = (
        f'<svg viewBox="0 0 {SIDE} {SIDE}" role="img" aria-labelledby="{name}-title {name}-desc" '
        f'xmlns="http://www.w3.org/2000/svg"><title id="{name}-title">{escape(title)}</title>'
        f'<desc id="{name}-desc">{escape(said)}</desc><svg width="{SIDE}" height="{SIDE}">'
        f'<rect width="{SIDE}" height="{SIDE}" class="frame"/>'
        f'<path d="{dots}" class="dots{" real" * real}"/></svg></svg>'
    )
    return Chart(title=title, svg=Markup(svg))


@dataclass(frozen=True)
class _Frame:
    """Where a panel is, and how points of the plane lie in it."""

    x: float
    reach: float

    def of(self, points: np.ndarray) -> np.ndarray:
        scale = SIDE / 2 / self.reach
        return np.stack([self.x + SIDE / 2 + points[..., 0] * scale, HEAD + SIDE / 2 - points[..., 1] * scale], -1)


def _panel(at: _Frame, heading: str, states: np.ndarray, data: np.ndarray | None, place: int, name: str) -> str:
    parts = [
        f'<text x="{at.x}" y="15" class="heading">{escape(heading)}</text>',
        f'<rect x="{at.x}" y="26" width="{SIDE}" height="5" rx="2.5" class="track"/>',
        f'<rect x="{at.x}" y="26" width="{SIDE}" height="5" rx="2.5" class="bar s{place + 1}" '
        f'style="animation-name:{name}-bar;transform-origin:{at.x}px 0"/>',
        f'<svg x="{at.x}" y="{HEAD}" width="{SIDE}" height="{SIDE}" viewBox="{at.x} {HEAD} {SIDE} {SIDE}">',
        f'<rect x="{at.x}" y="{HEAD}" width="{SIDE}" height="{SIDE}" class="frame"/>',
    ]
    if data is not None:
        dots = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in at.of(data[:CLOUD]))
        parts.append(f'<path d="{dots}" class="cloud"/>')
    ways = at.of(_frames(states))
    line = "".join("M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in way) for way in ways.swapaxes(0, 1))
    parts.append(f'<path d="{line}" class="ways s{place + 1}"/>')
    for k, (x, y) in enumerate(ways[-1]):
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" class="mover s{place + 1}" style="animation-name:{name}-{k}"/>'
        )
    return "".join([*parts, "</svg>"])


def _frames(states: np.ndarray) -> np.ndarray:
    """Some of the states, the first and the last among them."""
    places = np.unique(np.linspace(0, len(states) - 1, min(FRAMES, len(states) - 1) + 1).round().astype(int))
    return states[places]


def _moves(at: _Frame, states: np.ndarray, name: str, until: float) -> list[str]:
    """A rule for each point: where it is, relative to its end, at which share of the time."""
    ways = at.of(_frames(states))
    shares = BEGIN + (until - BEGIN) * np.linspace(0, 1, len(ways))
    rules = [f"@keyframes {name}-bar{{0%,{BEGIN}%{{transform:scaleX(0)}}{until:.4g}%,100%{{transform:scaleX(1)}}}}"]
    for k, way in enumerate(ways.swapaxes(0, 1)):
        moved = way - way[-1]
        stops = [f"0%{{transform:translate({moved[0][0]:.0f}px,{moved[0][1]:.0f}px)}}"]
        stops += [
            f"{share:.3g}%{{transform:translate({x:.0f}px,{y:.0f}px)}}"
            for share, (x, y) in zip(shares, moved, strict=True)
        ]
        stops.append("100%{transform:none}")
        rules.append(f"@keyframes {name}-{k}{{{''.join(stops)}}}")
    return rules
