"""Results of made-up records: every aggregate by hand, the schema, and sentences that claim no more than they may."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from shortflow.errors import ConfigError
from shortflow.evaluate import write_record
from shortflow.studies import StudyPlan, cell_directory, planning, read_results, results, study_of, write_results
from shortflow.studies.cells import asked_of
from shortflow.studies.planning import Declared
from shortflow.studies.tables import table

FIGURES = {"a": [1.0, 1.2, 1.1], "b": [2.0, 2.25, 2.1], "c": [1.0, 1.3, 0.9]}


@pytest.fixture(autouse=True)
def free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "_cost", lambda recipe: 4.0)


def made(out: Path, figures: dict[str, list[float]] = FIGURES, **values: Any) -> StudyPlan:
    """A study on digits with these figures in 1 step by seed, and half of them in 4."""
    study = study_of(
        {
            "variants": [{"recipe": "flow-matching", "name": name} for name in figures],
            "budget": {"images": 1280},
            "seeds": len(next(iter(figures.values()))),
            "steps": [1, 4],
            "at": [0.5],
        }
        | values
    )
    plan = planning.begin(study, out, threads=1)
    for variant in plan.variants:
        for seed, value in enumerate(figures[variant.name]):

            def row(fd: float) -> dict[str, float]:
                return {"fd_percent": fd, "recall": 1 / fd, "density": 2 / fd, "n": 9}

            record = {
                "rows": {"1 step": row(value), "4 steps": row(value / 2), "real (held out)": row(0.1)},
                "asked": asked_of(plan, variant, seed),
                "curve": [
                    {"share": 0.5, "step": 5, "images": 640, "row": row(3 * value)},
                    {"share": 1.0, "step": 10, "images": 1280, "row": row(value)},
                ],
                "training_seconds": 2.0 + seed,
                "images": 1280,
                "impossible": {},
            }
            write_record(cell_directory(out, variant.name, seed) / "evaluation.json", record)
    return plan


def test_rows_are_means_with_their_errors(tmp_path: Path) -> None:
    found = results(made(tmp_path), tmp_path)
    for row in found["rows"]:
        values = [{1: x, 4: x / 2}[row["steps"]] for x in FIGURES[row["variant"]]]
        factor = {"recall": 1, "density": 2}.get(row["metric"])
        values = values if factor is None else [factor / x for x in values]
        assert row["mean"] == pytest.approx(sum(values) / 3)
        assert row["standard_error"] == pytest.approx(stats.sem(values))
        assert row["values"] == pytest.approx({str(i): x for i, x in enumerate(values)})
    assert len(found["rows"]) == 3 * 2 * 3


def test_comparisons_are_paired_and_adjusted(tmp_path: Path) -> None:
    found = results(made(tmp_path), tmp_path)
    for steps in (1, 4):
        family = {(row["a"], row["b"]): row for row in found["comparisons"] if row["steps"] == steps}
        assert list(family) == [("a", "b"), ("a", "c"), ("b", "c")]
        p = {}
        for (a, b), row in family.items():
            want = stats.ttest_rel(FIGURES[a], FIGURES[b])
            assert row["p_value"] == pytest.approx(want.pvalue, rel=1e-9)
            assert row["n"] == 3
            assert row["primary"] == (steps == 1)
            p[a, b] = row["p_value"]
        assert family["a", "b"]["p_adjusted"] == pytest.approx(3 * p["a", "b"])
        assert family["a", "b"]["significant"]
        assert family["a", "c"]["p_adjusted"] == pytest.approx(max(p["a", "c"], 2 * p["b", "c"]))
        assert not family["a", "c"]["significant"]


def test_one_that_all_are_set_against_makes_fewer_comparisons(tmp_path: Path) -> None:
    found = results(made(tmp_path, against="c"), tmp_path)
    primary = [row for row in found["comparisons"] if row["primary"]]
    assert [(row["a"], row["b"]) for row in primary] == [("a", "c"), ("b", "c")]
    text = " ".join(found["verdict"])
    assert "Significantly worse than c: b (by 1.050 ± " in text
    assert "No significant difference to c: a (0.033 ± " in text


def test_curves_are_means_at_shares(tmp_path: Path) -> None:
    curve = results(made(tmp_path), tmp_path)["curves"][0]
    assert (curve["variant"], curve["metric"], curve["steps"]) == ("a", "fd_percent", 1)
    half, whole = curve["points"]
    assert (half["share"], half["images"], half["forwards"]) == (0.5, 640, 2560)
    assert half["mean"] == pytest.approx(3.3)
    assert (whole["images"], whole["mean"]) == (1280, pytest.approx(1.1))


def test_the_verdict_says_what_is_best_by_how_much_and_what_is_chance(tmp_path: Path) -> None:
    """The differences of pairs: c − b is −1, −0.95, −1.2 (mean −1.05), c − a 0, 0.1, −0.2 (mean −0.033)."""
    found = results(made(tmp_path), tmp_path)
    pairs = {(row["a"], row["b"]): row for row in found["comparisons"] if row["primary"]}
    assert found["verdict"][:3] == [
        "Best of 3 in 1 step: c, fd_percent 1.067 ± 0.120 (Fréchet distance in % of the data's variance; smaller is "
        "better; mean of 3 seeds).",
        f"c is significantly better than b (by 1.050 ± {stats.sem([1, 0.95, 1.2]):.3f}, p = "
        f"{pairs['b', 'c']['p_adjusted']:.2g}); not than a (0.033 ± {stats.sem([0, 0.1, -0.2]):.3f}, p = "
        f"{pairs['a', 'c']['p_adjusted']:.2g}).",
        "2 of 3 differences are significant (3 seeds; paired t-tests, p adjusted by Holm's rule over 3 comparisons, α "
        "= 0.05).",
    ]


def test_the_verdict_says_the_cost_and_the_best_in_other_steps(tmp_path: Path) -> None:
    verdict = results(made(tmp_path), tmp_path)["verdict"]
    assert verdict[3:] == [
        "A run of c costs 5.12k F × images (4 F a step); the others 5.12k.",
        "Best in other numbers of steps: c in 4 steps, 0.533 ± 0.060 (significantly better than 1 of 2 others).",
        "Best cell of all: c in 4 steps, 0.533 ± 0.060.",
    ]


def test_a_best_one_that_is_significant_is_said_to_be(tmp_path: Path) -> None:
    figures = {"a": [1.0, 1.2, 1.1], "b": [2.0, 2.21, 2.1], "c": [3.0, 3.21, 3.1]}
    verdict = results(made(tmp_path, figures), tmp_path)["verdict"]
    assert re.sub(r" \(.*?\)", "", verdict[1]) == "a is significantly better than b and c."
    assert "b (by 1.003 ± 0.003, p < 0.0001)" in verdict[1]


def test_a_best_one_that_leads_by_chance_is_said_to(tmp_path: Path) -> None:
    figures = {"a": [1.0, 1.2, 1.1], "b": [2.0, 1.2, 0.4], "c": [2.0, 2.21, 2.1]}
    found = results(made(tmp_path, figures), tmp_path)
    assert [row["significant"] for row in found["comparisons"] if row["primary"]] == [False, True, False]
    assert re.sub(r" \(.*?\)", "", found["verdict"][1]) == "a is significantly better than c; not than b."
    figures = {"a": [1.0, 1.9, 0.2], "b": [2.0, 2.2, 1.9], "c": [3.0, 3.21, 2.9]}
    verdict = results(made(tmp_path / "two", figures), tmp_path / "two")["verdict"]
    assert verdict[1] == "That a is the best is not significant: it differs significantly from none of the others."
    assert verdict[2].startswith("1 of 3 differences is significant")


def test_many_variants_are_named_without_their_differences(tmp_path: Path) -> None:
    figures = {name: [1.0 + k, 1.2 + k, 1.11 + k] for k, name in enumerate("abcdefgh")}
    verdict = results(made(tmp_path, figures), tmp_path)["verdict"]
    assert verdict[1] == "a is significantly better than b, c, d, e, f, g and h."


@pytest.mark.parametrize(
    ("later", "said"),
    [
        ({"metric": "recall"}, "fd_percent in 1 step, all pairs, α = 0.05, was to decide"),
        ({"metric_steps": 4}, "fd_percent in 1 step, all pairs, α = 0.05, was to decide"),
        ({"against": "a"}, "fd_percent in 1 step, all pairs, α = 0.05, was to decide"),
        ({"alpha": 0.1}, "fd_percent in 1 step, all pairs, α = 0.05, was to decide"),
        ({"seeds": 5}, "There were 3 seeds when the first cells were scored, and more later"),
    ],
)
def test_what_was_chosen_after_a_look_is_said_to_be(tmp_path: Path, later: dict[str, Any], said: str) -> None:
    odd = ("beforehand", "when the first cells were scored")
    plan = made(tmp_path)
    assert not any(each in " ".join(results(plan, tmp_path)["verdict"]) for each in odd)
    figures = {name: [*values, *values][: later.get("seeds", 3)] for name, values in FIGURES.items()}
    plan = made(tmp_path, figures, **later)
    assert said in " ".join(results(plan, tmp_path)["verdict"])
    figures = {name: values[:3] for name, values in FIGURES.items()}
    plan = made(tmp_path, figures)  # as it was begun
    assert not any(each in " ".join(results(plan, tmp_path)["verdict"]) for each in odd)


def test_what_decides_may_change_before_anything_is_scored(tmp_path: Path) -> None:
    values = {"variants": ["flow-matching", "meanflow"], "budget": {"images": 1280}}
    planning.begin(study_of(values), tmp_path, threads=1)
    plan = planning.begin(study_of({**values, "metric": "recall"}), tmp_path, threads=1)
    assert plan.declared is not None
    assert (plan.declared.metric, plan.declared.metric_steps, plan.declared.seeds) == ("recall", 1, 3)


def test_nothing_significant_is_said_with_what_would_have_been(tmp_path: Path) -> None:
    figures = {"a": [1.0, 1.9, 1.1], "b": [1.5, 1.2, 1.7]}
    found = results(made(tmp_path, figures), tmp_path)
    (row,) = [row for row in found["comparisons"] if row["primary"]]
    least = stats.t.isf(0.025, 2) * row["standard_error"]
    assert found["verdict"][1] == (
        "With 3 seeds no difference is significant (paired t-tests, p adjusted by Holm's rule over 1 comparison, α = "
        f"0.05). At the spread that was found, one of about {least:.3f} would be."
    )
    assert "a in 4 steps" in found["verdict"][3]
    assert "(significantly better than none of 1 other)" in found["verdict"][3]


def test_one_seed_claims_nothing(tmp_path: Path) -> None:
    found = results(made(tmp_path, {"a": [1.0], "b": [2.0]}), tmp_path)
    assert all(row["p_value"] is None and not row["significant"] for row in found["comparisons"])
    assert all(row["standard_error"] is None for row in found["rows"])
    assert found["verdict"][1] == (
        "One seed has no error: which differences are more than chance cannot be said. Give more seeds."
    )


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    plan = made(tmp_path)
    (cell_directory(tmp_path, "b", 2) / "evaluation.json").unlink()
    write_record(cell_directory(tmp_path, "c", 0) / "failed.json", {"error": "no space\nanywhere"})
    (cell_directory(tmp_path, "c", 0) / "evaluation.json").unlink()
    found = results(plan, tmp_path)
    assert "1 of 9 cells failed and is left out: c seed 0." in found["verdict"]
    assert "1 of 9 cells are not made yet: all of this is preliminary." in found["verdict"]
    pairs = {(row["a"], row["b"]): row["n"] for row in found["comparisons"] if row["primary"]}
    assert pairs == {("a", "b"): 2, ("a", "c"): 2, ("b", "c"): 1}  # seeds that both have
    assert "- c seed 0: no space" in table(found)


def test_a_variant_that_leads_with_fewer_seeds_is_said_to(tmp_path: Path) -> None:
    """c has its best seed only: it leads, with one of three, and is tested beside nobody."""
    plan = made(tmp_path, {"a": [1.0, 1.2, 1.1], "b": [2.0, 2.25, 2.1], "c": [0.9, 1.9, 1.8]})
    for seed in (1, 2):
        (cell_directory(tmp_path, "c", seed) / "evaluation.json").unlink()
    verdict = results(plan, tmp_path)["verdict"]
    assert verdict[0].endswith("smaller is better; mean of 1 seed; others have 3).")
    assert "Not tested beside c, with one seed in common: a and b." in verdict
    assert "Best cell of all: c in 4 steps, 0.450 (1 seed of 3)." in verdict
    plan = made(tmp_path / "two", {"a": [1.0, 1.2, 1.1], "b": [2.0, 2.25, 2.1], "c": [1.4, 1.9, 1.8]})
    for seed in (1, 2):
        (cell_directory(tmp_path / "two", "c", seed) / "evaluation.json").unlink()
    verdict = results(plan, tmp_path / "two")["verdict"]
    assert verdict[0].endswith("mean of 3 seeds; others have fewer).")
    assert verdict[1].startswith("a is significantly better than b (by ")
    assert verdict[2] == "Not tested beside a, with one seed in common: c."


def test_nothing_at_all_is_no_table(tmp_path: Path) -> None:
    plan = made(tmp_path)
    for path in tmp_path.rglob("evaluation.json"):
        path.unlink()
    found = write_results(plan, tmp_path)
    assert found["verdict"][0] == "No cell is done yet, so nothing can be said."
    assert found["rows"] == found["comparisons"] == found["curves"] == []


def test_the_schema_is_the_documented_one(tmp_path: Path) -> None:
    """Every field of docs/compare.md is there, and no other."""
    found = write_results(made(tmp_path), tmp_path)
    assert read_results(tmp_path) == json.loads(json.dumps(found))
    page = (Path(__file__).parents[1] / "docs" / "compare.md").read_text()
    section = page.split("## The schema")[1].split("\n## ")[0]
    rows = {line.split("|")[1].strip(" `"): line.split("|", 2)[2] for line in section.splitlines() if line[:3] == "| `"}
    assert set(rows) == set(found)
    for name, example in (
        ("study", found["study"]),
        ("variants", found["variants"][0]),
        ("cells", found["cells"][0]),
        ("rows", found["rows"][0]),
        ("comparisons", found["comparisons"][0]),
        ("curves", found["curves"][0] | found["curves"][0]["points"][0]),
    ):
        said = {word for word in rows[name].replace("{", " ").replace("}", " ").split("`") if word.isidentifier()}
        assert set(example) <= said, name
        assert said - set(example) <= {"kind", "amount", "against", "times", "words", *Declared.__dataclass_fields__}, (
            name
        )


def test_the_table_marks_the_best_and_what_differs_from_it(tmp_path: Path) -> None:
    figures = {"a": [1.0, 1.2, 1.1], "b": [2.0, 2.21, 2.1]}
    text = table(results(made(tmp_path, figures), tmp_path))
    assert "| a | **1.100 ± 0.058** | **0.550 ± 0.029** |" in text
    assert "| b | 2.103 ± 0.061 † | 1.052 ± 0.030 † |" in text
    assert "| *real (held out)* | 0.100 |  |" in text
    assert "## fd_percent in 1 step over training" in text
    assert "3.300 ± 0.173 (640; 2.56k F)" in text
    _, other = text.split("## Other figures in 1 step")
    head, _, first = [line for line in other.splitlines() if line.startswith("|")][:3]
    assert head == "|  | recall | density |"
    recall, density = first.split(" | ")[1:]
    assert recall.startswith("**0.9")  # the larger the better
    assert density.startswith("1.8")  # around 1 is best, so none is marked


def test_the_table_says_what_differs_aspect_by_aspect(tmp_path: Path) -> None:
    values = {"variants": ["flow-matching", {"recipe": "meanflow", "name": "b"}]}
    text = table(results(made(tmp_path, {"flow-matching": [1.0, 1.2], "b": [2.0, 2.2]}, **values), tmp_path))
    said = text.split("## What differs from flow-matching")[1].splitlines()
    assert said[2] == "- b"
    assert all(re.match(r"  - [\w. ]+: .+ → .+[^.;]$", line) for line in said[3:7])
    assert any(line.startswith("  - target: ") for line in said)


def test_results_of_another_format_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_results(tmp_path)
    (tmp_path / "results.json").write_text('{"format": 2}')
    with pytest.raises(ConfigError, match="not of format 1"):
        read_results(tmp_path)


def test_runs_that_may_have_broken_down_are_named_and_counted(tmp_path: Path) -> None:
    plan = made(tmp_path)
    assert all(cell["breakdown"] is None for cell in results(plan, tmp_path)["cells"])
    for seed in (0, 2):
        errors = [0.25] * 10 + [1.0] * 10
        rows = [{"step": 5 * k, "images": 640 * k, "velocity_error": error} for k, error in enumerate(errors, 1)]
        text = "".join(f"{json.dumps(row)}\n" for row in rows)
        (cell_directory(tmp_path, "b", seed) / "stats.jsonl").write_text(text)
    found = results(plan, tmp_path)
    cell = next(cell for cell in found["cells"] if (cell["variant"], cell["seed"]) == ("b", 2))
    assert cell["breakdown"] == {"times": 4.0, "step": 60, "words": "velocity error 4.0 times its least, since step 60"}
    said = "velocity error 4.0 times its least, since step 60"
    assert (
        f"2 runs may have broken down and are among the figures: b seed 0 ({said}) and b seed 2 ({said})."
        in found["verdict"]
    )
