"""What is missing, damaged or half written: a line in the page, or an error that names the file, never a traceback."""

import copy
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from markupsafe import Markup

from reports import Reader, made_diagnosis, made_run, made_study
from shortflow.errors import ConfigError
from shortflow.pictures import save_png
from shortflow.report import report_page
from shortflow.report.drawable import run_directories
from shortflow.report.files import Run, opened


@pytest.fixture(autouse=True)
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are not drawn, which takes longer than all the rest."""
    for module in ("charts", "maps"):
        monkeypatch.setattr(f"shortflow.report.{module}.to_svg", lambda drawn, name, title, said: Markup("<svg></svg>"))


def drawn(run: Path) -> Path:
    """A run with pictures, without a model that draws them."""
    folder, rng = run / "pictures", np.random.default_rng(0)
    for name in ("real.png", "steps-1.png", "neighbours.png", "interpolation.png"):
        save_png(rng.integers(0, 255, (1, 8, 8), np.uint8), folder / name)
    with (folder / "ways.npz").open("wb") as file:
        points = {
            "one": rng.normal(size=(2, 5, 2)),
            "many": rng.normal(size=(5, 5, 2)),
            "real": rng.normal(size=(9, 2)),
        }
        field = {"field_at": rng.normal(size=(9, 2)), "field": rng.normal(size=(1, 9, 2)), "field_times": np.ones(1)}
        np.savez(file, **points, **field)
    index = {
        "format": 1,
        "model": {"sha256": "0" * 64, "step": 1, "images": 32},
        "classes": ["a", "b"],
        "samples": [{"steps": 1, "file": "steps-1.png", "columns": 2, "rows": 1}],
        "real": {"file": "real.png", "of": "held out", "columns": 2, "rows": 1},
        "interpolation": {"file": "interpolation.png", "rows": 1, "points": 2, "steps": 1},
        "neighbours": {"file": "neighbours.png", "median": 0.1, "held_out_median": 0.2, "nearer": 0.5, "train": 9},
        "ways": {"file": "ways.npz", "points": 5},
        "cost": {"training_step": 3.5},
        "notes": ["a note"],
    }
    (folder / "pictures.json").write_text(json.dumps(index))
    return run


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = drawn(made_run(tmp_path_factory.mktemp("runs") / "one", lines=4))
    made_diagnosis(run / "diagnosis.json", "run")
    return run


def test_a_whole_run_has_no_faults(whole: Path) -> None:
    found = opened(whole)
    assert isinstance(found, Run)
    assert found.faults == ()
    page = Reader.of(report_page([whole]))
    assert page.notes.startswith("The pictures were drawn by the model as it was after 32 images.")
    assert len(page.images) == 4 + 3  # drawn, previews
    assert "3.50 F" in page.text
    assert "50 % of the samples are nearer than 95 % of the held-out images" in page.text
    assert page.tables["Residual of two jumps beside one: the numbers"] == [
        ["r \\ t", "0.25", "0.5", "1"],
        ["0", "0.5", "1.5", "3.5"],
        ["0.5", "–", "2.5", "4.5"],
    ]


FILES = {
    "run.yaml": "run.yaml",
    "evaluation.json": "evaluation.json",
    "model.safetensors": "model.safetensors",
    "diagnosis.json": "diagnosis",
    "pictures/pictures.json": "pictures",
    "pictures/steps-1.png": "steps-1.png",
    "pictures/ways.npz": "ways.npz",
    "samples/step-00000002.png": "step-00000002.png",
}


@pytest.mark.parametrize("damage", [lambda old: old[: len(old) // 2], lambda old: b"\x00\xff" * 40, lambda old: b""])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named_and_the_rest_is_there(
    name: str, damage: Callable[[bytes], bytes], whole: Path, tmp_path: Path
) -> None:
    import shutil

    run = shutil.copytree(whole, tmp_path / "run")
    (run / name).write_bytes(damage((run / name).read_bytes()))
    page = Reader.of(report_page([run]))
    assert FILES[name] in page.notes
    if name != "evaluation.json":
        assert "Scores by number of steps" in page.tables
    if not name.startswith("samples"):
        assert len(page.images) >= 3


@pytest.mark.parametrize(
    "name", ["pictures/steps-1.png", "evaluation.json", "stats.jsonl", "samples/step-00000002.png"]
)
def test_a_missing_file_is_no_error(name: str, whole: Path, tmp_path: Path) -> None:
    import shutil

    run = shutil.copytree(whole, tmp_path / "run")
    (run / name).unlink()
    page = Reader.of(report_page([run]))
    assert ("steps-1.png is not there, though it is named" in page.notes) == (name == "pictures/steps-1.png")


def test_lines_that_make_no_sense_are_counted_and_the_last_may_be_half(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run", lines=4)
    with (run / "stats.jsonl").open("a") as file:
        file.write('not json\n{"step": "x"}\n[]\n{"step": 99, "images": 999')
    found = opened(run)
    assert isinstance(found, Run)
    assert len(found.lines) == 4
    assert found.faults == ("stats.jsonl: 3 of its lines cannot be read, and are left out",)


def test_pictures_come_from_their_folder_only(tmp_path: Path) -> None:
    run = drawn(made_run(tmp_path / "run", lines=2))
    save_png(np.zeros((1, 4, 4), np.uint8), tmp_path / "secret.png")
    index = json.loads((run / "pictures" / "pictures.json").read_text())
    index["real"]["file"] = "../../secret.png"
    (run / "pictures" / "pictures.json").write_text(json.dumps(index))
    found = opened(run)
    assert isinstance(found, Run)
    assert found.pictures is not None
    assert "../../secret.png" not in found.pictures.images
    assert len(Reader.of(report_page([run])).images) == 3 + 3


def test_objects_in_arrays_are_never_unpickled(tmp_path: Path) -> None:
    run = drawn(made_run(tmp_path / "run", lines=2))

    class Bomb:
        def __reduce__(self) -> Any:
            return (Path.write_text, (tmp_path / "burst", "x"))

    with (run / "pictures" / "ways.npz").open("wb") as file:
        np.savez(file, one=np.array([Bomb()], dtype=object))
    assert "ways.npz holds no arrays that can be read" in Reader.of(report_page([run])).notes
    assert not (tmp_path / "burst").exists()


def test_cells_whose_pictures_are_wanted(tmp_path: Path) -> None:
    study = made_study(tmp_path / "study", variants=2, seeds=2)
    assert run_directories(study, cells=False) == []
    assert run_directories(study, cells=True) == [study / "cells/0/seed-0", study / "cells/1/seed-0"]
    run = made_run(tmp_path / "run")
    assert run_directories(run, cells=False) == run_directories(run / "model.safetensors", cells=True) == [run]
    assert run_directories(tmp_path / "nothing", cells=False) == []


# ------------------------------------------------------------------------------------------------- any value, anywhere

JSON_FILES = ("evaluation.json", "pictures/pictures.json", "diagnosis.json", "stats.jsonl", "results.json")
ODD = st.sampled_from(
    [None, True, -1, 0, 2.5, 1e300, math.inf, math.nan, "", "odd", "a.png", [], [None], [[1]], {}, {"a": 1}, [{}]]
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of everything in a JSON value but itself."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in items:
        yield (*path, key)
        yield from places(each, (*path, key))


def changed(value: Any, path: tuple[Any, ...], odd: Any) -> Any:
    found = copy.deepcopy(value)
    at = found
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = odd
    return found


@pytest.mark.parametrize("name", JSON_FILES)
@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_values_in_a_file_may_be_odd(name: str, data: st.DataObject, whole: Path, tmp_path: Path) -> None:
    """The page is made, or the error says which file it is."""
    odd_values(name, data, whole, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", JSON_FILES)
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_values_in_a_file_may_be_odd_many_times(
    name: str, data: st.DataObject, whole: Path, tmp_path: Path
) -> None:
    odd_values(name, data, whole, tmp_path)


def odd_values(name: str, data: st.DataObject, run: Path, folder: Path) -> None:
    """Put some odd values anywhere into a file, and make the page."""
    if name == "results.json":
        run = made_study(folder / "study", variants=2, seeds=2)
    file = run / name
    before = file.read_text()
    record = json.loads(before.splitlines()[-1]) if name == "stats.jsonl" else json.loads(before)
    for _ in range(data.draw(st.integers(1, 3))):
        record = changed(record, data.draw(st.sampled_from(list(places(record)))), data.draw(ODD))
    odd = json.dumps(record)
    file.write_text(before + odd + "\n" if name == "stats.jsonl" else odd)
    try:
        Reader.of(report_page([run]))
    except ConfigError as error:
        if name != "results.json" or name not in str(error):
            raise
    finally:
        file.write_text(before)
