"""What a report reads: run directories, studies and diagnoses, as files and nothing else.

No network is built and no tensor is read. What is missing is None; what cannot be read is left out and said in
`faults`, so that a page of a run that is damaged, or half written, or in the middle of training can be made, too.
"""

import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shortflow.config import RunConfig, from_plain, load_run
from shortflow.errors import CheckpointError, ConfigError
from shortflow.report.metrics import is_fid
from shortflow.report.reading import (
    Faults,
    Header,
    is_map,
    listed,
    read_arrays,
    read_header,
    read_json,
    read_lines,
    read_png,
    sums,
)
from shortflow.status import RunStatus, evaluation_files, read_status

__all__ = [
    "FORMAT",
    "INDEX",
    "OF_A_RUN",
    "PICTURES",
    "STUDY",
    "Diagnosis",
    "Pictures",
    "Run",
    "Study",
    "opened",
    "place_of",
]

PICTURES, INDEX = "pictures", "pictures.json"  # the folder of a run's pictures, and the file that says what they are
FORMAT = 1  # of that file

STUDY, PLAN, DIAGNOSIS = "results.json", "study.yaml", "diagnosis.json"
OF_A_RUN = ("run.yaml", "model.safetensors", "stats.jsonl")


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
        evaluations: the content of every evaluation*.json, by the name of the file: FID first, then evaluation.json.
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
    evaluations: Mapping[str, Mapping[str, Any]]
    header: Header | None
    previews: tuple[tuple[int, bytes], ...]
    pictures: Pictures | None
    diagnosis: Diagnosis | None
    sums: tuple[tuple[str, int, str], ...]
    faults: tuple[str, ...]

    @property
    def evaluation(self) -> Mapping[str, Any] | None:
        """The first of the evaluations."""
        return next(iter(self.evaluations.values()), None)

    @property
    def rows(self) -> Mapping[str, Mapping[str, Any]]:
        """The rows of the first evaluation."""
        return (self.evaluation or {}).get("rows", {})


@dataclass(frozen=True, kw_only=True)
class Study:
    """A directory of a study.

    Attributes:
        results: the content of results.json.
        pictures: drawn of a cell, by variant, the first one that has any.
        runs: run file and resolved run of a cell, by variant, the first one that has them.
        lines: the records of training of all cells, by variant.
        asked: the study as a file that begins it anew; None where there is no plan.
        totals: what the models of cells say is the SHA-256 over their weights and description, by the cell's path.
        sums, faults: as of a run.
    """

    directory: Path
    name: str
    results: Mapping[str, Any]
    pictures: Mapping[str, Pictures]
    runs: Mapping[str, tuple[str, RunConfig]]
    lines: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]]
    asked: str | None
    totals: Mapping[str, str]
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
    path = place_of(path)
    if path.is_file():
        return _diagnosis(path, path.stem)
    return _study(path) if (path / STUDY).is_file() else _run(path)


def place_of(path: str | Path) -> Path:
    """The directory of the run or study at `path`, or the file of a diagnosis. Nothing is read.

    Raises:
        CheckpointError: if there is none of these.
    """
    path = Path(path).expanduser()
    if path.is_file():
        if path.name in (*OF_A_RUN, STUDY) or path in evaluation_files(path.parent):
            path = path.parent
        elif path.suffix == ".json":
            return path
        else:
            raise CheckpointError(
                f"{path} is no run, study or diagnosis; give a run directory, a directory of a study, or the JSON file "
                "of a diagnosis"
            )
    if any((path / name).is_file() for name in (STUDY, "run.yaml", "model.safetensors")):
        return path
    if not path.exists():
        raise CheckpointError(f"there is no {path}; give a run directory, or the directory of a study")
    raise CheckpointError(
        f"{path} holds no run (run.yaml or model.safetensors) and no study ({STUDY}); give a directory that "
        "`shortflow train` or `shortflow compare` has written"
    )


# ---------------------------------------------------------------------------------------------------------------- runs


def _run(directory: Path) -> Run:
    faults = Faults()
    status = config = text = None
    if (directory / "run.yaml").is_file():
        status = faults.read(read_status, directory)
        if status is not None:  # else the run file is damaged, which is said already
            config = faults.read(load_run, directory / "run.yaml")
            text = faults.read(lambda: (directory / "run.yaml").read_text("utf-8"))
    header = faults.read(read_header, directory / "model.safetensors")
    if config is None and header is not None:
        config = faults.read(from_plain, RunConfig, header.description.get("run"))
    pictures = faults.read(_pictures, directory / PICTURES)
    diagnosis = None
    if (directory / DIAGNOSIS).is_file():
        diagnosis = faults.read(_diagnosis, directory / DIAGNOSIS, _name(directory))
    lines, damaged = read_lines(directory / "stats.jsonl")
    if damaged:
        faults.found.append(f"stats.jsonl: {damaged} of its lines cannot be read, and are left out")
    if status is not None:
        faults.found += [remark for remark in status.remarks if "stats.jsonl" not in remark]
    scores = evaluation_files(directory)
    files = (*OF_A_RUN, *(path.name for path in scores), DIAGNOSIS)
    return Run(
        directory=directory,
        name=_name(directory),
        status=status,
        config=config,
        text=text,
        lines=lines,
        evaluations=_evaluations(scores, faults),
        header=header,
        previews=tuple(_previews(directory / "samples", faults)),
        pictures=pictures,
        diagnosis=diagnosis,
        sums=tuple(sums(directory, files, faults)),
        faults=tuple(dict.fromkeys(faults.found)),
    )


def _name(directory: Path) -> str:
    return directory.resolve().name or str(directory)


def _evaluations(paths: Sequence[Path], faults: Faults) -> dict[str, Mapping[str, Any]]:
    """The records that can be read, by file: FID, which others can be compared with, before all others."""
    found = {path.name: record for path in paths if (record := faults.read(_evaluation, path)) is not None}
    return dict(sorted(found.items(), key=lambda each: not is_fid(each[1])))


def _evaluation(path: Path) -> Mapping[str, Any]:
    record = read_json(path)
    rows = record.get("rows") if is_map(record) else None
    if not is_map(rows) or not all(map(is_map, rows.values())):
        raise ConfigError(f"{path.name} is no record of an evaluation (no rows); make it again: shortflow evaluate RUN")
    return record


def _previews(folder: Path, faults: Faults) -> Iterator[tuple[int, bytes]]:
    """The first preview, the last, and one between."""
    steps = {}
    with suppress(OSError):
        for path in folder.iterdir():
            if found := re.fullmatch(r"step-(\d{1,18})\.png", path.name):
                steps[int(found[1])] = path
    order = sorted(steps)
    chosen = order if len(order) <= 3 else [order[0], order[(len(order) - 1) // 2], order[-1]]
    for step in chosen:
        png = faults.read(read_png, steps[step])
        if png is not None:
            yield step, png


def _pictures(folder: Path) -> Pictures | None:
    if not (folder / INDEX).is_file():
        return None
    index = read_json(folder / INDEX)
    if not is_map(index) or index.get("format") != FORMAT:
        raise ConfigError(f"{PICTURES}/{INDEX} is not of this version; draw again: shortflow report RUN --draw")
    index = _sound(index)
    images, arrays = {}, {}
    for name in sorted({name for name in _named(index) if "/" not in name and "\\" not in name}):
        if name.endswith(".png"):
            images[name] = read_png(folder / name)
        elif name.endswith(".npz"):
            arrays[name] = read_arrays(folder / name)
    return Pictures(index=index, images=images, arrays=arrays)


def _sound(index: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of an index that are what they should be."""
    found = {name: index[name] for name in ("model", "cost") if is_map(index.get(name))}
    for name in ("real", "interpolation", "neighbours", "ways", "clouds"):
        if is_map(index.get(name)) and isinstance(index[name].get("file"), str):
            found[name] = index[name]
    samples = [each for each in listed(index.get("samples")) if is_map(each) and isinstance(each.get("file"), str)]
    texts = {name: [str(text) for text in listed(index.get(name))] for name in ("classes", "notes")}
    return {**found, **texts, "samples": samples}


def _named(value: Any) -> Iterator[str]:
    """The files that an index names."""
    if is_map(value):
        if isinstance(value.get("file"), str):
            yield value["file"]
        for each in value.values():
            yield from _named(each)
    elif isinstance(value, list):
        for each in value:
            yield from _named(each)


# ---------------------------------------------------------------------------------------------- studies and diagnoses


def _study(directory: Path) -> Study:
    results = read_json(directory / STUDY)
    if not is_map(results) or results.get("format") != 1 or not isinstance(results.get("variants"), list):
        raise ConfigError(
            f"{directory / STUDY} holds no results of a study that this version reads (format 1); make them again: "
            "shortflow compare"
        )
    faults = Faults()
    pictures: dict[str, Pictures] = {}
    runs: dict[str, tuple[str, RunConfig]] = {}
    lines: dict[str, list[Sequence[Mapping[str, Any]]]] = {}
    totals = {}
    for cell in listed(results.get("cells")):
        if not is_map(cell) or not isinstance(cell.get("path"), str):
            continue
        variant, place = str(cell.get("variant")), directory / cell["path"]
        if variant not in pictures and (drawn := faults.read(_pictures, place / PICTURES)) is not None:
            pictures[variant] = drawn
        if variant not in runs and (place / "run.yaml").is_file() and (read := faults.read(_run_file, place)):
            runs[variant] = read
        if record := read_lines(place / "stats.jsonl")[0]:
            lines.setdefault(variant, []).append(record)
        header = faults.read(read_header, place / "model.safetensors")
        if header is not None and header.total is not None:
            totals[cell["path"]] = header.total
    return Study(
        directory=directory,
        name=_name(directory),
        results=results,
        pictures=pictures,
        runs=runs,
        lines=lines,
        asked=faults.read(_asked, directory / PLAN) if (directory / PLAN).is_file() else None,
        totals=totals,
        sums=tuple(sums(directory, (STUDY, PLAN), faults)),
        faults=tuple(dict.fromkeys(faults.found)),
    )


def _run_file(place: Path) -> tuple[str, RunConfig]:
    return (place / "run.yaml").read_text("utf-8"), load_run(place / "run.yaml")


def _asked(plan: Path) -> str | None:
    """What was asked for, as a plan has it under `study`: a file that begins the study anew."""
    found = re.search(r"(?m)^study:\n((?: .*\n)+)", plan.read_text("utf-8"))
    if found is None:
        return None
    said = [line for line in textwrap.dedent(found[1]).splitlines() if not line.endswith((": null", ": []", ": ''"))]
    return "\n".join(said) + "\n"


def _diagnosis(path: Path, name: str) -> Diagnosis:
    record = read_json(path)
    if not is_map(record) or record.get("format") != 1 or record.get("kind") not in ("data", "run"):
        raise ConfigError(
            f"{path} is no diagnosis that this version reads; make it again: shortflow diagnose DATA|RUN --out {path}"
        )
    return Diagnosis(path=path, name=name, record=record)
