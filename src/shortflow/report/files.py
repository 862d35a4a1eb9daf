"""What a report reads: run directories, studies and diagnoses, as files and nothing else.

No network is built and no tensor is read. What is missing is None; what cannot be read is left out and said in
`faults`, so that a page of a run that is damaged, or half written, or in the middle of training can be made, too.
"""

import io
import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from PIL import Image
from safetensors import SafetensorError, safe_open

from shortflow.config import RunConfig, from_plain, load_run
from shortflow.errors import CheckpointError, ConfigError, ShortflowError
from shortflow.files import sha256_of
from shortflow.lock import held_by
from shortflow.status import RunStatus, read_status

__all__ = [
    "FORMAT",
    "INDEX",
    "PICTURES",
    "Diagnosis",
    "Header",
    "Pictures",
    "Run",
    "Study",
    "lacks_pictures",
    "opened",
    "run_directories",
]

PICTURES, INDEX = "pictures", "pictures.json"  # the folder of a run's pictures, and the file that says what they are
FORMAT = 1  # of that file

STUDY, DIAGNOSIS = "results.json", "diagnosis.json"
_OF_A_RUN = ("run.yaml", "model.safetensors", "stats.jsonl", "evaluation.json")
_LARGEST = 2**26  # bytes of a JSON file
_LARGEST_PICTURE = 2**24
_LONGEST = 2**29  # bytes of a record


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a model file says of itself.

    Attributes:
        description: format, run, data, images, step, and what else training has written.
        parameters: numbers in it.
        total: the SHA-256 over weights and description that it was written with; None in files of earlier versions.
    """

    description: Mapping[str, Any]
    parameters: int
    total: str | None


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """What `shortflow.runs.illustrate` has drawn.

    Attributes:
        index: the content of pictures.json; a part of it that is not what it should be is left out.
        images: PNG files by name; arrays: those of its .npz files, by file.
    """

    index: Mapping[str, Any]
    images: Mapping[str, bytes]
    arrays: Mapping[str, Mapping[str, np.ndarray]]


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What `shortflow diagnose` has found.

    Attributes:
        name: of the file, or of the run that it lies in.
        record: the content of the file.
    """

    path: Path
    name: str
    record: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run directory.

    Attributes:
        directory, name: of it.
        status: how far it is; None where the run file cannot be read.
        config: the resolved run, as the run file or the model has it.
        text: the run file.
        lines: the record of training: every whole line of stats.jsonl.
        evaluation: the content of evaluation.json.
        header: of model.safetensors.
        previews: (step, PNG), oldest first.
        pictures, diagnosis: drawn or found afterwards.
        sums: (file, bytes, SHA-256).
        faults: what cannot be read, in sentences.
    """

    directory: Path
    name: str
    status: RunStatus | None
    config: RunConfig | None
    text: str | None
    lines: tuple[Mapping[str, Any], ...]
    evaluation: Mapping[str, Any] | None
    header: Header | None
    previews: tuple[tuple[int, bytes], ...]
    pictures: Pictures | None
    diagnosis: Diagnosis | None
    sums: tuple[tuple[str, int, str], ...]
    faults: tuple[str, ...]

    @property
    def rows(self) -> dict[str, Mapping[str, Any]]:
        """The rows of the evaluation, those that are mappings."""
        rows = (self.evaluation or {}).get("rows")
        return {str(name): row for name, row in rows.items() if isinstance(row, Mapping)} if _is_map(rows) else {}


@dataclass(frozen=True, kw_only=True)
class Study:
    """A directory of a study.

    Attributes:
        results: the content of results.json.
        pictures: drawn of a cell, by variant, the first one that has any.
        sums, faults: as of a run.
    """

    directory: Path
    name: str
    results: Mapping[str, Any]
    pictures: Mapping[str, Pictures]
    sums: tuple[tuple[str, int, str], ...]
    faults: tuple[str, ...]

    def rows(self, name: str) -> list[Mapping[str, Any]]:
        """A list of the results, without what is no mapping."""
        return [row for row in listed(self.results.get(name)) if isinstance(row, Mapping)]


def opened(path: str | Path) -> Run | Study | Diagnosis:
    """What is at `path`: a run directory (or its model file), a study's directory (or its results), or a diagnosis.

    Raises:
        CheckpointError: if it is none of these.
        ConfigError: if the one file that makes it a study or a diagnosis cannot be read.
    """
    path = Path(path).expanduser()
    if path.is_file():
        if path.name in (*_OF_A_RUN, STUDY):
            path = path.parent
        elif path.suffix == ".json":
            return _diagnosis(path, path.stem)
        else:
            raise CheckpointError(
                f"{path} is no run, study or diagnosis; give a run directory, a directory of a study, or the JSON file "
                "of a diagnosis"
            )
    if (path / STUDY).is_file():
        return _study(path)
    if any((path / name).is_file() for name in ("run.yaml", "model.safetensors")):
        return _run(path)
    if not path.exists():
        raise CheckpointError(f"there is no {path}; give a run directory, or the directory of a study")
    raise CheckpointError(
        f"{path} holds no run (run.yaml or model.safetensors) and no study ({STUDY}); give a directory that "
        "`shortflow train` or `shortflow compare` has written"
    )


# ---------------------------------------------------------------------------------------------------------------- runs


@dataclass
class _Faults:
    """Sentences on what cannot be read."""

    found: list[str] = field(default_factory=list)

    def read(self, what: Any, *arguments: Any) -> Any:
        """what(*arguments); None, and a sentence, where that fails."""
        try:
            return what(*arguments)
        except (ShortflowError, OSError) as error:
            text = " ".join(str(error).split())
            self.found.append(text if len(text) <= 400 else f"{text[:400]} …")
            return None


def _run(directory: Path) -> Run:
    faults = _Faults()
    status = config = text = None
    if (directory / "run.yaml").is_file():
        status = faults.read(read_status, directory)
        if status is not None:  # else the run file is damaged, which is said already
            config = faults.read(load_run, directory / "run.yaml")
            text = faults.read(lambda: (directory / "run.yaml").read_text("utf-8"))
    header = faults.read(_header, directory / "model.safetensors")
    if config is None and header is not None:
        config = faults.read(from_plain, RunConfig, header.description.get("run"))
    pictures = faults.read(_pictures, directory / PICTURES)
    diagnosis = None
    if (directory / DIAGNOSIS).is_file():
        diagnosis = faults.read(_diagnosis, directory / DIAGNOSIS, _name(directory))
    lines, damaged = _lines(directory / "stats.jsonl")
    if damaged:
        faults.found.append(f"stats.jsonl: {damaged} of its lines cannot be read, and are left out")
    if status is not None:
        faults.found += [remark for remark in status.remarks if "stats.jsonl" not in remark]
    files = (*_OF_A_RUN, DIAGNOSIS)
    return Run(
        directory=directory,
        name=_name(directory),
        status=status,
        config=config,
        text=text,
        lines=lines,
        evaluation=faults.read(_evaluation, directory / "evaluation.json"),
        header=header,
        previews=tuple(_previews(directory / "samples", faults)),
        pictures=pictures,
        diagnosis=diagnosis,
        sums=tuple(_sums(directory, files, faults)),
        faults=tuple(dict.fromkeys(faults.found)),
    )


def _name(directory: Path) -> str:
    return directory.resolve().name or str(directory)


def _header(path: Path) -> Header | None:
    """The header of a safetensors file, as `shortflow.hub.read_header` reads it, and how many numbers there are."""
    if not path.is_file():
        return None
    try:
        with safe_open(str(path), "np") as file:
            text = (file.metadata() or {}).get("shortflow")
            shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path.name} is no safetensors file, or only a part of one ({error})") from error
    description = _parsed(text.encode(), path.name) if text is not None else None
    if not isinstance(description, dict):
        raise CheckpointError(f"{path.name} does not say what it is: no shortflow model, or a damaged one")
    total = description.pop("sha256", None)
    return Header(
        description=description, parameters=sum(map(math.prod, shapes)), total=None if total is None else str(total)
    )


def _lines(path: Path) -> tuple[tuple[Mapping[str, Any], ...], int]:
    """The whole lines of a record, and how many make no sense. What stands behind the last newline is being written."""
    found, damaged = [], 0
    try:
        if path.stat().st_size > _LONGEST:
            return (), 0
        rows = path.read_bytes().split(b"\n")[:-1]
    except OSError:
        return (), 0
    for row in rows:
        line = None
        with suppress(ValueError, RecursionError):
            line = json.loads(row)
        if _is_map(line) and all(type(line.get(name)) is int and line[name] > 0 for name in ("step", "images")):
            found.append(line)
        else:
            damaged += 1
    return tuple(found), damaged


def _evaluation(path: Path) -> Mapping[str, Any] | None:
    if not path.is_file():
        return None
    record = _json(path)
    rows = record.get("rows") if _is_map(record) else None
    if not _is_map(rows) or not all(map(_is_map, rows.values())):
        raise ConfigError(f"{path.name} is no record of an evaluation (no rows); make it again: shortflow evaluate RUN")
    return record


def _previews(folder: Path, faults: _Faults) -> Iterator[tuple[int, bytes]]:
    """The first preview, the last, and one between."""
    steps = {}
    with suppress(OSError):
        for path in folder.iterdir():
            if found := re.fullmatch(r"step-(\d{1,18})\.png", path.name):
                steps[int(found[1])] = path
    order = sorted(steps)
    chosen = order if len(order) <= 3 else [order[0], order[(len(order) - 1) // 2], order[-1]]
    for step in chosen:
        png = faults.read(_png, steps[step])
        if png is not None:
            yield step, png


def _pictures(folder: Path) -> Pictures | None:
    if not (folder / INDEX).is_file():
        return None
    index = _json(folder / INDEX)
    if not _is_map(index) or index.get("format") != FORMAT:
        raise ConfigError(f"{PICTURES}/{INDEX} is not of this version; draw again: shortflow report RUN --draw")
    index = _sound(index)
    images, arrays = {}, {}
    for name in sorted({name for name in _named(index) if "/" not in name and "\\" not in name}):
        if name.endswith(".png"):
            images[name] = _png(folder / name)
        elif name.endswith(".npz"):
            arrays[name] = _npz(folder / name)
    return Pictures(index=index, images=images, arrays=arrays)


def _sound(index: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of an index that are what they should be."""
    found = {name: index[name] for name in ("model", "cost") if _is_map(index.get(name))}
    for name in ("real", "interpolation", "neighbours", "ways", "clouds"):
        if _is_map(index.get(name)) and isinstance(index[name].get("file"), str):
            found[name] = index[name]
    samples = [each for each in listed(index.get("samples")) if _is_map(each) and isinstance(each.get("file"), str)]
    texts = {name: [str(text) for text in listed(index.get(name))] for name in ("classes", "notes")}
    return {**found, **texts, "samples": samples}


def _named(value: Any) -> Iterator[str]:
    """The files that an index names."""
    if _is_map(value):
        if isinstance(value.get("file"), str):
            yield value["file"]
        for each in value.values():
            yield from _named(each)
    elif isinstance(value, list):
        for each in value:
            yield from _named(each)


def _png(path: Path) -> bytes:
    """A PNG file, as it is, if all of it is there."""
    try:
        if path.stat().st_size > _LARGEST_PICTURE:
            raise ConfigError(f"{path.name} is larger than {_LARGEST_PICTURE >> 20} MiB and is left out")
        content = path.read_bytes()
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            image.load()
    except FileNotFoundError as error:
        raise ConfigError(f"{path.name} is not there, though it is named; draw it again") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ConfigError(f"{path.name} is no PNG file, or only a part of one, and is left out") from error
    return content


def _npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file, of finite numbers."""
    try:
        if path.stat().st_size > _LARGEST_PICTURE:
            raise ConfigError(f"{path.name} is larger than {_LARGEST_PICTURE >> 20} MiB and is left out")
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: np.asarray(file[name], np.float64) for name in file.files}
    except ConfigError:
        raise
    except Exception as error:  # a damaged zip fails in many ways
        raise ConfigError(f"{path.name} holds no arrays that can be read, and is left out; draw it again") from error
    return {name: array for name, array in arrays.items() if np.isfinite(array).all()}


def _sums(directory: Path, names: tuple[str, ...], faults: _Faults) -> Iterator[tuple[str, int, str]]:
    """Size and SHA-256 of the files that are there."""
    for name in names:
        if (directory / name).is_file():
            found = faults.read(_size_and_sum, directory / name)
            if found is not None:
                yield (name, *found)


def _size_and_sum(path: Path) -> tuple[int, str]:
    return path.stat().st_size, sha256_of(path)


# ---------------------------------------------------------------------------------------------- studies and diagnoses


def _study(directory: Path) -> Study:
    results = _json(directory / STUDY)
    if not _is_map(results) or results.get("format") != 1 or not isinstance(results.get("variants"), list):
        raise ConfigError(
            f"{directory / STUDY} holds no results of a study that this version reads (format 1); make them again: "
            "shortflow compare"
        )
    faults = _Faults()
    pictures: dict[str, Pictures] = {}
    for cell in listed(results.get("cells")):
        if _is_map(cell) and isinstance(cell.get("path"), str) and str(cell.get("variant")) not in pictures:
            found = faults.read(_pictures, directory / cell["path"] / PICTURES)
            if found is not None:
                pictures[str(cell["variant"])] = found
    return Study(
        directory=directory,
        name=_name(directory),
        results=results,
        pictures=pictures,
        sums=tuple(_sums(directory, (STUDY, "study.yaml"), faults)),
        faults=tuple(dict.fromkeys(faults.found)),
    )


def _diagnosis(path: Path, name: str) -> Diagnosis:
    record = _json(path)
    if not _is_map(record) or record.get("format") != 1 or record.get("kind") not in ("data", "run"):
        raise ConfigError(
            f"{path} is no diagnosis that this version reads; make it again: shortflow diagnose DATA|RUN --out {path}"
        )
    return Diagnosis(path=path, name=name, record=record)


# ------------------------------------------------------------------------------------------------- what is to be drawn


def run_directories(path: Path, cells: bool) -> list[Path]:
    """The run at `path`; with `cells` those of a study, the first of each variant that is done. Errors come later."""
    path = path.expanduser()
    if path.is_file() and path.name in _OF_A_RUN:
        path = path.parent
    if (path / STUDY).is_file() and not cells:
        return []
    if not (path / STUDY).is_file():
        return [path] if path.is_dir() else []
    found: dict[str, Path] = {}
    for cell in _study(path).rows("cells"):
        if cell.get("status") == "done" and isinstance(cell.get("path"), str):
            found.setdefault(str(cell.get("variant")), path / cell["path"])
    return list(found.values())


def lacks_pictures(directory: Path, ended: bool) -> bool:
    """Whether a run has a model, and no pictures that this model has drawn.

    Args:
        ended: leave out a run that is still going on: it wants the machine for itself.
    """
    model = directory / "model.safetensors"
    if not model.is_file() or (ended and held_by(directory) is not None):
        return False
    try:
        drawn = _json(directory / PICTURES / INDEX)
        return drawn["format"] != FORMAT or drawn["model"]["sha256"] != sha256_of(model)
    except (ShortflowError, OSError, KeyError, TypeError):
        return True


# -------------------------------------------------------------------------------------------------------- small things


def _json(path: Path) -> Any:
    """What a JSON file says.

    Raises:
        ConfigError: if it is none, or too large.
    """
    if path.stat().st_size > _LARGEST:
        raise ConfigError(f"{path.name} is larger than {_LARGEST >> 20} MiB; it is no file of this kind")
    return _parsed(path.read_bytes(), path.name)


def _parsed(content: bytes, name: str) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{name} cannot be read, it is damaged or half written ({error})") from error


def listed(value: Any) -> list[Any]:
    """A value that is a list; no items where it is none."""
    return value if isinstance(value, list) else []


def _is_map(value: Any) -> TypeGuard[Mapping[str, Any]]:
    return isinstance(value, Mapping)
