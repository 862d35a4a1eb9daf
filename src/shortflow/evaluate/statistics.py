"""Statistics of a set of images: one side of a comparison, as a value and as a file.

Files are .npz, with the keys that other projects read and write, and a record of ours where we wrote them:

    mu, sigma; mu_s, sigma_s          mean and covariance of features and of spatial features (ADM, EDM, pytorch-fid,
                                      clean-fid, torch-fidelity's forks); read also as ref_mu, ref_sigma (MeanFlow in
                                      JAX) and as mean, cov
    features, score                   some features, and the images' own Inception score (ours)
    shortflow                         JSON: images, resolution, crop, extractor, fingerprint, source (ours)
    arr_0                             uint8 images (n, h, w, c) beside the statistics (ADM); not read here

Nothing is ever unpickled: a file that would need it is refused.
"""

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from shortflow.errors import MetricError
from shortflow.evaluate.extractor import Extractor
from shortflow.evaluate.frechet import Gaussian, Moments
from shortflow.evaluate.tally import Tally
from shortflow.files import sha256_of, write_atomic

__all__ = ["Statistics", "holds_images", "holds_statistics", "read_statistics"]

KEYS = (("mu", "sigma"), ("ref_mu", "ref_sigma"), ("mean", "cov"))
_SPATIAL = (("mu_s", "sigma_s"), ("ref_mu_s", "ref_sigma_s"))
_FORMAT = 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Statistics:
    """What a comparison needs of one set of images.

    Attributes:
        features, spatial: mean and covariance; spatial ones are None where there are none.
        rows: some features in a fixed random order (k, d), for KID and neighbours; None: unknown.
        score: the images' Inception score and its deviation between splits; None: unknown.
        count: how many images there were; None: unknown.
        resolution: (height, width) of the images before any resize; None: unknown.
        crop: how images became squares of a resolution that was asked for; None: they did not, or it is not known.
        extractor: the record of what made the features; None: a file of another project does not say.
        source: where the images are from, in words.
        skipped: what could not be read, and was left out: what it is called, and why.
        sha256: of the statistics file, or of the images.
    """

    features: Gaussian | Moments
    spatial: Gaussian | Moments | None = None
    rows: Float[Tensor, "k d"] | None = None
    score: tuple[float, float] | None = None
    count: int | None = None
    resolution: tuple[int, int] | None = None
    crop: str | None = None
    extractor: Mapping[str, Any] | None = None
    source: str = ""
    sha256: str = ""
    skipped: Sequence[tuple[str, str]] = ()

    @classmethod
    def of(
        cls,
        tally: Tally,
        extractor: Extractor,
        source: str,
        skipped: Sequence[tuple[str, str]] = (),
        crop: str | None = None,
    ) -> "Statistics":
        """Those of images that were seen one by one."""
        return cls(
            features=tally.features,
            spatial=tally.spatial,
            rows=tally.kept if len(tally.rows) else None,
            score=None if tally.scores is None else tally.scores.value(),
            count=tally.features.count,
            resolution=tally.shape[1:],
            crop=crop,
            extractor=extractor.record(),
            source=source,
            sha256=tally.fingerprint,
            skipped=skipped,
        )

    def record(self) -> dict[str, Any]:
        """What identifies them, JSON-able."""
        return {
            "source": self.source,
            "sha256": self.sha256,
            "n": self.count,
            "resolution": None if self.resolution is None else list(self.resolution),
            "crop": self.crop,
            "extractor": None if self.extractor is None else dict(self.extractor),
            "inception_score": None if self.score is None else self.score[0],
            "skipped": [list(each) for each in self.skipped],
        }

    def save(self, path: str | Path) -> None:
        """Write them as .npz, atomically; any project that reads `mu` and `sigma` can use the file.

        Raises:
            MetricError: if the name does not end in .npz.
        """
        path = Path(path)
        if path.suffix != ".npz":
            raise MetricError(f"{path}: statistics are .npz files; give a name that ends so")
        arrays: dict[str, Any] = {"mu": self.features.mean.numpy(), "sigma": self.features.cov.numpy()}
        if self.spatial is not None:
            arrays |= {"mu_s": self.spatial.mean.numpy(), "sigma_s": self.spatial.cov.numpy()}
        if self.rows is not None:
            arrays["features"] = self.rows.numpy()
        if self.score is not None:
            arrays["score"] = np.array(self.score)
        described = {"format": _FORMAT, **self.record()}
        content = io.BytesIO()
        np.savez(content, shortflow=np.array(json.dumps(described, ensure_ascii=False)), **arrays)
        write_atomic(path, content.getvalue())


def holds_statistics(path: Path) -> bool:
    """Whether a file is an .npz with a mean and a covariance in it."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.removesuffix(".npy") for name in archive.namelist()}
    except (OSError, zipfile.BadZipFile):
        return False
    return any(set(pair) <= names for pair in KEYS)


def read_statistics(path: str | Path) -> Statistics:
    """The statistics in an .npz file of ours or of another project (see the module).

    Raises:
        MetricError: if the file is missing, damaged, needs unpickling, or is not of mean and covariance.
    """
    path = Path(path).expanduser()
    if path.suffix in (".pkl", ".pickle", ".pt", ".pth"):
        raise MetricError(
            f"{path}: pickled statistics are not opened, because that may execute code. Where you trust the file, "
            "convert it once: np.savez('stats.npz', mu=…, sigma=…) with the arrays in it"
        )
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files if key in _known()}
            present = list(file.files)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, KeyError) as error:
        raise MetricError(
            f"{path}: cannot be read as statistics ({error}); give an .npz file with mu and sigma"
        ) from error
    pair = next((pair for pair in KEYS if set(pair) <= set(arrays)), None)
    if pair is None:
        raise MetricError(f"{path}: there is no mu and sigma in it, but {', '.join(present) or 'nothing'}")
    spatial = next((each for each in _SPATIAL if set(each) <= set(arrays)), None)
    described = _described(path, arrays)
    features = _gaussian(path, arrays, pair)
    rows = arrays.get("features") if described else None
    if rows is not None and (rows.ndim != 2 or rows.shape[1] != len(features.mean) or rows.dtype != np.float32):
        raise MetricError(
            f"{path}: features are {rows.dtype} of shape {rows.shape}, mu has {len(features.mean)} values"
        )
    score = arrays.get("score") if described else None
    return Statistics(
        features=features,
        spatial=None if spatial is None else _gaussian(path, arrays, spatial),
        rows=None if rows is None else torch.from_numpy(rows),
        score=None if score is None else (float(score[0]), float(score[1])),
        count=described.get("n"),
        resolution=_pair(described.get("resolution")),
        crop=described.get("crop"),
        extractor=described.get("extractor"),
        source=str(path),
        sha256=sha256_of(path),
        skipped=tuple((str(title), str(reason)) for title, reason in described.get("skipped", ())),
    )


def _known() -> set[str]:
    pairs = {key for pair in (*KEYS, *_SPATIAL) for key in pair}
    return pairs | {"features", "score", "shortflow"}


def _described(path: Path, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Our own record in a file; empty for files of other projects."""
    if "shortflow" not in arrays:
        return {}
    try:
        described = json.loads(str(arrays["shortflow"]))
        wrong = described["format"] != _FORMAT
    except (ValueError, KeyError, TypeError) as error:
        raise MetricError(f"{path}: its record is damaged ({error}); make the statistics anew") from error
    if wrong:
        raise MetricError(
            f"{path}: statistics of format {described['format']!r}, this version of shortflow reads {_FORMAT}; make "
            "them anew, or install the version that wrote them"
        )
    return described


def _gaussian(path: Path, arrays: Mapping[str, np.ndarray], keys: tuple[str, str]) -> Gaussian:
    mean, cov = (arrays[key] for key in keys)
    what = f"{path}: {keys[0]} {mean.dtype} {mean.shape}, {keys[1]} {cov.dtype} {cov.shape}"
    if mean.dtype.kind != "f" or cov.dtype.kind != "f" or mean.ndim != 1 or cov.shape != (len(mean), len(mean)):
        raise MetricError(f"{what}; expected floating-point arrays (d,) and (d, d)")
    mean, cov = mean.astype(np.float64), cov.astype(np.float64)
    if not (np.isfinite(mean).all() and np.isfinite(cov).all()):
        raise MetricError(f"{what}; there are values that are not finite: the file is damaged, or its images were")
    # Others compute covariances in float32, or by a formula that is symmetric to rounding only.
    if np.abs(cov - cov.T).max() > 1e-3 * max(np.abs(cov).max(), 1e-30) or np.diagonal(cov).min() < 0:
        raise MetricError(f"{what}; {keys[1]} is no covariance: it is not symmetric, or has a variance below 0")
    return Gaussian(mean=torch.from_numpy(mean), cov=torch.from_numpy((cov + cov.T) / 2))


def holds_images(path: Path) -> bool:
    """Whether an .npz file has ADM's array of images, `arr_0`, beside its statistics."""
    try:
        with zipfile.ZipFile(path) as archive:
            return "arr_0.npy" in archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return False


def _pair(values: Any) -> tuple[int, int] | None:
    return None if values is None else (int(values[0]), int(values[1]))
