"""Which runs have pictures to be drawn before a page is made."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shortflow.errors import ShortflowError
from shortflow.files import sha256_of
from shortflow.lock import held_by
from shortflow.report.files import FORMAT, INDEX, OF_A_RUN, PICTURES, STUDY
from shortflow.report.reading import is_map, listed, read_json
from shortflow.status import evaluation_files

__all__ = ["lacks_pictures", "run_directories"]

FEW = 8  # variants of a study whose samples are drawn unasked


def run_directories(path: Path, cells: bool | None) -> list[Path]:
    """The run at `path`; of a study with `cells` the first one of each variant that is done, with None if nothing is
    left to make and there are few. Errors come later."""
    path = path.expanduser()
    if path.is_file() and (path.name in OF_A_RUN or path in evaluation_files(path.parent)):
        path = path.parent
    if not (path / STUDY).is_file():
        return [path] if path.is_dir() else []
    if cells is False:
        return []
    found: dict[str, Path] = {}
    rows, ended = _study_rows(path), True
    for cell in rows:
        ended = ended and cell.get("status") in ("done", "failed")
        # of variants that are scored: the others are only there because these need them
        if cell.get("status") == "done" and isinstance(cell.get("path"), str) and _scored(cell):
            found.setdefault(str(cell.get("variant")), path / cell["path"])
    return list(found.values()) if cells or (ended and len(found) <= FEW) else []


def _study_rows(directory: Path) -> list[Mapping[str, Any]]:
    results = read_json(directory / STUDY)
    return [cell for cell in listed(results.get("cells") if is_map(results) else None) if is_map(cell)]


def _scored(cell: Mapping[str, Any]) -> bool:
    record = cell.get("record")
    return not is_map(record) or is_map(record.get("rows"))


def lacks_pictures(directory: Path, ended: bool) -> bool:
    """Whether a run has a model, and no pictures that this model has drawn.

    Args:
        ended: leave out a run that is still going on: it wants the machine for itself.
    """
    model = directory / "model.safetensors"
    if not model.is_file() or (ended and held_by(directory) is not None):
        return False
    try:
        drawn = read_json(directory / PICTURES / INDEX)
        return drawn["format"] != FORMAT or drawn["model"]["sha256"] != sha256_of(model)
    except (ShortflowError, OSError, KeyError, TypeError):
        return True
