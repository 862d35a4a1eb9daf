"""Pictures of a trained run that need its network: RUN/pictures/, which a report of the run then reads.

Of images: held-out ones beside samples by number of steps from the same noise, a class a column; ways between two
noises; samples beside their nearest training images. Of points in the plane: the ways from noise to data in one step
and in many, and the velocity at some times. `pictures.json` says what each file shows, and which model drew it.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageChops
from torch import Tensor

from shortflow import hub
from shortflow.cost import step_cost
from shortflow.data import Dataset
from shortflow.errors import DataError, SamplerError, ShortflowError
from shortflow.files import atomic_path, write_atomic
from shortflow.hub import Model
from shortflow.pictures import image_grid, save_png
from shortflow.report.files import FORMAT, INDEX, PICTURES
from shortflow.runs.decoding import Decoding, decoding
from shortflow.runs.loading import load_data
from shortflow.runs.sampling import generate, interpolation
from shortflow.sample import PushForward, grid_times, noise
from shortflow.times import Dyadic
from shortflow.typing import Report

__all__ = ["illustrate", "nearest_images"]

WIDTH, HEIGHT = 880, 440  # pixels that a grid of images takes at most
SAMPLES, NEAREST = 256, 5  # samples whose neighbours are looked for; neighbours that are shown
LATENTS = 10_000  # stored latents that neighbours are looked for among, at most
WAYS, MANY, CLOUD, ARROWS = 96, 32, 2000, 15  # points that go, their steps, points of a cloud, arrows a side
FIELD_TIMES = (0.9, 0.6, 0.3)
_BLOCK = 1000  # training images that are compared at once


def illustrate(
    directory: Path, *, steps: Sequence[int] | None = None, seed: int = 0, report: Report | None = None
) -> Path:
    """Draw the pictures of the run in `directory`, into RUN/pictures/; returns the index, pictures.json.

    Args:
        steps: numbers of steps of the samples; by default 1, 2, 4, 8 and many (128, or as many as the model knows).
        report: is told (pictures that are done, in all).

    Raises:
        CheckpointError: if there is no model.
        SamplerError: if a number of steps that was asked for cannot be drawn.
    """
    model = hub.load(directory)
    work = _Work(model=model, folder=directory / PICTURES, seed=seed)
    tasks = [
        lambda: work.samples(_steps_of(model) if steps is None else steps, asked=steps is not None),
        work.ways if model.spec.kind == "points" else work.interpolation,
        work.neighbours,
        work.cost,
    ]
    for done, task in enumerate(tasks):
        task()
        if report is not None:
            report(done + 1, len(tasks))
    index = {
        "format": FORMAT,
        "model": {"sha256": hub.fingerprint(model.path), "step": model.step, "images": model.images},
        "seed": seed,
        "data": model.spec.name,
        **work.found,
        "notes": work.notes,
    }
    path = work.folder / INDEX
    write_atomic(path, json.dumps(index, indent=2, ensure_ascii=False) + "\n")
    return path


def _steps_of(model: Model) -> list[int]:
    law = model.run.recipe.objective.times
    return [1, 2, 4, 8, law.steps if isinstance(law, Dyadic) else 128]  # shortcut models know no smaller step


@dataclass(kw_only=True)
class _Work:
    """The pictures as they come to be."""

    model: Model
    folder: Path
    seed: int
    found: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.decoding: Decoding = decoding(self.model.spec, self.model.run.data.encoder)
        if self.decoding.note is not None:
            self.notes.append(self.decoding.note)
        if self.decoding.unverified is not None:
            self.notes.append(self.decoding.unverified)
        self.train, self.held_out = self._data("train"), self._data("test")
        self.told = self._conditions()

    def _data(self, split: str) -> Dataset | None:
        data = self.model.run.data
        try:
            return load_data(data, split)
        except (DataError, OSError) as error:
            self.notes.append(f"no {split} data: {error}")
            return None

    def _conditions(self) -> Tensor | None:
        """What samples are told by in place of classes, in turn: the first of the real data, as they are shown."""
        real = self.held_out or self.train
        if self.model.flow.condition_shape is None or real is None or real.conditions is None:
            return None
        return torch.from_numpy(real.conditions.take(np.arange(min(SAMPLES, len(real)))))

    def _real(self, data: Dataset, places: np.ndarray) -> UInt8[np.ndarray, "n c h w"] | None:
        """Images of a data set; latents are decoded, and None where nothing decodes them."""
        if data.kind == "images":
            return np.asarray(data.samples[places])
        autoencoder = self.decoding.autoencoder
        return None if autoencoder is None else autoencoder.decode(data.take(places))

    # ------------------------------------------------------------------------------------------------------- samples

    def samples(self, steps: Sequence[int], asked: bool) -> None:
        """Held-out data, and samples by number of steps from the same noise."""
        spec = self.model.spec
        real = self.held_out or self.train
        if spec.kind == "points":
            self._clouds(steps, asked, real)
            return
        if not self.decoding.decoded:
            return
        first, _ = self._drawn(1, 1) or (None, None)
        if first is None:
            return
        columns, rows = _layout(first.shape[2:], spec.num_classes)
        classes = list(range(columns)) if spec.num_classes else None
        told = None if self.told is None else self.told[:columns]
        if told is not None:
            self.notes.append("Samples are told, column by column, what the real images in the first row are told.")
        self.found["classes"] = [spec.classes[c] for c in classes or ()]
        drawn = []
        for count in steps:
            pixels, _ = self._drawn(count, rows * columns, classes, asked, told) or (None, None)
            if pixels is not None:
                name = f"steps-{count}.png"
                save_png(_sheet(pixels, columns), self.folder / name)
                drawn.append({"steps": count, "file": name, "columns": columns, "rows": rows})
        self.found["samples"] = drawn
        if real is None:
            return
        places = np.arange(min(columns, len(real))) if told is not None else _by_class(real, columns, rows, classes)
        chosen = self._real(real, places)
        if chosen is not None:
            save_png(_sheet(chosen, columns), self.folder / "real.png")
            split = "held out" if real is self.held_out else "training data"
            split += "" if real.kind == "images" else ", decoded from latents"
            self.found["real"] = {"file": "real.png", "of": split, "columns": columns, "rows": len(chosen) // columns}

    def _drawn(
        self,
        steps: int,
        n: int,
        classes: Sequence[int] | None = None,
        asked: bool = False,
        told: Tensor | None = None,
        latents: bool = False,
    ) -> Any:
        """Samples and their classes; None, and a note, where the model cannot take so many steps.

        Args:
            told: conditions in place of classes, in turn; by default all that are known.
            latents: leave them as they are.
        """
        told = self.told if told is None else told
        try:
            settings: dict[str, Any] = {"steps": steps, "seed": self.seed, "classes": classes, "condition": told}
            settings["autoencoder"] = None if latents else self.decoding.autoencoder
            return generate(self.model.flow, self.model.spec, n, **settings)
        except SamplerError as error:
            if asked:
                raise
            self.notes.append(f"no samples in {steps} steps: {error}")
            return None

    def _clouds(self, steps: Sequence[int], asked: bool, real: Dataset | None) -> None:
        """Points in the plane, as arrays."""
        arrays: dict[str, Any] = {}
        for count in steps:
            points, _ = self._drawn(count, CLOUD, asked=asked) or (None, None)
            if points is not None:
                arrays[f"steps_{count}"] = points[:, :2].astype(np.float32)
        if real is not None:
            arrays["real"] = np.asarray(real.samples[:CLOUD, :2], np.float32)
        _save(self.folder / "clouds.npz", arrays)
        self.found["clouds"] = {
            "file": "clouds.npz",
            "steps": [int(name[6:]) for name in arrays if name.startswith("steps_")],
        }

    # ---------------------------------------------------------------------------------------------------------- ways

    def ways(self) -> None:
        """The ways of points from noise to data, in one step and in many, and the velocity, in the network's units."""
        flow, spec = self.model.flow, self.model.spec
        if spec.shape != (2,):
            self.notes.append(f"ways are drawn in the plane, and these points have {spec.shape[0]} coordinates")
            return
        device = next(flow.parameters()).device
        eps = noise(self.seed, 0, WAYS, spec.shape).to(device)
        label = None
        if spec.num_classes:
            label = (torch.arange(WAYS) % spec.num_classes).to(device)
        arrays: dict[str, Any] = {}
        try:
            with torch.inference_mode():
                for name, count in (("one", 1), ("many", MANY)):
                    times, rule = grid_times(flow, count), PushForward()
                    rule.check(flow, times)
                    states = torch.stack(list(rule.states(flow, eps, times, label)))
                    arrays |= {name: states.float().cpu().numpy(), f"{name}_times": np.array(times)}
        except SamplerError as error:
            self.notes.append(f"no ways in many steps: {error}")
        if flow.ends != "zero":
            arrays |= self._field(device)
        real = self.held_out or self.train
        if real is not None:
            arrays["real"] = spec.encode(np.asarray(real.samples[:CLOUD], np.float32)).numpy()
        _save(self.folder / "ways.npz", arrays)
        self.found["ways"] = {"file": "ways.npz", "points": WAYS}

    def _field(self, device: torch.device) -> dict[str, Any]:
        """The velocity on a grid, at some times: without a class where the network knows that, else of the first."""
        flow = self.model.flow
        side = torch.linspace(-2.5, 2.5, ARROWS)
        at = torch.stack(torch.meshgrid(side, side, indexing="xy"), -1).reshape(-1, 2).to(device)
        label = None
        if flow.num_classes:
            label = torch.full((len(at),), flow.null_label or 0, device=device)
        fields = []
        with torch.inference_mode():
            for time in FIELD_TIMES:
                fields.append(flow.velocity(at, torch.full((len(at),), time, device=device), label).float().cpu())
        return {
            "field_times": np.array(FIELD_TIMES),
            "field_at": at.cpu().numpy(),
            "field": torch.stack(fields).numpy(),
        }

    # ------------------------------------------------------------------------------------- interpolations, neighbours

    def interpolation(self) -> None:
        """Rows of samples between two noises, in one step, or in 32 where one step is the mean of the data."""
        if not self.decoding.decoded:
            return
        steps = 32 if self.model.flow.ends == "diagonal" else 1
        try:
            decoder = self.decoding.autoencoder
            pixels, points = interpolation(
                self.model, rows=4, steps=steps, seed=self.seed, condition=self.told, autoencoder=decoder
            )
        except SamplerError as error:
            self.notes.append(f"no interpolation: {error}")
            return
        save_png(_sheet(pixels, points), self.folder / "interpolation.png")
        self.found["interpolation"] = {"file": "interpolation.png", "rows": 4, "points": points, "steps": steps}

    def neighbours(self) -> None:
        """Samples beside their nearest training images, and how near held-out images are to theirs; of stored latents
        in the units in which they are stored."""
        train = self.train
        if self.model.spec.kind == "points" or not self.decoding.decoded or train is None:
            return
        stored = train.kind == "latents"
        steps = 32 if self.model.flow.ends == "diagonal" else 1
        drawn, _ = self._drawn(steps, SAMPLES, latents=stored) or (None, None)
        if drawn is None:
            return
        if drawn.shape[1:] != train.shape:
            self.notes.append(f"no neighbours: samples have the shape {drawn.shape[1:]}, the data {train.shape}")
            return
        among = _spread(len(train), LATENTS) if stored else np.arange(len(train))
        images = train.take(among) if stored else train.samples
        distances, places = nearest_images(drawn, images, NEAREST)
        pixels = self.decoding.autoencoder.decode(drawn[:10]) if stored and self.decoding.autoencoder else drawn
        count, _ = _layout(pixels.shape[2:], 10)
        count = min(count, len(pixels))
        near = [self._real(train, among[places[k]]) for k in range(count)]
        shown = np.stack([np.concatenate([pixels[k : k + 1], near[k]]) for k in range(count)])  # type: ignore[list-item]
        grid = shown.swapaxes(0, 1).reshape(-1, *pixels.shape[1:])
        save_png(_sheet(grid, count), self.folder / "neighbours.png")
        found = {
            "file": "neighbours.png",
            "of": train.kind,
            "steps": steps,
            "samples": len(drawn),
            "train": len(among),
            "nearest": shown.shape[1] - 1,
            "columns": count,
            "median": float(np.median(distances[:, 0])),
            "smallest": float(distances[:, 0].min()),
        }
        if self.held_out is not None and self.held_out.kind == train.kind:
            rows = _spread(len(self.held_out), SAMPLES)
            real = self.held_out.take(rows) if stored else np.asarray(self.held_out.samples[rows])
            other = nearest_images(real, images, 1)[0][:, 0]
            found |= {
                "held_out": len(other),
                "held_out_median": float(np.median(other)),
                "held_out_smallest": float(other.min()),
                "nearer": float((distances[:, 0] < np.quantile(other, 0.05)).mean()),
            }
        self.found["neighbours"] = found

    def cost(self) -> None:
        """What a training step costs, in passes of the network without gradient."""
        try:
            self.found["cost"] = {"training_step": step_cost(self.model.run.recipe)}
        except ShortflowError as error:
            self.notes.append(f"no cost of a training step: {error}")


def nearest_images(
    images: UInt8[np.ndarray, "n c h w"] | Float[np.ndarray, "n c h w"], among: Any, count: int
) -> tuple[Float[np.ndarray, "n k"], np.ndarray]:
    """(distances, places) of the `count` nearest of the images (or latents) `among`, nearest first.

    The distance is the root mean square over pixels and channels, in units of the pixel range (of latents as they are).
    """
    a = _flat(images)
    nearest, places = torch.empty(len(a), 0), torch.empty(len(a), 0, dtype=torch.int64)
    for start in range(0, len(among), _BLOCK):
        b = _flat(np.asarray(among[start : start + _BLOCK]))
        squares = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist") / a.shape[1] ** 0.5
        where = torch.arange(start, start + len(b)).expand(len(a), -1)
        nearest, places = torch.cat([nearest, squares], 1), torch.cat([places, where], 1)
        nearest, order = nearest.topk(min(count, nearest.shape[1]), largest=False)
        places = places.gather(1, order)
    return nearest.numpy(), places.numpy()


def _sheet(images: UInt8[np.ndarray, "n c h w"], columns: int) -> Image.Image:
    """A grid of images on no paper: the gaps are transparent, for pages light and dark."""
    sheet = image_grid(images, columns)
    gaps = image_grid(np.zeros_like(images[:, :1]), columns).convert("L")
    sheet.putalpha(ImageChops.invert(gaps))
    return sheet


def _flat(images: UInt8[np.ndarray, "n c h w"] | Float[np.ndarray, "n c h w"]) -> Float[Tensor, "n d"]:
    flat = torch.from_numpy(images.reshape(len(images), -1)).float()
    return flat / 255 if images.dtype == np.uint8 else flat


def _layout(shape: Sequence[int], classes: int) -> tuple[int, int]:
    """(columns, rows) of a grid of images of that shape, which are enlarged as `image_grid` does it."""
    h, w = (max(side, side * round(40 / max(shape))) for side in shape)
    columns = max(2, min(classes or 10, 10, WIDTH // (w + 4)))
    return columns, max(2, min(6, HEIGHT // (h + 4)))


def _by_class(data: Dataset, columns: int, rows: int, classes: Sequence[int] | None) -> np.ndarray:
    """The places of images in reading order, the first of each class in its column; spread over the set where it has
    no classes."""
    if data.labels is None or classes is None:
        return _spread(len(data), rows * columns)
    members = [np.flatnonzero(data.labels == c) for c in classes]
    rows = max(1, min(rows, *map(len, members)))
    places = [of[:rows] if len(of) else np.zeros(rows, np.int64) for of in members]
    return np.stack(places, 1).ravel()


def _spread(count: int, n: int) -> np.ndarray:
    """At most n places, evenly over `count`."""
    return np.unique(np.linspace(0, count - 1, min(n, count)).astype(np.int64))


def _save(path: Path, arrays: dict[str, Any]) -> None:
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)
