"""Results as tables: a record becomes the text that stands here, and the page in the docs is what the records say."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from benchmarks import report, tables
from benchmarks.scaling import exponent

MACHINE = {"processor": "Abacus 3", "threads": 1, "cores": 2, "torch": "2.13.0"}
HEAD = {"command": "python -m benchmarks.step", "commit": "0123456789", "date": "2026-01-02", "machine": MACHINE}
ROW = {
    "flops": 4.4,
    "ratio": 0.5,
    "low": 0.48,
    "high": 0.53,
    "seconds": 0.25,
    "memory": 2**20,
    "step_memory": 3 * 2**20,
}
BASE = {"flops": 8.0, "ratio": 1.0, "low": 1.0, "high": 1.0, "seconds": 0.5, "memory": 4 * 2**20, "step_memory": 2**33}
STEP = {
    **HEAD,
    "sizes": {
        "S/2": {
            "network": "SiT of width 8",
            "batch": 4,
            "gradient_difference": 1.9e-7,
            "runs": {"reference": BASE, "step": ROW},
            "shares": {"linear maps": 0.6, "attention": 0.204},
        }
    },
}
STEP_TEXT = """\
| size | step | operations (F) | time / reference | activations | / reference | whole step |
|---|---|---:|---:|---:|---:|---:|
| S/2 | reference | 8.00 | 1.00 (1.00–1.00) | 4 MiB | 1.00 | 8192 MiB |
| S/2 | step | 4.40 | 0.50 (0.48–0.53) | 1 MiB | 0.25 | 3 MiB |

- S/2: SiT of width 8, batches of 4; gradients of the ESC steps differ from those of the reference by 1.9e-07 of their norm. Of the time of the step linear maps 60% and attention 20% (by profile).

`python -m benchmarks.step`, 2026-01-02, commit 0123456789: Abacus 3, 1 thread, torch 2.13.0."""  # noqa: E501


def test_a_step_is_told_row_by_row() -> None:
    assert tables.step(STEP) == STEP_TEXT


def test_a_compiled_step_is_told_beside_the_plain_one() -> None:
    size = STEP["sizes"]["S/2"]
    compiled = {**ROW, "plain": {"ratio": 0.8765, "low": 0.8701, "high": 0.88, "seconds": 0.2}}
    record = {**STEP, "sizes": {"S/2": {**size, "runs": {**size["runs"], "compiled step": compiled}}}}
    words = "Beside each other in the same round: the compiled step 0.876 (0.870–0.880) of the plain one."
    assert words in tables.step(record)


def test_a_busy_machine_is_named_as_such() -> None:
    busy = {**HEAD, "load": 1.5}
    assert tables.caption(busy).endswith("Others kept 1.5 of 2 cores at work meanwhile: times are to be repeated.")
    assert "Other work" not in tables.caption(HEAD)


def test_recipes_are_told_row_by_row() -> None:
    row = {**ROW, "predicted": 4.22, "measured": 4.231, "seconds": 0.0123}
    record = {**HEAD, "network": "SiT of width 8", "batch": 4, "recipes": {"esc": row}}
    assert tables.recipes(record).splitlines()[:3] == [
        "| recipe | passes (F) | operations (F) | time (F) | a step | memory |",
        "|---|---:|---:|---:|---:|---:|",
        "| `esc` | 4.22 | 4.23 | 0.50 (0.48–0.53) | 12.3 ms | 1 MiB |",
    ]


def fit(values: list[float], power: float, error: float | None) -> dict[str, Any]:
    return {"values": values, "exponent": power, "error": error}


SCALING = {
    **HEAD,
    "network": "SiT of width 8",
    "batch": 4,
    "axes": {
        "batch": {
            "points": [1, 2, 4],
            "step": {
                "time": fit([1e-5, 2e-5, 4e-5], 1.0, 0.02),
                "flops": fit([1, 2, 4], 1.0, 0.0),
                "memory": fit([3, 5, 9], 0.8, 0.041),
            },
            "reference": {
                "time": fit([1.0, 2.0, 4.0], 1.0, None),
                "flops": fit([1, 2, 4], 1.0, 0.0),
                "memory": fit([3, 5, 9], 0.8, 0.041),
            },
        }
    },
    "processes": {
        "count": 2,
        "rows": 8,
        "gradient_difference": 3e-8,
        "single_difference": 0.7,
        "memory": {"alone": 2**20, "exchanging": 2**21},
        "runs": {
            "alone": {"seconds": 0.5, "ratio": 1.0, "low": 1.0, "high": 1.0},
            "exchanging": {"seconds": 0.8, "ratio": 1.6, "low": 1.5, "high": 1.7},
        },
    },
}


def test_scaling_is_told_axis_by_axis_with_what_two_processes_do() -> None:
    lines = tables.scaling(SCALING).splitlines()
    assert "| batch | 1, 2, 4 | step | 1.00 ± 0.02 | 1.00 ± 0.00 | 0.80 ± 0.04 | 40 µs |" in lines
    assert "| batch | 1, 2, 4 | reference | 1.00 | 1.00 ± 0.00 | 0.80 ± 0.04 | 4 s |" in lines
    assert "| one process, the other waits | 1.00 (1.00–1.00) | 500 ms | 16 | 1 MiB |" in lines
    assert "| 2 processes, gradients averaged | 1.60 (1.50–1.70) | 800 ms | 20 | 2 MiB |" in lines


def part(result: dict[str, Any]) -> dict[str, Any]:
    return {"state": "done", "seconds": 1.0, "result": result}


GPU = {
    **HEAD,
    "command": "python -m benchmarks.gpu",
    "load": 9.0,
    "machine": {**MACHINE, "gpu": "Loom 1", "driver": "5.0", "cuda": "13.0"},
    "budget": 450.0,
    "parts": {
        "ceiling": part({"size": 8192, "per_second": {"fp32": 5e13, "bf16": 7e14, "bf16+tf32": 7e14}}),
        "gradients": part({"checks": [{"what": "gradient", "value": 2e-4, "bound": 1e-5, "good": False}]}),
        "B/2 bf16": part(
            {
                "network": "SiT of width 8",
                "batch": 64,
                "mode": "bf16",
                "out_of_memory": ["flow matching"],
                "runs": {
                    "reference": {**BASE, "images": 128.0, "share": 0.3},
                    "step": {**ROW, "images": 256.0, "share": None},
                },
            }
        ),
        "attention": part(
            {"modes": {"bf16": {"dual": {"operations": {"flash": 2, "softmax": 2}, "kernels": {"flash_fwd": 2}}}}}
        ),
        "waiting": part({"of": {"step": {"asked": 5, "warned": 4, "places": {"velocity.py:1 nonzero": 5}}}}),
        "sampling": part({"batch": 256, "runs": {"fp32, 1 step": {**ROW, "ratio": 1.02, "images": 1024.0}}}),
        "plug-in": part({"rows": 512, "runs": {"matrix products": {**ROW, "memory": 66 * 2**20}, "all pairs": {}}}),
        "loop": {"state": "failed", "seconds": 0.1, "reason": "RuntimeError: no\nluck", "where": []},
        "XL/2 fp32": {"state": "skipped", "reason": "the budget of 450 s was used up before it"},
    },
}
GPU_TEXT = """\
`python -m benchmarks.gpu`, 2026-01-02, commit 0123456789: Loom 1, driver 5.0, CUDA 13.0, torch 2.13.0.

Products of square matrices of 8192 rows reach 50 in fp32, 700 in bf16, in 10¹² operations a second.

| part | batch | step | operations (F) | time (F) | / reference | a step | images / s | of the ceiling | activations | / reference |
|---|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|
| B/2 bf16 | 64 | reference | 8.00 | 1.00 (1.00–1.00) | 1.00 | 500 ms | 128 | 30% | 4 MiB | 1.00 |
| B/2 bf16 | 64 | step | 4.40 | 0.50 (0.48–0.53) | 0.50 | 250 ms | 256 |  | 1 MiB | 0.25 |
| B/2 bf16 | 64 | flow matching |  |  |  |  |  |  | too large |  |

| mode | pass | attention | kernels |
|---|---|---|---|
| bf16 | dual | flash × 2, softmax × 2 | `flash_fwd` |

| of one step | asks for values | waits of the device | most often in |
|---|---:|---:|---|
| step | 5 | 4 | velocity.py:1 nonzero × 5 |

| of B/2 | batch | time | images / s | above the bare passes |
|---|---:|---:|---:|---:|
| sampling, fp32, 1 step | 256 | 250 ms | 1,024 | +2.0% |

| plug-in velocity | time | memory |
|---|---:|---:|
| matrix products, 512 images | 250 ms | 66 MiB |

| check | found | bound | kept |
|---|---:|---:|---|
| gradient | 2.0e-04 | 1e-05 | **no** |

- Failed: loop: RuntimeError: no luck

- Not reached within 450 s: XL/2 fp32."""  # noqa: E501


def test_a_run_on_a_gpu_is_told_with_what_failed_and_what_was_not_reached() -> None:
    assert tables.gpu(GPU) == GPU_TEXT


def test_plug_in_velocities_batches_and_samples_are_told_row_by_row() -> None:
    row = {"rows": 4, "difference": 2e-7, "memory": 2**22, "ratio": 0.02, "low": 0.01, "high": 0.03, "seconds": 0.002}
    record = {**HEAD, "batch": 4, "shape": [2, 3, 3], "runs": {"matrix products": row}}
    assert tables.plugin(record).splitlines()[2:5] == [
        "| matrix products | 4 | 0.02 (0.01–0.03) | 2 ms | 4 MiB | 2.0e-07 |",
        "",
        "- 4 images of 2×3×3; the error is that of float32 against float64.",
    ]
    own = {"shape": [1, 8, 8], "recipe": "esc", "batch": 128, "delivered": 4e6, "consumed": 1000.0}
    record = {**HEAD, "data": {"digits": {**own, "delivered_over_consumed": 4000.0, "trained_over_consumed": 0.991}}}
    assert tables.loader(record).splitlines()[2] == (
        "| digits | 1×8×8 | `esc` | 128 | 4,000,000 | 1,000 | 4,000 | 0.99 |"
    )
    row = {"ratio": 1.0123, "low": 1.0, "high": 1.02, "seconds": 0.4}
    record = {**HEAD, "networks": {"S/2": {"batch": 8, "batches": 4, "runs": {"samples": row}}}}
    assert tables.sampling(record).splitlines()[2] == "| S/2 | samples | 8 | 1.012 (1.000–1.020) | 100 ms |"


def test_ways_to_have_memory_are_told_row_by_row() -> None:
    row = {"ratio": 0.9, "low": 0.85, "high": 0.95, "seconds": 1.25, "faults": 41_999.6, "largest": 2**30}
    assert tables.kept({**HEAD, "sizes": {"S/2": {"kept": row}}}).splitlines()[2] == (
        "| S/2 | kept | 0.90 (0.85–0.95) | 1.25 s | 42,000 | 1024 MiB |"
    )


def test_what_trust_costs_is_told_in_steps_and_of_the_run() -> None:
    seconds = {"start": 0.5, "note": 0.001, "save": 0.25, "step": 0.125}
    shares = {"start": 0.002, "note": 0.008, "save": 0.0041}
    own = {"recipe": "esc", "data": "digits", "steps": 2000, "save_every": 500, "seconds": seconds, "shares": shares}
    assert tables.checks({**HEAD, "runs": [own]}).splitlines()[2:5] == [
        "| `esc` on digits, 2,000 steps | at the start: weights, gradients, derivative | 500 ms | 4 | 0.20% |",
        "| `esc` on digits, 2,000 steps | every step: its numbers | 1 ms | 0.008 | 0.80% |",
        "| `esc` on digits, 2,000 steps | every 500 steps: a state with its sums, on disk | 250 ms | 2 | 0.41% |",
    ]


# ------------------------------------------------------------------------------------------------------------- the page


PAGE = "before\n<!-- results: a -->\nold\n<!-- end: a -->\nbetween\n<!-- results: b -->\n<!-- end: b -->\nafter\n"


def test_the_page_is_what_the_results_say() -> None:
    """If this fails: python -m benchmarks.report."""
    page = report.PAGE.read_text()
    assert report.filled(page, report.blocks()) == page


def test_only_blocks_are_written_and_twice_is_once() -> None:
    texts = {"a": "| new |\n|---|", "b": "two \\1"}
    page = report.filled(PAGE, texts)
    assert page == (
        "before\n<!-- results: a -->\n| new |\n|---|\n<!-- end: a -->\n"
        "between\n<!-- results: b -->\ntwo \\1\n<!-- end: b -->\nafter\n"
    )
    assert report.filled(page, texts) == page


@pytest.mark.parametrize(
    ("page", "texts"),
    [
        (PAGE, {"a": ""}),  # a block that nothing fills
        (PAGE, {"a": "", "b": "", "c": ""}),  # a text without a block
        (PAGE + PAGE, {"a": "", "b": ""}),
        (PAGE.replace("<!-- end: a -->\n", ""), {"a": "", "b": ""}),
        ("<!-- end: a -->\n<!-- results: a -->\n", {"a": ""}),
    ],
)
def test_a_page_whose_blocks_are_not_those_of_the_results_is_refused(page: str, texts: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="block"):
        report.filled(page, texts)


def test_what_was_not_measured_is_said(tmp_path: Path) -> None:
    (tmp_path / "step-cpu.json").write_text(json.dumps(STEP))
    found = report.blocks(tmp_path)
    assert found["step-cpu"] == STEP_TEXT
    assert found["gpu"] == "Not measured."


# -------------------------------------------------------------------------------------------------------- the exponents


@pytest.mark.parametrize("power", [-0.5, 0.0, 1.0, 2.25])
def test_the_exponent_of_a_power_law_is_found(power: float) -> None:
    points = [8, 16, 32, 48]
    found = exponent(points, [3e-4 * point**power for point in points])
    assert found.value == pytest.approx(power, abs=1e-12)
    assert found.error == pytest.approx(0, abs=1e-12)


def test_the_standard_error_is_that_of_least_squares() -> None:
    """y = x + (0, δ, 0) in logarithms: slope 1, residuals (−1, 2, −1) δ/3, error √(Σ e²/(n − 2)/Σ(x − x̄)²)."""
    delta = 0.3
    found = exponent([1, math.e, math.e**2], [1, math.e ** (1 + delta), math.e**2])
    assert found.value == pytest.approx(1)
    assert found.error == pytest.approx(math.sqrt(6 * (delta / 3) ** 2 / 1 / 2))


def test_two_points_have_an_exponent_and_no_error() -> None:
    found = exponent([1, 4], [1, 2])
    assert found.value == pytest.approx(0.5)
    assert found.error is None


@pytest.mark.parametrize(("points", "values"), [([2, 2], [1, 2]), ([1], [1]), ([1, 2], [0, 1]), ([0, 2], [1, 1])])
def test_numbers_without_an_exponent_are_refused(points: list[float], values: list[float]) -> None:
    with pytest.raises(ValueError, match="exponent"):
        exponent(points, values)
