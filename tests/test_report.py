"""Pages of runs: the figures in them are those of the files, everything can be found, nothing can be injected."""

import hashlib
import itertools
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup

from commands import Shortflow
from reports import Reader, line, made_diagnosis, made_run, value
from shortflow.config import RunConfig, difference, from_plain, load_run, recipe_named
from shortflow.diagnose import Diagnosis
from shortflow.errors import ShortflowError
from shortflow.lock import RunLock
from shortflow.report import report_page, write_report
from shortflow.report.blocks import number, with_error
from shortflow.report.charts import Series, lines, ranking
from shortflow.report.maps import cells
from shortflow.report.metrics import comparable
from shortflow.runs import illustrate


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are not drawn, which takes longer than all the rest; what they say is there."""

    def to_svg(drawn: Any, name: str, title: str, description: str) -> Markup:
        return Markup('<svg role="img"><desc>{}</desc></svg>').format(description)

    monkeypatch.setattr("shortflow.report.charts.to_svg", to_svg)
    monkeypatch.setattr("shortflow.report.maps.to_svg", to_svg)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures of few samples in few steps, and no count of what a step costs."""
    from shortflow.runs import illustrating

    monkeypatch.setattr(illustrating, "_steps_of", lambda model: [1, 2])
    monkeypatch.setattr(illustrating, "step_cost", lambda recipe: 3.25)
    for name, count in (("MANY", 4), ("CLOUD", 64), ("WAYS", 8)):
        monkeypatch.setattr(illustrating, name, count)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_run(tmp_path_factory.mktemp("runs") / "one", settings=("objective.times.ratio=0.5",))


@pytest.fixture(scope="module")
def html(run: Path) -> str:
    return report_page([run])


@pytest.fixture(scope="module")
def page(html: str) -> Reader:
    return Reader.of(html)


# -------------------------------------------------------------------------------------------------------------- numbers


@given(st.floats(-1e15, 1e15))
def test_a_number_is_written_to_four_digits(x: float) -> None:
    assert value(number(x)) == pytest.approx(x, rel=6e-4, abs=1e-300)


@pytest.mark.parametrize(
    ("mean", "error", "text"),
    [
        (0.64853, 0.21345, "0.65 ± 0.21"),
        (-1234.5, 12.3, "−1,234 ± 12"),
        (1234567.0, 12345.0, "1,234,567 ± 12,345"),
        (2.0, 0.0, "2 ± 0"),
        (2.0, None, "2"),
        (1e-12, 1e-13, "1e−12 ± 1e−13"),
    ],
)
def test_a_mean_is_written_to_the_place_of_its_error(mean: float, error: float | None, text: str) -> None:
    assert with_error(mean, error) == text


def test_numbers_look_like_numbers() -> None:
    found = [number(each) for each in (None, 3, 1234567, 0.5, -0.25, 1e-5, 123456.0, 2.0, True, 1e-9)]
    assert found == ["–", "3", "1,234,567", "0.5", "−0.25", "0.00001", "123,456", "2", "yes", "1e−09"]


def test_scores_are_those_of_the_record(run: Path, page: Reader) -> None:
    rows = json.loads((run / "evaluation.json").read_text())["rows"]
    head, *body = page.tables["Scores by number of steps"]
    keys = {
        "Fréchet distance (% of variance)": "fd_percent",
        "Fréchet distance": "fd",
        "kernel distance": "kid",
        "accuracy": "conditional_accuracy",
        "recall": "recall",
        "coverage": "coverage",
        "precision": "precision",
        "N": "n",
    }
    assert head[1:] == list(keys)
    assert [row[0] for row in body] == list(rows)
    for name, *found in body:
        assert [value(cell) for cell in found] == pytest.approx([rows[name][key] for key in keys.values()], rel=6e-4)


def test_curves_have_the_numbers_of_the_record(run: Path, page: Reader) -> None:
    record = [json.loads(text) for text in (run / "stats.jsonl").read_text().splitlines()]
    for caption, key in (("Velocity error", "velocity_error"), ("Norm of the gradient", "grad_norm")):
        head, *body = page.tables[f"{caption}: the numbers"]
        assert head[0] == "images seen"
        assert [value(place) for place, _ in body] == [row["images"] for row in record]
        assert [value(cell) for _, cell in body] == pytest.approx([row[key] for row in record], rel=6e-4)


@pytest.mark.parametrize(
    ("quantity", "title"), [("tangent_mean", "Size of du/dt by (t, r)"), ("error_by_cell", "Error by (t, r)")]
)
def test_maps_of_cells_are_the_mean_of_the_last_quarter(quantity: str, title: str, run: Path, page: Reader) -> None:
    record = [json.loads(text) for text in (run / "stats.jsonl").read_text().splitlines()]
    last = [row[quantity] for row in record[-3:]]  # of 12
    head, *body = page.tables[f"{title}: the numbers"]
    assert head[1:] == ["0 to 0.25", "0.25 to 0.5", "0.5 to 0.75", "0.75 to 1"]  # t
    for j, (_, *row) in enumerate(body):  # r
        for i, cell in enumerate(row):
            if j > i:
                assert cell == "–"
            else:
                assert value(cell) == pytest.approx(sum(grid[i][j] for grid in last) / 3, rel=6e-4)


def test_time_is_that_of_the_images_at_their_speeds(run: Path, page: Reader) -> None:
    record = [json.loads(text) for text in (run / "stats.jsonl").read_text().splitlines()]
    seconds = sum(64 / row["images_per_second"] for row in record)
    found = dict(page.tables["What it took"])
    assert value(found["images a second"]) == round(768 / seconds)
    assert found["time of these steps"] == f"{seconds:.0f} s"
    with_sizes = [np.prod(shape) for shape in _shapes(run)]
    assert value(found["parameters"]) == sum(with_sizes)


def _shapes(run: Path) -> list[Any]:
    from safetensors.torch import load_file

    return [tuple(tensor.shape) for tensor in load_file(run / "model.safetensors").values()]


def test_the_difference_is_that_to_the_recipe(run: Path, page: Reader) -> None:
    config = load_run(run / "run.yaml")
    expected = [row for row in difference(recipe_named("esc"), config.recipe) if row[0] != "name"]
    found = page.tables["Settings that differ from the recipe esc"][1:]
    assert [row[0] for row in found] == [row[0] for row in expected]
    assert ["objective.times.ratio", "0.25", "0.5"] in found


def test_the_run_file_in_the_page_is_the_run(run: Path, page: Reader) -> None:
    text = next(code for code in page.codes if code.startswith("recipe:"))
    assert from_plain(RunConfig, yaml.safe_load(text)) == load_run(run / "run.yaml")
    assert "shortflow train run.yaml --out out/again" in page.text
    assert "shortflow evaluate out/again --steps 1,2,4,16 --n 500 --seed 3" in page.text


def test_sums_are_those_of_the_files(run: Path, page: Reader) -> None:
    head, *body = page.tables["Files that this page was made of"]
    assert head == ["file", "bytes", "SHA-256"]
    assert [row[0] for row in body] == ["run.yaml", "model.safetensors", "stats.jsonl", "evaluation.json"]
    for name, size, total in body:
        content = (run / name).read_bytes()
        assert (value(size), total) == (len(content), hashlib.sha256(content).hexdigest())


# -------------------------------------------------------------------------------------------------------------- figures


def marks(svg: str) -> list[tuple[float, float]]:
    """The places of the markers of a figure, in its units."""
    found = re.findall(r'<use xlink:href="#[^"]+" x="([\d.]+)" y="([\d.]+)" style="fill: var\(--s\d\)', svg)
    return [(float(x), float(y)) for x, y in found]


def affine(places: list[float], values: list[float]) -> float:
    """How far places are from an affine function of values, at most, in units of a figure."""
    slope, offset = np.polyfit(values, places, 1)
    return float(np.abs(np.polyval((slope, offset), values) - places).max())


def test_points_stand_where_their_numbers_say() -> None:
    """Steps on a logarithmic axis; half an error bar is a standard error."""
    x, y, error = [1, 2, 4, 8, 128], [3.0, 2.5, 2.75, 2.0, 2.25], [0.25, 0.1, 0.2, 0.3, 0.15]
    chart = lines("f", "Title", [Series(name="a", x=x, y=y, error=error)], x="steps", y="fd", log_x=True, log_y=False)
    found = marks(chart.svg)
    points = found[-len(x) :] if len(found) > len(x) else found
    assert affine([a for a, _ in points], [math.log(each) for each in x]) < 0.05
    assert affine([b for _, b in points], y) < 0.05
    per_unit = (points[0][1] - points[3][1]) / (y[3] - y[0])  # of the figure, upwards
    bars = re.findall(r'<path d="M ([\d.]+) ([\d.]+)\s+L ([\d.]+) ([\d.]+)\s*"[^>]*stroke: var\(--s1\)', chart.svg)
    heights = [abs(float(b[1]) - float(b[3])) for b in bars if b[0] == b[2]]
    assert heights == pytest.approx([2 * each * abs(per_unit) for each in error], abs=0.1)


def test_a_ranking_has_its_rows_in_order() -> None:
    chart = ranking("f", "Title", [("a", 1.0, 0.5), ("b", 2.0, None), ("c", 4.0, 0.25)], x="fd")
    assert chart.numbers is not None
    assert chart.numbers.rows == [["a", "1.00 ± 0.50"], ["b", "2"], ["c", "4.00 ± 0.25"]]
    assert "a 1.00 ± 0.50; b 2; c 4.00 ± 0.25" in chart.svg


def test_a_cell_is_drawn_over_its_times() -> None:
    """The number of the cell t ∈ [½, 1], r ∈ [0, ½] stands in the lower right."""
    chart = cells(
        "f", "Title", [[1.0, None], [2.0, 4.0]], x="t", y="r", edges_x=[0, 0.5, 1], edges_y=[0, 0.5, 1], unit="u"
    )
    places = {
        text: (float(x), float(y))
        for x, y, text in re.findall(r'<text[^>]*?x="([\d.]+)" y="([\d.]+)"[^>]*>([\d.]+)</text>', chart.svg)
    }
    assert places["2"][0] > places["1"][0] + 50
    assert places["4"][1] < places["2"][1] - 50  # up is smaller


def test_texts_of_figures_stay_texts() -> None:
    """Also those that look like formulas or tags; long numbers in them are not cut."""
    chart = lines("f", "a < b", [Series(name="$x$ <b>", x=[1.0, 2.0], y=[0.99985, 0.99995])], x="$t$", y="<i>&")
    assert "&lt;i&gt;&amp;" in chart.svg
    assert "$t$" in chart.svg
    assert "0.99985" in chart.svg or "0.9999" in chart.svg
    assert '<title id="f-title">a &lt; b</title>' in chart.svg


# ------------------------------------------------------------------------------------------------ what a page must have


def test_figures_without_a_unit_are_called_by_their_names(tmp_path: Path) -> None:
    """At the axis of a curve, and in the words on a map."""
    d = Diagnosis(kind="run", settings={})
    d.curve("largest_weight", [0.1, 0.5, 0.9], [0.9, 0.5, 0.1], "largest posterior weight of one data point")
    d.curve("velocity_variance/told", [0.1, 0.5], [0.9, 0.5], "variance", "per dimension")
    d.map("noise_to_signal", [0.5, 0.9], [0.0], {(0, 0): 2.0, (1, 0): 3.0}, "variance of the target, over the signal")
    d.write(tmp_path / "d.json")
    html = report_page([tmp_path / "d.json"])
    written = re.findall(r"<text[^>]*>([^<]+)</text>", html)
    assert {"largest weight", "per dimension"} <= set(written)
    assert "value" not in written
    assert "noise to signal over t and r, from 2 to 3." in html


def in_order(page: Reader) -> None:
    """Headings without gaps, names that are unique, links and labels that lead somewhere, captions, scopes, texts."""
    levels = [level for level, _ in page.headings]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b <= a + 1 for a, b in itertools.pairwise(levels))
    assert all(text.strip() for _, text in page.headings)
    assert len(set(page.ids)) == len(page.ids)
    assert {link.removeprefix("#") for link in page.links} <= set(page.ids)
    assert set(page.references) <= set(page.ids)
    assert all(image["alt"] for image in page.images)
    assert all(str(image["src"]).startswith("data:image/png;base64,") for image in page.images)
    assert set(page.scopes) <= {"col", "row"}
    assert "script" not in page.tags
    assert "link" not in page.tags


def test_a_page_is_in_order_and_names_nothing_outside(html: str, page: Reader) -> None:
    in_order(page)
    assert len(page.links) == len([1 for level, _ in page.headings if level == 2]) + 1
    assert not re.search(r'(?:src|href)="(?!data:|#)', html)
    assert "url(http" not in html
    assert "@import" not in html
    assert '<meta name="viewport"' in html
    assert "default-src 'none'" in html


def test_what_files_say_is_never_markup(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>\"'&$x_1$"
    run = made_run(tmp_path / "a&b <i>")
    plain = yaml.safe_load((run / "run.yaml").read_text())
    plain["recipe"]["title"] = evil
    (run / "run.yaml").write_text(yaml.safe_dump(plain))
    record = json.loads((run / "evaluation.json").read_text())
    record["rows"] = {evil if name.startswith("real") else name: row for name, row in record["rows"].items()}
    record["grid"] = evil
    (run / "evaluation.json").write_text(json.dumps(record))
    with (run / "stats.jsonl").open("a") as file:
        file.write(json.dumps({"step": 100, "images": 9999, evil: 1.0}) + "\n")
        file.write(json.dumps({"step": 101, "images": 10999, evil: 2.0}) + "\n")
    diagnosis = json.loads(made_diagnosis(run / "diagnosis.json", "run").read_text())
    diagnosis["curves"] = {evil: {**diagnosis["curves"]["active_fraction"], "label": evil, "unit": evil}}
    diagnosis["advice"] = [{"text": evil, "evidence": evil}]
    (run / "diagnosis.json").write_text(json.dumps(diagnosis))
    html = report_page([run], title=evil)
    page = Reader.of(html)
    in_order(page)
    assert "<script" not in html
    assert page.headings[0][1] == evil
    assert page.tables["Advice, and what it rests on"][1] == [evil, evil]


# ------------------------------------------------------------------------------------ parts of runs, and several runs


@pytest.mark.usefixtures("undrawn")
def test_a_run_in_the_middle_of_training(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run", lines=3, scored=False)
    (run / "model.safetensors").unlink()
    with (run / "stats.jsonl").open("a") as file:
        file.write('{"step": 8, "im')
    lock = RunLock(run)
    page = Reader.of(report_page([run]))
    lock.release()
    in_order(page)
    assert "the run is still going on, 192 of 1,280 images seen (15 %)" in page.text
    assert "It has not been scored" in page.text
    assert page.notes == ""
    assert "Velocity error: the numbers" in page.tables


@pytest.mark.usefixtures("undrawn")
def test_a_run_that_has_just_begun(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run", scored=False)
    for name in ("model.safetensors", "stats.jsonl"):
        (run / name).unlink()
    in_order(page := Reader.of(report_page([run])))
    assert "was stopped, 0 of 1,280 images" in page.text


@pytest.mark.usefixtures("undrawn")
def test_a_model_alone(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    for path in run.iterdir():
        if path.is_file() and path.name != "model.safetensors":
            path.unlink()
    page = Reader.of(report_page([run / "model.safetensors"]))
    in_order(page)
    assert page.headings[0][1] == "esc on digits"
    assert any(code.startswith("recipe:") for code in page.codes)


@pytest.mark.usefixtures("few", "undrawn")
def test_scores_and_pictures_of_an_earlier_model_are_said_to_be(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run", "flow-matching", "checkerboard")
    illustrate(run, steps=[1])
    assert "of the model after" not in Reader.of(report_page([run])).text
    other = made_run(tmp_path / "other", "flow-matching", "checkerboard", lines=20)
    (run / "model.safetensors").write_bytes((other / "model.safetensors").read_bytes())
    page = Reader.of(report_page([run]))
    assert "The scores are of the model after 768 images; the model that is there has seen 1,280." in page.text
    assert "The pictures were drawn by the model as it was after 768 images." in page.notes


@pytest.mark.usefixtures("undrawn")
def test_a_method_of_ones_own_and_the_nearest_published_setting(tmp_path: Path) -> None:
    from shortflow.recipes import SETTINGS

    name = next(name for name in SETTINGS if len(SETTINGS[name]) > 1)
    from shortflow.report.recipes import base_of

    for setting in SETTINGS[name]:
        found = base_of(recipe_named(f"{name}/{setting}"))
        assert found is not None
        assert not difference(found[1], recipe_named(f"{name}/{setting}"))
    run = made_run(tmp_path / "run", settings=("recipe.name=mine",))
    assert "mine is no recipe of the library" in Reader.of(report_page([run])).text


@pytest.mark.usefixtures("undrawn")
def test_runs_side_by_side(tmp_path: Path) -> None:
    runs = [made_run(tmp_path / name, recipe, seed=k) for k, (name, recipe) in enumerate((("a", "esc"), ("b", "imm")))]
    page = Reader.of(report_page(runs))
    in_order(page)
    records = [json.loads((run / "evaluation.json").read_text())["rows"] for run in runs]
    head, *body = page.tables["Fréchet distance (% of variance) against steps: the numbers"]
    assert head == ["steps of sampling", "a", "b"]
    for row, steps in zip(body, ("1 step", "2 steps", "4 steps", "16 steps"), strict=False):
        assert [value(cell) for cell in row[1:]] == pytest.approx(
            [record[steps]["fd_percent"] for record in records], rel=6e-4
        )
    order = sorted(("a", "b"), key=lambda name: records["ab".index(name)]["1 step"]["fd_percent"])
    assert re.search(rf"In 1 step, .*: {order[0]} [\d.]+; {order[1]} [\d.]+\.", page.text)
    assert ["recipe.name", "esc", "imm"] in page.tables["Settings that differ"]
    assert "no comparison" not in page.notes


def fid(images: int = 768, n: int = 5000) -> dict[str, Any]:
    """A record of `evaluate --features inception`."""
    row = {"n": n, "name": "FID-5k", "spatial_name": "sFID-5k", "distance": 12.5, "spatial_distance": 7.25}
    known = {"name": "inception-2015-12-05", "weights": "ef" * 32, "published": True}
    return {
        "made": {"images_seen": images, "seed": 4, "guidance": 1.5, "window": None, "precision": "bf16"},
        "features": known,
        "reference": {"source": "./my photos", "n": 1297, "sha256": "ab" * 32},
        "resolution": [8, 8],
        "resize": "center_crop to 8",
        "rows": {"1 step": row | {"recall": 0.5}, "2 steps": row | {"distance": 9.75}},
    }


@pytest.mark.usefixtures("undrawn")
def test_every_record_of_scores_is_shown_under_its_own_names(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run", scored=False)
    (run / "evaluation-inception-2015-12-05.json").write_text(json.dumps(fid()))
    page = Reader.of(report_page([run]))
    in_order(page)
    assert "not been scored" not in page.text
    assert "FID-5k in 1 step: 12.5; at best 9.75, in 2 steps." in page.text
    assert page.tables["Scores by number of steps"] == [
        ["", "FID-5k", "sFID-5k", "recall", "N"],
        ["1 step", "12.5", "7.25", "0.5", "5,000"],
        ["2 steps", "9.75", "7.25", "–", "5,000"],
    ]
    assert "features inception-2015-12-05, weights efefefefefefefef…; reference ./my photos, 1,297 images" in page.text
    assert "model after images 768; seed 4; guidance 1.5; precision bf16" in page.text
    made = (
        "shortflow evaluate out/again --steps 1,2 --n 5000 --features inception --reference './my photos' "
        "--resolution 8 --seed 4 --guidance 1.5 --bf16"
    )
    assert made in page.codes[-1].splitlines()
    files = [row[0] for row in page.tables["Files that this page was made of"][1:]]
    assert "evaluation-inception-2015-12-05.json" in files

    other = made_run(tmp_path / "other")
    (other / "evaluation-inception-2015-12-05.json").write_text(json.dumps(fid(images=700)))
    page = Reader.of(report_page([other / "evaluation-inception-2015-12-05.json"]))
    assert "The scores are of the model after 700 images" in page.text
    assert page.tables["Scores by number of steps, features of inception-2015-12-05"][1][1] == "12.5"
    assert page.tables["Scores by number of steps, features of the shipped classifier"][0][-1] == "N"
    # Beside each other, runs are compared by the record that all of them have.
    plain = made_run(tmp_path / "plain", seed=1)
    assert re.search(r"In 1 step, Fréchet distance \(% of variance\)", Reader.of(report_page([other, plain])).text)
    assert "In 1 step, FID-5k, lower is better: " in Reader.of(report_page([other, run])).text


@pytest.mark.usefixtures("undrawn")
def test_records_that_are_no_comparison_are_told(tmp_path: Path) -> None:
    a = made_run(tmp_path / "a")
    b = made_run(tmp_path / "b")
    record = json.loads((b / "evaluation.json").read_text())
    assert comparable([("a", record), ("b", record)]) == []
    for row in record["rows"].values():
        row["n"] = 1000
    (b / "evaluation.json").write_text(json.dumps(record))
    page = Reader.of(report_page([a, b]))
    assert (
        "The records differ in numbers of samples (a: 500; b: 1000), so their figures are no comparison." in page.notes
    )


# ---------------------------------------------------------------------------------------------------------- the command


@pytest.mark.usefixtures("few", "undrawn")
def test_the_command_draws_and_writes_one_file(tmp_path: Path, shortflow: Shortflow) -> None:
    run = made_run(tmp_path / "run", "esc", "checkerboard")
    out = tmp_path / "deep" / "page.html"
    said = shortflow("report", run, "--out", out)
    assert (said.code, said.err) == (0, "")
    assert said.out.splitlines()[-1].startswith(f"→ {out} (")
    assert (run / "pictures" / "pictures.json").is_file()
    before = (run / "pictures" / "pictures.json").stat().st_mtime_ns
    assert shortflow("report", run, "--out", out).code == 0  # they are those of this model
    assert (run / "pictures" / "pictures.json").stat().st_mtime_ns == before
    assert "One step beside many" in out.read_text()


@pytest.mark.usefixtures("undrawn")
def test_nothing_is_drawn_where_a_run_goes_on_or_nobody_wants_it(tmp_path: Path, shortflow: Shortflow) -> None:
    run = made_run(tmp_path / "run", "esc", "checkerboard")
    assert shortflow("report", run, "--no-draw", "--out", tmp_path / "a.html").code == 0
    lock = RunLock(run)
    assert shortflow("report", run, "--out", tmp_path / "b.html").code == 0
    lock.release()
    assert not (run / "pictures").exists()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nothing", "there is no .*nothing; give a run directory"),
        (".", r"holds no run \(run.yaml or model.safetensors\) and no study"),
        ("notes.txt", "is no run, study or diagnosis"),
        ("odd.json", "is no diagnosis that this version reads"),
        ("cut.json", "cut.json cannot be read, it is damaged or half written"),
    ],
)
def test_what_is_no_run_is_refused(name: str, says: str, tmp_path: Path, shortflow: Shortflow) -> None:
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "odd.json").write_text("[1]")
    (tmp_path / "cut.json").write_text('{"format": 1')
    said = shortflow("report", tmp_path / name, "--out", tmp_path / "page.html")
    assert said.code == 2
    assert re.search(says, said.err)
    assert not (tmp_path / "page.html").exists()


@pytest.mark.usefixtures("few", "undrawn")
def test_what_is_named_wrongly_is_said_before_anything_is_drawn(tmp_path: Path, shortflow: Shortflow) -> None:
    run = made_run(tmp_path / "run", "esc", "checkerboard")
    (tmp_path / "folder").mkdir()
    for arguments in ((run, "--out", tmp_path / "folder"), (run, tmp_path / "nothing", "--out", tmp_path / "a.html")):
        assert shortflow("report", *arguments).code == 2
        assert not (run / "pictures").exists()


def test_a_folder_is_no_page(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ShortflowError, match=r"is a folder; give the name of a file, such as .*page\.html"):
        write_report([run], tmp_path)


def test_a_missing_extra_is_named(run: Path, monkeypatch: pytest.MonkeyPatch, shortflow: Shortflow) -> None:
    import importlib.util

    known = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else known(name))
    said = shortflow("report", run)
    assert (said.code, said.err) == (
        2,
        "error: pages need matplotlib; install them with: pip install 'shortflow[report]'\n",
    )


def test_a_line_of_the_record_is_what_the_log_writes() -> None:
    """The made lines have no quantity that training does not have."""
    import random

    known = {"step", "images", "loss", "grad_norm", "velocity_error", "lr", "images_per_second"}
    maps = {"error_by_time", "error_by_cell", "tangent_mean"}
    assert set(line(1, random.Random(0))) == known | maps


def test_an_error_that_is_none_has_no_bar() -> None:
    """Negative ones, NaN and infinity are damage, and no reason to draw nothing."""
    series = Series(name="a", x=[1, 2, 3, 4], y=[1.0, 2.0, 3.0, 4.0], error=[-1.0, math.nan, math.inf, 0.5])
    chart = lines("f", "Title", [series], x="x", y="y", log_y=False)
    assert chart.numbers is not None
    assert [row[1] for row in chart.numbers.rows] == ["1", "2", "3", "4.00 ± 0.50"]
    assert ranking("f", "Title", [("a", 1.0, -1.0)], x="x").numbers is not None
