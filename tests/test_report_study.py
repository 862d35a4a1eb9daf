"""Pages of studies and diagnoses: means, errors and claims are those of the results; many variants stay readable."""

import itertools
import json
import random
import re
from pathlib import Path

import pytest

from commands import Shortflow
from reports import Reader, line, made_diagnosis, made_run, made_study, value
from shortflow.report import report_page
from shortflow.report.blocks import Chart
from shortflow.report.charts import Series, lines
from shortflow.report.drawable import run_directories
from shortflow.report.files import Study, opened
from shortflow.report.reading import read_header
from shortflow.report.seen import Seen
from test_report import in_order, marks, undrawn
from test_report_files import drawn

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
    return float(cell.split("± ")[1].removesuffix(" †"))


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
            mean, _, spread = cell.removesuffix(" †").partition(" ± ")
            assert len(mean.partition(".")[2]) == len(spread.partition(".")[2])


def test_what_is_claimed_is_what_the_results_claim(study: Path, page: Reader) -> None:
    """Every pair with the better one first, in the order of the ranking."""
    results = json.loads((study / "results.json").read_text())
    for sentence in results["verdict"]:
        assert sentence in page.text
    head, *body = page.tables["Differences in 1 step, Fréchet distance (% of variance)"]
    assert head == ["better in the mean", "than", "by, ± standard error", "seeds", "p", "p, adjusted", "significant"]
    known = {frozenset((row["a"], row["b"])): row for row in results["comparisons"]}
    assert len(body) == len(known)
    means = {r["variant"]: r["mean"] for r in results["rows"] if (r["steps"], r["metric"]) == (1, "fd_percent")}
    for row in body:
        found = known[frozenset(row[:2])]
        assert means[row[0]] < means[row[1]]
        assert value(row[2]) == pytest.approx(means[row[1]] - means[row[0]], abs=0.006)
        assert row[3:] == ["3", "0.03", "0.09", "yes" if found["significant"] else "no"]
    order = sorted(means, key=lambda name: means[name])
    assert [row[:2] for row in body] == [list(pair) for pair in itertools.combinations(order, 2)]
    assert "Not significant does not mean equal" in page.text


def test_the_best_of_a_column_is_bold_and_what_differs_from_it_has_a_sign(html: str, study: Path, page: Reader) -> None:
    results = json.loads((study / "results.json").read_text())
    table = page.tables["Fréchet distance (% of variance) by number of steps, mean ± standard error over seeds"]
    (pair,) = [{row["a"], row["b"]} for row in results["comparisons"] if row["significant"]]  # in 1 step
    best = table[1][0]
    for row in table[1:-1]:
        assert row[1].endswith("†") == (row[0] != best and {row[0], best} == pair)
        assert not any("†" in cell for cell in row[2:])
    for j in range(1, 5):
        column = [row[j] for row in table[1:-1]]
        least = min(column, key=value)
        assert [f"<strong>{cell}</strong>" in html for cell in column] == [cell == least for cell in column]


def test_the_first_screen_answers(study: Path, html: str) -> None:
    """Which is the best, by how much, whether that is more than chance, and at what cost."""
    facts = re.search(r'<dl class="facts">(.*?)</dl>', html, re.DOTALL)
    assert facts is not None
    said = re.sub(r"\s+", " ", re.sub("<[^>]+>", " ", facts[1]))
    results = json.loads((study / "results.json").read_text())
    means = {r["variant"]: r["mean"] for r in results["rows"] if (r["steps"], r["metric"]) == (1, "fd_percent")}
    best = min(means, key=lambda name: means[name])
    ahead = sum(row["significant"] for row in results["comparisons"] if best in (row["a"], row["b"]))
    assert f"significant {ahead} of 2 others differ significantly from {best}" in said
    assert f"cost 4,480 F × images of a run of {best}; the others 4,480 to 4,480" in said


@pytest.mark.usefixtures("undrawn")
def test_a_study_has_methods_run_files_and_sums(tmp_path: Path) -> None:
    """Of cells that are runs: what they do where they differ, what they change, and how to make them again."""
    study = made_study(tmp_path / "study", variants=2, failed=False)
    made_run(study / "cells/0/seed-0", "meanflow", lines=2)
    made_run(study / "cells/1/seed-0", "esc", lines=2, settings=("objective.times.ratio=0.5",))
    plan = (
        "format: 1\nstudy:\n  name: mine\n  variants:\n  - recipe: esc\n    teacher: null\n  vary: []\nkind: images\n"
    )
    (study / "study.yaml").write_text(plan)
    html = report_page([study])
    page = Reader.of(html)
    in_order(page)
    words = page.tables["The methods in words, where they differ"]
    assert words[0] == ["", "variant 0", "variant 1"]
    assert ["batches", "fills batches at random", "fills each group of rows from one class"] in words
    assert all(row[1] != row[2] for row in words[1:])
    changed = {row[0]: row[1:] for row in page.tables["What they change in the published recipes"][1:]}
    assert "objective.times.ratio: 0.25 → 0.5" in changed["variant 1"][1]
    assert changed["variant 1"][0].startswith("esc")
    assert any("ratio: 0.5" in code for code in page.codes)
    assert "name: mine\nvariants:\n- recipe: esc\n" in page.codes
    assert "shortflow compare study.yaml --out out/again" in page.text
    total = read_header(study / "cells/0/seed-0/model.safetensors")
    assert total is not None
    assert page.tables["Every run"][1][6] == str(total.total)[:12]


@pytest.mark.usefixtures("undrawn")
def test_curves_of_a_study_are_means_over_its_cells(tmp_path: Path) -> None:
    """A seed that has come less far is part of the mean as far as it has."""
    study = made_study(tmp_path / "study", variants=2, seeds=2)
    errors: dict[tuple[int, int], list[float]] = {}
    for k in range(2):
        for seed in range(2):
            draw = random.Random(10 * k + seed)
            rows = [line(step, draw) for step in range(1, 9 if seed else 5)]
            place = study / f"cells/{k}/seed-{seed}"
            place.mkdir(parents=True)
            (place / "stats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            for row in rows:
                errors.setdefault((k, row["images"]), []).append(row["velocity_error"])
    page = Reader.of(report_page([study]))
    head, *body = page.tables["Velocity error over images seen: the numbers"]
    assert [value(row[0]) for row in body] == [64 * step for step in range(1, 9)]
    for row in body:
        for name, cell in zip(head[1:], row[1:], strict=True):
            found = errors[int(name.split()[-1]), int(value(row[0]))]
            assert value(cell) == pytest.approx(sum(found) / len(found), rel=6e-4)
    assert "Loss over images seen: the numbers" in page.tables


@pytest.mark.usefixtures("undrawn")
def test_samples_of_a_study_stand_side_by_side(tmp_path: Path) -> None:
    study = made_study(tmp_path / "study", failed=False)
    page = Reader.of(report_page([study]))
    assert "No samples are drawn yet: shortflow report" in page.text
    for k in range(2):
        drawn(made_run(study / f"cells/{k}/seed-0", lines=2))
    page = Reader.of(report_page([study]))
    titles = [text for level, text in page.headings if level == 3 and text.startswith("Samples of")]
    assert sorted(titles) == ["Samples of variant 0", "Samples of variant 1"]
    assert sum("real images" in str(image["alt"]) for image in page.images) == 1  # once for all
    assert "Real data" in {text for level, text in page.headings if level == 3}
    assert "Not drawn: variant 2." in page.text


def test_few_variants_of_a_study_that_has_ended_are_drawn_unasked(tmp_path: Path) -> None:
    ended = made_study(tmp_path / "ended", variants=2, failed=False)
    assert run_directories(ended, None) == [ended / "cells/0/seed-0", ended / "cells/1/seed-0"]
    assert run_directories(ended, False) == []
    many = made_study(tmp_path / "many", variants=9, failed=False)
    assert run_directories(many, None) == []
    assert len(run_directories(many, True)) == 9
    results = json.loads((ended / "results.json").read_text())
    results["cells"][-1]["status"] = "running"
    (ended / "results.json").write_text(json.dumps(results))
    assert run_directories(ended, None) == []
    assert len(run_directories(ended, True)) == 2


def test_other_figures_stand_beside_those_of_real_data(study: Path, page: Reader) -> None:
    results = json.loads((study / "results.json").read_text())
    means = {r["variant"]: r["mean"] for r in results["rows"] if r["metric"] == "recall"}
    head, line = page.tables["Other figures in 1 step"]
    assert sorted(head[1:-1]) == sorted(means)
    assert head[-1] == "real (held out)"
    assert line[0] == "recall, higher is better"
    assert line[-1] == "0.97"
    for name, cell in zip(head[1:-1], line[1:-1], strict=True):
        assert value(cell) == pytest.approx(means[name], abs=6e-4)


def test_what_failed_is_said(page: Reader) -> None:
    assert "Of 10 cells 1 failed" in page.notes
    found = page.tables["Every run"]
    assert found[-1] == ["variant 0, seed 99", "failed", "–", "–", "–", "no memory", "–"]
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


def test_a_level_far_away_leaves_lines_their_room() -> None:
    """Lines between 30 and 33: a level that would squeeze them is named at the edge, and the axis is theirs."""

    def height(floor: float) -> tuple[float, str]:
        x = [1, 2, 4]
        values = [Series(name="a", x=x, y=[30.0, 31.0, 33.0]), Series(name="b", x=x, y=[30.5, 32, 32], place=1)]
        drawn = lines("x", "t", values, x="steps", y="fd", floor=("real", floor), log_x=True)
        places = [y for _, y in marks(str(drawn.svg))]
        return max(places) - min(places), str(drawn.svg)

    near, text = height(29.0)
    assert "real: " not in text.split("</desc>")[1]
    far, text = height(0.8)
    assert ">real: 0.8 ↓<" in text
    assert far > near  # which has room for the level, too
    beyond, text = height(900.0)
    assert ">real: 900 ↑<" in text
    assert beyond == pytest.approx(far, rel=0.1)


def test_an_axis_does_not_show_what_is_next_to_nothing() -> None:
    """Numerical zeros at 1e-32 would take the axis from values between 1e-4 and 1; twelve decades are shown."""
    zeros = lines("x", "t", [Series(name="a", x=[1, 2, 3], y=[1e-32, 1e-4, 1.0])], x="t", y="v")
    plain = lines("x", "t", [Series(name="a", x=[1, 2, 3], y=[1e-12, 1e-4, 1.0])], x="t", y="v")

    def gap(drawn: Chart) -> float:
        places = sorted(y for _, y in marks(str(drawn.svg)))
        return places[1] - places[0]

    assert gap(zeros) > 0.8 * gap(plain)
    assert "below the axis" in zeros.caption
    assert "below the axis" not in plain.caption


@pytest.mark.usefixtures("undrawn")
def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    paths = [made_run(tmp_path / name / "seed-0", lines=2) for name in ("esc", "meanflow")]
    page = Reader.of(report_page([*paths, made_run(tmp_path / "other", lines=2)]))
    titles = [text for level, text in page.headings if level == 2]
    assert titles[-3:] == ["esc/seed-0", "meanflow/seed-0", "other"]
    assert page.headings[0][1] == "esc/seed-0, meanflow/seed-0 and other"
    page = Reader.of(report_page([paths[0], paths[0]]))  # twice the same
    assert {"seed-0 (1)", "seed-0 (2)"} < {text for level, text in page.headings if level == 2}


@pytest.mark.usefixtures("undrawn")
def test_bars_of_some_variants_are_said_to_be_those(tmp_path: Path) -> None:
    study = made_study(tmp_path / "study", failed=False)
    results = json.loads((study / "results.json").read_text())
    for row in results["rows"]:
        if row["variant"] == "variant 1":
            row |= {"n": 1, "standard_error": None}
    (study / "results.json").write_text(json.dumps(results))
    page = Reader.of(report_page([study]))
    assert "Bars: one standard error over 3 seeds; a variant with one seed has none." in page.text


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
