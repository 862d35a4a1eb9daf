"""The palette of the pages: contrast of texts and of lines, in light and dark, and for the colour-blind."""

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib import colormaps

import shortflow.report
from shortflow.report.maps import _MAP, _readable

STYLE = (Path(shortflow.report.__file__).parent / "templates" / "style.css").read_text()
RGB = tuple[float, float, float]


def palette(scheme: str) -> dict[str, RGB]:
    """The variables of the style sheet that are colours."""
    light, dark = re.findall(r":root \{\s*(--paper.*?)\n\s*\}", STYLE, re.DOTALL)
    found = re.findall(r"--([\w-]+): #([0-9a-f]{6})", light if scheme == "light" else dark)
    return {name: tuple(int(hue[k : k + 2], 16) / 255 for k in (0, 2, 4)) for name, hue in found}  # type: ignore[misc]


def linear(hue: RGB) -> np.ndarray:
    """sRGB (IEC 61966-2-1) to linear light."""
    values = np.array(hue)
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def contrast(a: RGB, b: RGB) -> float:
    """WCAG 2.2's contrast ratio."""
    low, high = sorted(float(linear(hue) @ [0.2126, 0.7152, 0.0722]) for hue in (a, b))
    return (high + 0.05) / (low + 0.05)


def lab(light: np.ndarray) -> np.ndarray:
    """Oklab of linear light (Ottosson 2020)."""
    cones = np.array(
        [
            [0.4122214708, 0.5363325363, 0.0514459929],
            [0.2119034982, 0.6806995451, 0.1073969566],
            [0.0883024619, 0.2817188376, 0.6299787005],
        ]
    )
    mixed = np.array(
        [
            [0.2104542553, 0.7936177850, -0.0040720468],
            [1.9779984951, -2.4285922050, 0.4505937099],
            [0.0259040371, 0.7827717662, -0.8086757660],
        ]
    )
    return mixed @ np.cbrt(cones @ light)


# Linear light as protanopes and deuteranopes see it (Viénot, Brettel and Mollon 1999, table of the reduced RGB).
SEEN = {
    "all": np.eye(3),
    "protan": np.array([[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]]),
    "deutan": np.array([[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]]),
}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_and_lines_stand_out(scheme: str) -> None:
    """Texts 4.5 : 1, signs in figures 3 : 1, on every ground that there is."""
    hues = palette(scheme)
    for ground in ("paper", "panel", "warn"):
        for ink in ("ink", "link", "muted") if ground != "warn" else ("ink",):
            assert contrast(hues[ink], hues[ground]) >= 4.5, (ink, ground)
    for name in (f"s{k}" for k in range(1, 9)):
        assert contrast(hues[name], hues["paper"]) >= 3, name


@pytest.mark.parametrize("seen", SEEN)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_first_colours_differ_for_everybody(scheme: str, seen: str) -> None:
    """Lines differ by markers and dashes, too; the first three by their colours alone. 0.02 can just be seen."""
    hues = [SEEN[seen] @ linear(palette(scheme)[f"s{k}"]) for k in range(1, 4)]
    for a, b in itertools.combinations(hues, 2):
        assert np.linalg.norm(lab(a) - lab(b)) > 0.08


def test_words_on_the_colours_of_a_map_can_be_read() -> None:
    for share in np.linspace(0, 1, 101):
        hue = colormaps[_MAP](share)[:3]
        word = tuple(int(_readable(hue)[k : k + 2], 16) / 255 for k in (1, 3, 5))
        assert contrast(hue, word) >= 4.5
