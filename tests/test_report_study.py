"""Pages of studies and diagnoses: means, errors and claims are those of the results; many variants stay readable."""

import json
from pathlib import Path

import pytest

from commands import Shortflow
from reports import Reader, made_diagnosis, made_run, made_study, value
from shortflow.report import report_page
from shortflow.report.charts import Series
from shortflow.report.files import Study, opened
from shortflow.report.seen import Seen
from test_report import in_order, marks, undrawn

__all__ = ["undrawn"]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_study(tmp_path_factory.mktemp("studies") / "small")


@pytest.fixture(scope="module")
def html(study: Path) -> str:
    return report_page([study])


@pytest.fixture(scope="module")
def page(html: str) -> Reader:
    return Reader.of(html)


def errors(cell: str) -> float:
    return float(cell.split("± ")[1])


def test_means_and_errors_are_those_of_the_results(study: Path, page: Reader) -> None:
    results = json.loads((study / "results.json").read_text())
    known = {(r["variant"], r["steps"]): r for r in results["rows"] if r["metric"] == "fd_percent"}
    caption = "Fréchet distance (% of variance) by number of steps, mean ± standard error over seeds"
    head, *body = page.tables[caption]
    assert head[1:] == ["1 step", "2 steps", "4 steps", "8 steps"]
    order = sorted({name for name, _ in known}, key=lambda name: known[name, 1]["mean"])
    assert [row[0] for row in body] == [*order, "real (held out)"]
    for name, *found in body[:-1]:
        for cell, steps in zip(found, (1, 2, 4, 8), strict=True):
            error = known[name, steps]["standard_error"]
            assert value(cell) == pytest.approx(known[name, steps]["mean"], abs=0.06 * error)
            assert errors(cell) == pytest.approx(error, rel=6e-2)
            assert len(cell.split(" ± ")[0].partition(".")[2]) == len(cell.partition(" ± ")[2].partition(".")[2])


def test_what_is_claimed_is_what_the_results_claim(study: Path, page: Reader) -> None:
    results = json.loads((study / "results.json").read_text())
    for sentence in results["verdict"]:
        assert sentence in page.text
    head, *body = page.tables["Differences in 1 step, Fréchet distance (% of variance)"]
    assert head == ["", "difference ± standard error", "p", "p, adjusted", "significant"]
    for row, known in zip(body, results["comparisons"], strict=True):
        assert row[0] == f"{known['a']} − {known['b']}"
        assert value(row[1]) == pytest.approx(known["difference"], abs=0.006)
        assert row[2:] == ["0.03", "0.09", "yes" if known["significant"] else "no"]


def test_what_failed_is_said(page: Reader) -> None:
    assert "Of 10 cells 1 failed" in page.notes
    found = page.tables["Every run"]
    assert found[-1] == ["variant 0, seed 99", "failed", "–", "–", "–", "no memory"]
    assert len(found) == 1 + 10


def test_costs_are_counted(page: Reader) -> None:
    head, *body = page.tables["What the variants cost"]
    assert head[:5] == ["", "F a step", "images", "F × images", "time a run"]
    for row in body:
        assert (row[1], row[2], value(row[3])) == ("3.5", "1,280", 3.5 * 1280)
        assert row[4] == f"{30 + int(row[0][-1])} s"


def test_the_page_is_in_order(html: str, page: Reader) -> None:
    in_order(page)
    assert "shortflow compare --out" in page.text
    assert len(marks(html)) > 12


@pytest.mark.usefixtures("undrawn")
def test_many_variants_are_ranked_and_the_best_are_in_colour(tmp_path: Path) -> None:
    study = made_study(tmp_path / "many", variants=24)
    page = Reader.of(report_page([study]))
    in_order(page)
    results = json.loads((study / "results.json").read_text())
    means = {r["variant"]: r["mean"] for r in results["rows"] if (r["steps"], r["metric"]) == (1, "fd_percent")}
    ranked = page.tables["Fréchet distance (% of variance) in 1 step: the numbers"][1:]
    assert [row[0] for row in ranked[:-1]] == sorted(means, key=lambda name: means[name])
    found = opened(study)
    assert isinstance(found, Study)
    series = Seen.of(found).series("fd_percent")
    coloured = [one for one in series if one.place is not None]
    assert {one.name for one in coloured} == {row[0] for row in ranked[:6]}
    assert series[-1] == coloured[-1]  # the best is drawn last, above all others
    assert isinstance(coloured[-1], Series)
    assert coloured[-1].place == 0
    assert len(page.tables["Differences in 1 step, Fréchet distance (% of variance)"]) == 1 + 23
    assert "253 more pairs are in results.json" in page.text


@pytest.mark.usefixtures("undrawn")
def test_one_seed_has_no_errors(tmp_path: Path) -> None:
    page = Reader.of(report_page([made_study(tmp_path / "one", seeds=1, failed=False)]))
    assert "One seed each: there are no error bars." in page.text
    assert "Of 3 cells" not in page.notes


@pytest.mark.usefixtures("undrawn")
def test_a_study_beside_a_run_and_a_diagnosis(tmp_path: Path, study: Path) -> None:
    run = made_run(tmp_path / "run", lines=3)
    diagnosis = made_diagnosis(tmp_path / "digits.json")
    page = Reader.of(report_page([study, run, diagnosis]))
    in_order(page)
    assert [text for level, text in page.headings if level == 2] == ["small", "run", "digits"]
    assert ["Take class-consistent batches.", "active fraction 0.6 against 0.1"] in page.tables[
        "Advice, and what it rests on"
    ]
    assert page.tables["Rows with more than one neighbour: the numbers"][1:] == [
        ["0.1", "0.200 ± 0.010"],
        ["0.5", "0.600 ± 0.020"],
        ["0.9", "1"],
    ]
    assert ["Intrinsic dimension", "9.25"] in page.tables["Numbers"]


def test_results_of_another_format_are_refused(tmp_path: Path, shortflow: Shortflow) -> None:
    (tmp_path / "results.json").write_text('{"format": 7}')
    said = shortflow("report", tmp_path)
    assert said.code == 2
    assert "holds no results of a study that this version reads (format 1)" in said.err
