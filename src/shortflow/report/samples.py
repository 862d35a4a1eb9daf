"""What a model makes: samples by number of steps beside real data, ways between noises, neighbours, previews."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from shortflow.report.blocks import Block, Notes, Picture, Row, Section, Sentences, number, png
from shortflow.report.files import Pictures
from shortflow.report.maps import arrows
from shortflow.report.metrics import measured
from shortflow.report.motion import cloud, motion

DOTS = 1500  # of a cloud

__all__ = ["drawn_samples", "real_data", "sample_pictures", "samples_section"]


def samples_section(
    pictures: Pictures | None, previews: Sequence[tuple[int, bytes]], name: str, late: str | None = None
) -> Section:
    """Pictures of samples, or at least the previews of training.

    Args:
        late: a sentence, if the pictures are of an earlier model.
    """
    blocks: list[Block] = []
    if pictures is not None:
        if late is not None:
            blocks.append(Notes(texts=[late]))
        moved = _ways(pictures, name)
        blocks += [] if moved is None else [moved]
        blocks += sample_pictures(pictures, name)
        arrowed = _field(pictures, name)
        blocks += [] if arrowed is None else [arrowed]
        blocks += [Row(blocks=found)] if (found := _between(pictures)) else []
        notes = pictures.index["notes"]
        if notes:
            blocks.append(Notes(texts=notes))
    if previews:
        shown: list[Block] = [
            png(content, f"Step {step:,}", f"Preview of samples after training step {step:,}.")
            for step, content in previews
        ]
        text = "Previews of training: the same noise after more and more steps."
        blocks += [Sentences(texts=[text]), Row(blocks=shown, narrow=True)]
    return Section(title="Samples", blocks=blocks)


def sample_pictures(pictures: Pictures, name: str, most: int | None = None) -> list[Block]:
    """Real data beside samples by number of steps; of `most` numbers of steps at most, the fewest and most of them."""
    real, drawn = real_data(pictures, name), drawn_samples(pictures, name, most)
    said = f"The same noise in every panel. {_classes(pictures.index)}".strip()
    found = [*real, *drawn]
    told: list[Block] = [Sentences(texts=[said])] if found and not pictures.index.get("clouds") else []
    return [*told, Row(blocks=found, narrow=True)] if found else []


def real_data(pictures: Pictures, name: str) -> list[Block]:
    """Real data as a panel, class by class as samples are; none where it was not drawn."""
    arrays = _points(pictures)
    if arrays:
        return [_cloud(f"{name}-real", "real", arrays["real"], arrays)] if "real" in arrays else []
    found = _real(pictures)
    return [] if found is None else [found]


def drawn_samples(pictures: Pictures, name: str, most: int | None = None) -> list[Block]:
    """Samples as a panel for each number of steps."""
    if arrays := _points(pictures):
        steps = sorted((key for key in arrays if re.fullmatch(r"steps_\d{1,9}", key)), key=lambda key: int(key[6:]))
        return [_cloud(f"{name}-{key}", _steps(int(key[6:])), arrays[key], arrays) for key in _spread(steps, most)]
    drawn: list[Block] = []
    for each in _spread([each for each in pictures.index["samples"] if each["file"] in pictures.images], most):
        steps = _steps(each.get("steps"))
        alt = f"{_grid(each)} of samples drawn in {steps}, the same noise as in the other panels. "
        drawn.append(png(pictures.images[each["file"]], steps, alt + _classes(pictures.index)))
    return drawn


def _real(pictures: Pictures) -> Picture | None:
    """Real images, class by class as the samples are; None where there are none."""
    real = pictures.index.get("real")
    if not real or real["file"] not in pictures.images:
        return None
    alt = f"{_grid(real)} of real images. {_classes(pictures.index)}"
    return png(pictures.images[real["file"]], f"real ({real.get('of')})", alt)


def _spread(values: Sequence[Any], most: int | None) -> list[Any]:
    """So many of the values, evenly spread from the first to the last."""
    if most is None or len(values) <= most:
        return list(values)
    return [values[round(k * (len(values) - 1) / max(most - 1, 1))] for k in range(most)]


def _points(pictures: Pictures) -> dict[str, np.ndarray]:
    """Clouds of points in the plane, by name."""
    clouds = pictures.index.get("clouds")
    arrays = pictures.arrays.get(str(clouds.get("file")), {}) if clouds else {}
    return {
        name: points for name, points in arrays.items() if points.ndim == 2 and points.shape[1] == 2 and len(points)
    }


def _cloud(name: str, title: str, points: np.ndarray, all_of: Mapping[str, np.ndarray]) -> Block:
    """Points as a picture, to the scale of the real ones."""
    scale = all_of.get("real", next(iter(all_of.values())))
    reach = float(np.quantile(np.abs(scale), 0.999)) * 1.5
    return cloud(name, title, points[:DOTS], reach, title == "real")


def _ways(pictures: Pictures, name: str) -> Block | None:
    """One step beside many, in motion."""
    ways = pictures.index.get("ways")
    arrays = pictures.arrays.get(str(ways.get("file"))) if ways else None
    if not arrays:
        return None
    panels = []
    for key in ("one", "many"):
        states = arrays.get(key)
        if states is not None and states.ndim == 3 and states.shape[2] == 2 and len(states) > 1 and states.shape[1]:
            count = len(states) - 1
            panels.append((f"{_steps(count)}: {count} evaluation{'s' * (count > 1)}", states))
    if not panels:
        return None
    data = arrays.get("real")
    caption = (
        "From the same noise to the data: the ways that the network gives in one step and in many. Grey: the data. "
        "The bar shows how many evaluations of the network have been spent."
    )
    flat = data if data is not None and data.ndim == 2 and data.shape[1] == 2 else None
    return motion(f"{name}-ways", "One step beside many", panels, flat, caption)


def _field(pictures: Pictures, name: str) -> Block | None:
    """Arrows of the velocity."""
    ways = pictures.index.get("ways")
    arrays = pictures.arrays.get(str(ways.get("file"))) if ways else None
    if not arrays or not {"field", "field_at", "field_times"} <= arrays.keys():
        return None
    field, at, times = arrays["field"], arrays["field_at"], arrays["field_times"]
    if field.ndim != 3 or field.shape != (len(times), *at.shape) or at.shape[1:] != (2,):
        return None
    panels = [(f"t = {time:g}", each) for time, each in zip(times, field, strict=True)]
    caption = (
        "The velocity u(x, t) that was learned at r = t. Points go against it, from t = 1 (noise) to t = 0 (data)."
    )
    return arrows(f"{name}-field", "Velocity", panels, at, caption)


def _between(pictures: Pictures) -> list[Block]:
    """Interpolations and nearest neighbours."""
    found: list[Block] = []
    way = pictures.index.get("interpolation")
    if way and way["file"] in pictures.images:
        samples = f"{way.get('points')} samples of {_steps(way.get('steps'))}"
        text = f"Each row goes from one noise to another on a great circle, in {samples}."
        found.append(png(pictures.images[way["file"]], "Ways between two noises", text, text))
    near = pictures.index.get("neighbours")
    if near and near["file"] in pictures.images:
        content = pictures.images[near["file"]]
        alt = (
            f"First row: {near.get('columns')} samples in {_steps(near.get('steps'))}. Below each: its "
            f"{near.get('nearest')} nearest training images, nearest first."
        )
        found.append(png(content, "Nearest training images", alt, f"{alt} {_memorised(near)}".strip()))
    return found


def _memorised(near: Mapping[str, Any]) -> str:
    """Whether samples are nearer to training images than held-out images are, in words."""
    ours, theirs = measured(near.get("median")), measured(near.get("held_out_median"))
    nearer = measured(near.get("nearer"))
    if ours is None or theirs is None or nearer is None:
        return ""
    unit = "the stored latents" if near.get("of") == "latents" else "the pixel range"
    said = (
        f"Root mean square distance to the nearest of {number(near.get('train'))} training images, in units of "
        f"{unit}: median {number(ours, 3)} for samples, {number(theirs, 3)} for held-out images. "
        f"{100 * nearer:.0f} % of the samples are nearer than 95 % of the held-out images"
    )
    return f"{said} (5 % would be for samples of the same law; many more suggest copies)."


def _grid(of: Mapping[str, Any]) -> str:
    return f"{of.get('rows')} rows of {of.get('columns')}"


def _classes(index: Mapping[str, Any]) -> str:
    names = index["classes"]
    return f"Classes by column: {', '.join(names)}." if names else ""


def _steps(count: Any) -> str:
    return "1 step" if count == 1 else f"{count} steps"
