"""A record of `compare` as text: its table, and what a reader of the figures must know."""

from collections.abc import Mapping
from typing import Any

from shortflow import evaluate
from shortflow.data.images import some

__all__ = ["compared_table", "remarks"]


def compared_table(record: Mapping[str, Any]) -> str:
    """The rows of a record as a plain text table, and below it what they were computed with."""
    features, reference, made = record["features"], record["reference"], record["made"]
    count = "an unknown number of" if reference["n"] is None else f"{reference['n']:,}"
    published = "published weights" if features["published"] else "weights"
    size = "as they are" if features["resize"] == "none" else f"{features['resize']} to {features['size']}"
    return "\n".join(
        [
            evaluate.statistics_table(record["rows"]),
            f"features:  {features['name']}, {published} {features['weights'][:12]}, images {size}",
            f"reference: {reference['source']}, {count} images, sha256 {reference['sha256'][:12]}",
            f"images:    {_made(made)}; {record['rounding']}",
        ]
    )


def _made(made: Mapping[str, Any]) -> str:
    if "formats" in made:
        kinds = ", ".join(f"{count:,} of {kind}" for kind, count in made["formats"].items())
        return f"{made['source']} ({kinds})"
    grid = made["grid"] if made["middle"] is None else f"{made['grid']}, middle {made['middle']:g}"
    guidance = f"guidance {made['guidance']:g}" + ("" if made["window"] is None else f" within {made['window']}")
    decoder = made.get("autoencoder")
    unsure = " (not verified)" if decoder is not None and decoder.get("verified") == "not verified" else ""
    decoded = "" if decoder is None else f", decoded by {decoder['name']} {decoder['sha256'][:12]}{unsure}"
    return f"seed {made['seed']}, {guidance}, {made['sampler']['kind']}, grid {grid}, {made['precision']}{decoded}"


def remarks(record: Mapping[str, Any]) -> list[str]:
    """What a reader of the figures must know, in words; empty if nothing."""
    found = []
    dimension, rows = record["features"]["dimension"], record["rows"]
    for side, skipped in (("images", record["made"].get("skipped")), ("reference", record["reference"]["skipped"])):
        if skipped:
            names = some([f"{title} ({reason})" for title, reason in skipped])
            found.append(f"{len(skipped):,} of the {side} cannot be read and are left out: {names}")
    if record["crop"] not in (None, "centre") and record["reference"]["crop"] is None:
        found.append(
            f"the images are by crop {record['crop']}, and the reference does not say how its images became squares: "
            "published statistics are of centre crops"
        )
    few = {row["n"] for row in rows.values() if row["n"] is not None and row["n"] <= dimension}
    if few:
        found.append(
            f"{min(few):,} images are no more than the {dimension:,} features: their covariance is singular, and the "
            "distance is mostly bias; compare at equal N only"
        )
    lossy = {
        side: sorted(set(formats) & {"jpeg", "webp", "jp2"})
        for side, formats in (
            ("images", record["made"].get("formats", {})),
            ("reference", record["reference"]["formats"]),
        )
    }
    found += [
        f"the {side} are {'/'.join(kinds)} files: lossy compression moves distances"
        for side, kinds in lossy.items()
        if kinds
    ]
    if not record["features"]["published"] and record["features"]["name"].startswith("inception"):
        found.append("these are not the published Inception weights: nothing here is FID")
    ordered = record["inception_score_splits"].endswith("in order")
    if ordered and "formats" in record["made"] and any(row["inception_score"] is not None for row in rows.values()):
        found.append("the Inception score is of images in their order: it is low for a set that is sorted by class")
    return found
