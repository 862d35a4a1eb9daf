"""Two sets of images, compared by their statistics: FID and its kin, under names that say what was done.

A Fréchet distance depends on the weights, the resize and the number of images as much as on the images. So statistics
of different extractors or resolutions are refused, and the name FID is given to one thing only: features of the
published Inception weights, through TensorFlow 1's resize, of 50,000 images. With n images it is FID-n; with any other
features, FD.
"""

from collections.abc import Mapping
from typing import Any

from shortflow.errors import MetricError
from shortflow.evaluate.extractor import Extractor
from shortflow.evaluate.frechet import frechet_distance
from shortflow.evaluate.inception import POOL
from shortflow.evaluate.kernel import kernel_distance
from shortflow.evaluate.neighbours import neighbour_scores
from shortflow.evaluate.statistics import Statistics

__all__ = ["check_comparable", "compare_statistics", "distance_name", "statistics_table"]

NEIGHBOURS = 3  # k of precision and recall: Kynkäänniemi et al. 2019, and ADM
PUBLISHED_N = 50_000

_COLUMNS = (
    ("distance", ".4f"),
    ("spatial_distance", ".4f"),
    ("inception_score", ".2f"),
    ("precision", ".4f"),
    ("recall", ".4f"),
    ("kid", ".6f"),
)


def distance_name(extractor: Mapping[str, Any] | None, n: int | None) -> str:
    """What a Fréchet distance of n images in the features of an extractor (its record) may be called.

    >>> distance_name(load_inception().record(), 5000)  # FID-5k"""
    fid = extractor is not None and extractor["published"] and extractor["resize"] == "tf1-bilinear"
    base = "FID" if fid else "FD"
    if n is None:
        return f"{base}-?"
    if fid and n == PUBLISHED_N:
        return base
    return f"{base}-{n // 1000}k" if n >= 1000 and n % 1000 == 0 else f"{base}-{n}"


def check_comparable(
    reference: Statistics, extractor: Extractor, resolution: tuple[int, int] | None, crop: str | None = None
) -> None:
    """Raise `MetricError` unless images of that resolution and crop in those features may be compared with the
    reference.

    Statistics of other projects do not say what made them. They are taken for those of the published Inception weights,
    and so may be compared with nothing else.
    """
    where, known = reference.source or "the reference", reference.extractor
    mine = extractor.record()
    anew = "make the reference anew from its images: shortflow reference IMAGES --out NAME.npz, with the same options"
    if known is None:
        if not extractor.published:
            raise MetricError(
                f"{where} does not say what made it and is taken for statistics of the published Inception weights; "
                f"these features are {extractor.name}, weights {extractor.weights[:12]}. Either give those weights, or "
                f"{anew}"
            )
        if len(reference.features.mean) != POOL:
            raise MetricError(f"{where} has {len(reference.features.mean)} features, Inception has {POOL}; {anew}")
    elif known != mine:
        differs = [
            f"{key} {_short(known.get(key))}, here {_short(mine[key])}" for key in mine if known.get(key) != mine[key]
        ]
        raise MetricError(f"{where} was made with other features ({'; '.join(differs)}); {anew}")
    if reference.resolution is not None and resolution is not None and reference.resolution != resolution:
        (h, w), (height, width) = reference.resolution, resolution
        raise MetricError(
            f"{where} is of images of {w}×{h} pixels, these have {width}×{height}, and a resize moves every distance; "
            f"if it is meant, say so: --resolution {min(h, w)} crops and scales what has another size, or {anew}"
        )
    if None not in (reference.crop, crop) and reference.crop != crop:
        raise MetricError(
            f"{where} is of images by crop {reference.crop}, these are by crop {crop}, which moves every distance; "
            f"bring both to squares in one way (--crop), or {anew}"
        )


def _short(value: Any) -> str:
    text = str(value)
    return text[:12] + "…" if len(text) > 40 else text


def compare_statistics(
    generated: Statistics,
    reference: Statistics,
    *,
    k: int = NEIGHBOURS,
    neighbours: int = 10_000,
    samples: int | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """The distances of generated images to a reference, as a record.

    Args:
        k: which nearest neighbour gives the radius of precision and recall.
        neighbours: features of each side that these are taken of, at most.
        samples: features of the generated side, in place of `neighbours`.
        device: where the distances between features are computed.

    Returns:
        n, name                   the number of images, and what the distance may be called (`distance_name`).
        distance                  Fréchet distance of features.
        spatial_name, spatial_distance      the same of spatial features: sFID.
        inception_score, inception_score_std    mean and deviation over the splits.
        kid                       kernel distance of the kept features (unbiased; blocks of 5000).
        precision, recall, density, coverage, k, neighbours_n, neighbours_reference     see `neighbour_scores`.
        fingerprint               SHA-256 of the images.

    What one of the sides does not have is None. Both sides must be comparable (`check_comparable`).

    Raises:
        MetricError: if dimensions differ.
    """
    spatial = None
    if generated.spatial is not None and reference.spatial is not None:
        spatial = frechet_distance(generated.spatial, reference.spatial)
    name = distance_name(generated.extractor, generated.count)
    record: dict[str, Any] = {
        "n": generated.count,
        "name": name,
        "distance": frechet_distance(generated.features, reference.features),
        "spatial_name": None if spatial is None else f"s{name}",
        "spatial_distance": spatial,
        "inception_score": None if generated.score is None else generated.score[0],
        "inception_score_std": None if generated.score is None else generated.score[1],
        "kid": None,
        **dict.fromkeys(("precision", "recall", "density", "coverage", "k", "neighbours_n", "neighbours_reference")),
        "fingerprint": generated.sha256,
    }
    if generated.rows is None or reference.rows is None:
        return record
    if min(len(generated.rows), len(reference.rows)) >= 2:
        record["kid"] = kernel_distance(generated.rows, reference.rows)
    ours = generated.rows[: neighbours if samples is None else samples].to(device)
    theirs = reference.rows[:neighbours].to(device)
    if min(len(ours), len(theirs)) > k:
        scores = neighbour_scores(ours, theirs, k=k)
        record |= {each: getattr(scores, each) for each in ("precision", "recall", "density", "coverage")}
        record |= {"k": k, "neighbours_n": len(ours), "neighbours_reference": len(theirs)}
    return record


def statistics_table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Records of `compare_statistics` as an aligned table, a line each; columns that no row has are left out.

    Raises:
        MetricError: if there is no record.
    """
    if not rows:
        raise MetricError("a table needs at least one record")
    names = {row["name"] for row in rows.values()}
    heads = {
        "distance": names.pop() if len(names) == 1 else "distance",
        "spatial_distance": next((row["spatial_name"] for row in rows.values() if row["spatial_name"]), ""),
        "inception_score": "IS",
        "precision": "precision",
        "recall": "recall",
        "kid": "KID",
    }
    columns = [(key, form) for key, form in _COLUMNS if any(row.get(key) is not None for row in rows.values())]
    cells = [["", *(heads[key] for key, _ in columns), "N"]]
    for label, row in rows.items():
        values = ["–" if row.get(key) is None else format(row[key], form) for key, form in columns]
        cells.append([label, *values, "–" if row["n"] is None else f"{row['n']:,}"])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))])
        for line in cells
    )
