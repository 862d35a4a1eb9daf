"""Runs, studies and diagnoses as they lie on disk, made without training; and pages as a reader finds them."""

import json
import math
import random
import statistics
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np

from shortflow import hub, runs
from shortflow.config import dump
from shortflow.data import DataSpec
from shortflow.pictures import save_png
from shortflow.train.weights import save_model

TINY = ("network={kind: SiTConfig, size: tiny, depth: 1, width: 16, heads: 2}",)
POINTS = ("network={kind: MLPConfig, width: 16, depth: 1}",)


def made_run(
    directory: Path,
    recipe: str = "esc",
    data: str = "digits",
    *,
    seed: int = 0,
    lines: int = 12,
    scored: bool = True,
    settings: tuple[str, ...] = (),
) -> Path:
    """A run directory: run file, record, model with its first weights, scores, previews."""
    points = data in ("checkerboard", "mixture", "moons")
    run, dataset = runs.configure(
        recipe, data, settings=[*(POINTS if points else TINY), "images=1280", "batch=32", *settings]
    )
    directory.mkdir(parents=True)
    dump(run, directory / "run.yaml")
    spec = DataSpec.fit(dataset, run.recipe.sigma_data)
    flow = hub.build_flow(run, spec)
    save_model(
        flow, directory / "model.safetensors", {**hub.describe(run, spec), "images": 64 * lines, "step": 2 * lines}
    )
    draw = random.Random(seed)
    with (directory / "stats.jsonl").open("w") as file:
        for k in range(1, lines + 1):
            file.write(json.dumps(line(k, draw)) + "\n")
    if scored:
        record = evaluation(draw, points, images=64 * lines)
        (directory / "evaluation.json").write_text(json.dumps(record))
    rng = np.random.default_rng(seed)
    for step in (2, 4, 6, 8):
        save_png(rng.integers(0, 255, (1, 16, 16), np.uint8), directory / "samples" / f"step-{step:08d}.png")
    return directory


def line(k: int, draw: random.Random) -> dict[str, Any]:
    """A line of the record of training."""
    return {
        "step": 2 * k,
        "images": 64 * k,
        "loss": 1 - 1e-4 * k,
        "grad_norm": draw.uniform(0.5, 2),
        "velocity_error": 2 / k + draw.uniform(0, 0.1),
        "lr": 1e-3,
        "error_by_time": [draw.uniform(1, 90) for _ in range(8)],
        "error_by_cell": [[draw.uniform(0.1, 9) for _ in range(i + 1)] for i in range(4)],
        "tangent_mean": [[draw.uniform(0, 3) for _ in range(i + 1)] for i in range(4)],
        "images_per_second": draw.uniform(100, 900),
    }


def evaluation(draw: random.Random, points: bool = False, images: int = 768) -> dict[str, Any]:
    """A record of scores, with what makes them comparable."""
    rows = {}
    for name in ("1 step", "2 steps", "4 steps", "16 steps", "real (held out)"):
        known = {"classifier": {"name": "digits", "sha256": "ab" * 32}, "reference": {"n": 9, "fingerprint": "cd" * 32}}
        if points:
            rows[name] = {"n": 1000, "energy_distance": draw.uniform(0.01, 0.1), "sliced_w2": draw.uniform(0.1, 1)}
        else:
            shares = {key: draw.random() for key in ("precision", "recall", "coverage", "conditional_accuracy")}
            fd = draw.uniform(0.2, 30)
            rows[name] = {"n": 500, "fd": fd, "fd_percent": fd * 1.2, "kid": draw.uniform(-0.1, 2), **shares, **known}
    if points:
        rows["real (train)"] = rows.pop("real (held out)")
    return {"images_seen": images, "seed": 3, "guidance": 1.0, "data": "digits", "precision": "fp32", "rows": rows}


def made_study(directory: Path, variants: int = 3, seeds: int = 3, failed: bool = True) -> Path:
    """A directory of a study: the figures of every cell, and what follows from them."""
    draw, names = random.Random(variants), [f"variant {k}" for k in range(variants)]
    counts, values = (1, 2, 4, 8), {}
    for name in names:
        for steps in counts:
            level = draw.uniform(0.5, 9)
            values[name, steps] = [level + draw.gauss(0, 0.2) for _ in range(seeds)]
    rows = [
        {
            "variant": name,
            "steps": steps,
            "metric": "fd_percent",
            "mean": statistics.mean(found),
            "standard_error": statistics.stdev(found) / math.sqrt(seeds) if seeds > 1 else None,
            "n": seeds,
        }
        for (name, steps), found in values.items()
    ]
    recall = [
        {"variant": name, "steps": 1, "metric": "recall", "mean": draw.random(), "n": seeds}
        | {"standard_error": 0.01 if seeds > 1 else None}
        for name in names
    ]
    comparisons = [
        {
            "metric": "fd_percent",
            "steps": 1,
            "a": a,
            "b": b,
            "difference": statistics.mean(values[a, 1]) - statistics.mean(values[b, 1]),
            "standard_error": 0.125,
            "p_value": 0.03,
            "p_adjusted": 0.09,
            "significant": k == 0,
            "primary": True,
            "n": seeds,
        }
        for k, (a, b) in enumerate((a, b) for i, a in enumerate(names) for b in names[i + 1 :])
    ]
    cells = [
        {
            "variant": name,
            "seed": seed,
            "path": f"cells/{k}/seed-{seed}",
            "status": "done",
            "images": 1280,
            "seconds": 30.0 + k,
            "record": {"rows": {f"{c} step{'s' * (c > 1)}": {"fd_percent": values[name, c][seed]} for c in counts}},
            "error": None,
        }
        for k, name in enumerate(names)
        for seed in range(seeds)
    ]
    if failed:
        cells.append({"variant": names[0], "seed": 99, "path": "x", "status": "failed", "error": "Boom\nno memory"})
    curves = [
        {
            "variant": name,
            "metric": "fd_percent",
            "steps": 1,
            "points": [
                {"share": s, "images": 1280 * s, "forwards": 4000 * s, "mean": 3 / s, "standard_error": 0.1, "n": seeds}
                for s in (0.25, 0.5, 1.0)
            ],
        }
        for name in names
    ]
    study = {"name": "study", "data": "digits", "metric": "fd_percent", "metric_steps": 1, "smaller_is_better": True}
    study |= {
        "seeds": list(range(seeds)),
        "steps": list(counts),
        "budget": {"kind": "images", "amount": 1280},
        "n": 500,
    }
    known = [
        {"name": name, "settings": {"objective.ratio": k / 4}, "recipe": "esc", "difference": "a word", "cost_F": 3.5}
        for k, name in enumerate(names)
    ]
    results = {"format": 1, "study": study, "variants": known, "cells": cells, "rows": [*rows, *recall]}
    results |= {"comparisons": comparisons, "curves": curves, "verdict": ["variant 0 is the best.", "With 3 seeds."]}
    results |= {"reference": {"real (held out)": {"fd_percent": 0.4, "recall": 0.97}}}
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "results.json").write_text(json.dumps(results))
    return directory


def made_diagnosis(path: Path, kind: str = "data") -> Path:
    """The file of a diagnosis."""
    record = {
        "format": 1,
        "kind": kind,
        "settings": {"data": "digits", "batch": 128},
        "curves": {
            "active_fraction": {
                "x": [0.1, 0.5, 0.9],
                "y": [0.2, 0.6, 1.0],
                "error": [0.01, 0.02, None],
                "label": "rows with more than one neighbour",
                "unit": "share",
            }
        },
        "maps": {
            "semigroup": {
                "t": [0.25, 0.5, 1.0],
                "r": [0.0, 0.5],
                "values": [[0.5, None], [1.5, 2.5], [3.5, 4.5]],
                "label": "residual of two jumps beside one",
                "unit": "rms",
            }
        },
        "scalars": {"intrinsic_dimension": 9.25},
        "advice": [{"text": "Take class-consistent batches.", "evidence": "active fraction 0.6 against 0.1"}],
    }
    path.write_text(json.dumps(record))
    return path


@dataclass
class Reader(HTMLParser):
    """What is in a page: tables by caption, names, links, pictures, headings, files and commands."""

    tables: dict[str, list[list[str]]] = field(default_factory=dict)
    scopes: list[str | None] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    references: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    images: list[dict[str, str | None]] = field(default_factory=list)
    headings: list[tuple[int, str]] = field(default_factory=list)
    codes: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    notes: str = ""
    text: str = ""

    def __post_init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = dict(attrs)
        self.tags.append(tag)
        if tag not in ("img", "meta", "input", "br"):
            self.open.append(tag)
        if known.get("id"):
            self.ids.append(str(known["id"]))
        for name in ("aria-labelledby", "for"):
            self.references += str(known.get(name) or "").split()
        if tag == "a":
            self.links.append(str(known["href"]))
        elif tag == "img":
            self.images.append(known)
        elif tag == "table":
            self.rows: list[list[str]] = []
            self.caption = ""
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("th", "td"):
            self.rows[-1].append("")
            if tag == "th":
                self.scopes.append(known.get("scope"))
        elif tag in ("h1", "h2", "h3", "h4", "h5"):
            self.headings.append((int(tag[1]), ""))
        elif tag == "pre":
            self.codes.append("")

    handle_startendtag = handle_starttag

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop() != tag:
            pass
        if tag == "table":
            assert self.caption
            self.tables.setdefault(self.caption, self.rows)  # of several objects the first

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.text += data
        if "caption" in self.open:
            self.caption += data
        elif "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data
        elif "aside" in self.open:
            self.notes += data
        elif "pre" in self.open:
            self.codes[-1] += data
        elif self.open and self.open[-1] in ("h1", "h2", "h3", "h4", "h5"):
            level, text = self.headings[-1]
            self.headings[-1] = (level, text + data)

    @staticmethod
    def of(html: str) -> "Reader":
        found = Reader()
        found.feed(html)
        found.close()
        return found


def value(cell: str) -> float:
    """The number in a cell of a table."""
    return float(cell.split(" ±")[0].replace("−", "-").replace(",", ""))
