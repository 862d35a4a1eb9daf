"""The measurements run, keep what they found when a part fails, and count what they say they count."""

import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks import kept, kernels, plugin, scaling, step
from benchmarks.gpu import attention, correct, runner, speed
from benchmarks.gpu.__main__ import main as gpu
from benchmarks.gpu.precision import matmuls
from benchmarks.gpu.runner import Context, Part, run_all
from benchmarks.gpu.waiting import waits
from benchmarks.measure import CPU, flops, peak_memory, ratios, seconds, timed
from benchmarks.subjects import QUICK, Subject

QUICKLY = Context(device=CPU, quick=True)


# ---------------------------------------------------------------------------------------------------------- instruments


def test_operations_are_counted_with_attention_on_every_device() -> None:
    """Fused attention on the processor was counted as nothing, which made F too small and every step too dear."""
    q = torch.randn(2, 3, 8, 4)
    assert flops(lambda: F.scaled_dot_product_attention(q, q, q)) == 2 * (2 * 2 * 3 * 8 * 8 * 4)


def test_rounds_go_through_all_runs_in_turn() -> None:
    order: list[str] = []
    times = timed({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=3, warmup=1)
    assert order == ["a", "b"] * 4
    assert [len(each) for each in times.values()] == [3, 3]


def test_a_ratio_is_the_median_of_those_of_the_rounds() -> None:
    """A machine that becomes four times slower changes no ratio."""
    found = ratios({"a": [1.0, 2.0, 4.0], "b": [2.0, 4.0, 8.0]}, "a")["b"]
    assert found == {"ratio": 2.0, "low": 2.0, "high": 2.0, "seconds": 4.0}
    assert ratios({"a": [1.0, 1.0], "b": [2.0, 4.0]}, "a")["b"] == pytest.approx(
        {"ratio": 3.0, "low": 2.5, "high": 3.5, "seconds": 3.0}
    )


def test_seconds_are_seconds() -> None:
    assert 0.02 <= seconds(lambda: time.sleep(0.02)) < 2


def test_peak_memory_is_what_is_held_at_once() -> None:
    def run() -> None:
        for _ in range(3):
            torch.empty(1000, dtype=torch.float64).fill_(0)

    assert peak_memory(run) == pytest.approx(8000, abs=64)


def test_precision_is_put_back_where_it_was() -> None:
    before = torch.get_float32_matmul_precision()
    with matmuls("bf16+tf32"):
        assert torch.get_float32_matmul_precision() == "high"
    assert torch.get_float32_matmul_precision() == before


# ------------------------------------------------------------------------------------------------------- the processor


def test_the_step_is_measured(tmp_path: Path) -> None:
    step.main(["--quick", "--no-compile", "--out", str(tmp_path / "step.json")])
    step.main(["--quick", "--only", "step,fixed step", "--out", str(tmp_path / "some.json")])
    some = json.loads((tmp_path / "some.json").read_text())["sizes"]["tiny"]["runs"]
    assert list(some) == ["step", "fixed step"]
    assert some["step"]["ratio"] == 1
    with pytest.raises(SystemExit):
        step.main(["--quick", "--only", "stepp", "--out", str(tmp_path / "some.json")])
    record = json.loads((tmp_path / "step.json").read_text())
    assert {"machine", "date", "commit", "command"} <= set(record)
    found = record["sizes"]["tiny"]
    runs = found["runs"]
    assert list(runs) == ["reference", "fused reference", "step", "flow matching", "forward"]
    assert found["gradient_difference"] < 1e-5
    assert 0 < found["shares"]["linear maps"] < 1 - found["shares"]["attention"] < 1
    # 2 of 8 rows with r < t, 1 hidden, whose passes are: 3 + 7/8 without class + 2/8 with + 2/8 for the tangent.
    assert runs["step"]["flops"] == pytest.approx(3 + 7 / 8 + 2 / 8 + 2 / 8, rel=0.05)
    assert runs["flow matching"]["flops"] == pytest.approx(3, rel=0.03)
    assert runs["forward"]["flops"] == 1
    assert 0 < runs["forward"]["memory"] < runs["step"]["memory"] < runs["reference"]["memory"]


def test_the_plug_in_velocity_is_measured(tmp_path: Path) -> None:
    plugin.main(["--quick", "--out", str(tmp_path / "plugin.json")])
    runs = json.loads((tmp_path / "plugin.json").read_text())["runs"]
    assert [row["rows"] for row in runs.values()] == [16, 16, 4]
    assert all(row["difference"] < 1e-5 for row in runs.values())
    assert runs["of a quarter of the rows"]["memory"] <= runs["matrix products"]["memory"] < runs["all pairs"]["memory"]


@pytest.mark.slow
def test_kept_memory_is_measured(tmp_path: Path) -> None:
    kept.main(["--quick", "--out", str(tmp_path / "kept.json")])
    ways = json.loads((tmp_path / "kept.json").read_text())["sizes"]["tiny"]
    assert next(iter(ways.values()))["ratio"] == 1
    for row in ways.values():
        assert row["seconds"] > 0
        assert row["largest"] > 2**26
        assert row["faults"] >= 0


def test_kernels_are_measured(tmp_path: Path) -> None:
    kernels.main(["--quick", "--threads", "1", "--out", str(tmp_path / "kernels.json")])
    (found,) = json.loads((tmp_path / "kernels.json").read_text())["kernels"].values()
    for passes in ("forward", "both"):
        assert found["1"][passes]["PyTorch's"]["ratio"] == 1
        assert found["1"][passes]["ours"]["seconds"] > 0


@pytest.mark.slow
def test_recipes_are_measured(tmp_path: Path) -> None:
    step.main(["--quick", "--recipes", "--out", str(tmp_path / "recipes.json")])
    found = json.loads((tmp_path / "recipes.json").read_text())["recipes"]
    assert set(found) == {"flow-matching", "esc"}
    for row in found.values():
        assert row["predicted"] == pytest.approx(row["measured"], rel=0.05)
    assert found["esc"]["memory"] > 0
    assert found["esc"]["measured"] > found["flow-matching"]["measured"]


@pytest.mark.slow
def test_operations_and_memory_grow_as_they_must(tmp_path: Path) -> None:
    scaling.main(["--quick", "--axes", "batch,depth", "--out", str(tmp_path / "scaling.json")])
    axes = json.loads((tmp_path / "scaling.json").read_text())["axes"]
    for name in ("step", "reference"):
        assert axes["batch"][name]["flops"]["exponent"] == pytest.approx(1, abs=0.1)  # 1 label of 4 is hidden, 1 of 8
        assert axes["batch"][name]["memory"]["exponent"] == pytest.approx(1, abs=0.1)
        assert 0.8 < axes["depth"][name]["flops"]["exponent"] < 1


def test_axes_change_one_number() -> None:
    base = scaling.BASE
    assert [scaling.at(base, "tokens", n).tokens for n in scaling.AXES["tokens"]] == list(scaling.AXES["tokens"])
    wide = scaling.at(base, "width", 768).config.dimensions
    assert (wide.width, wide.width // wide.heads) == (768, 64)
    assert scaling.at(base, "depth", 8).config.blocks == 8
    assert scaling.at(base, "batch", 64).tokens == base.tokens


@pytest.mark.slow
def test_two_processes_are_measured(tmp_path: Path) -> None:
    scaling.main(["--quick", "--axes", "processes", "--out", str(tmp_path / "scaling.json")])
    found = json.loads((tmp_path / "scaling.json").read_text())["processes"]
    assert found["gradient_difference"] < 1e-6
    assert found["single_difference"] > 1e-2
    assert found["runs"]["alone"]["ratio"] == 1
    assert all(size > 0 for size in found["memory"].values())


@pytest.mark.parametrize("command", [step.main, scaling.main, plugin.main, kept.main, kernels.main, gpu])
def test_a_quick_run_replaces_no_results(command: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command(["--quick"])
    assert "--out" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------- parts and budgets


def good(context: Context) -> dict[str, Any]:
    return {"seen": sorted(context.found)}


def bad(context: Context) -> dict[str, Any]:
    raise RuntimeError("out of luck")


def test_a_part_that_fails_is_reported_and_the_others_are_kept() -> None:
    saved: list[dict[str, Any]] = []
    parts = [Part("one", good), Part("two", bad), Part("three", good)]
    records = run_all(parts, Context(device=CPU), 60, lambda found: saved.append(json.loads(json.dumps(found))))
    assert [each["state"] for each in records.values()] == ["done", "failed", "done"]
    assert records["two"]["reason"] == "RuntimeError: out of luck"
    assert any("def bad" in line or "in bad" in line for line in records["two"]["where"])
    assert records["three"]["result"] == {"seen": ["one"]}
    assert [list(found) for found in saved] == [["one"], ["one", "two"], ["one", "two", "three"]]
    assert runner.faults(records) == ["two: RuntimeError: out of luck"]


def test_what_the_budget_does_not_reach_is_skipped_and_said() -> None:
    now = iter([0.0, 0.0, 5.0, 11.0, 12.0])
    parts = [Part(name, good) for name in ("one", "two", "three")]
    records = run_all(parts, Context(device=CPU), 10, lambda found: None, clock=lambda: next(now))
    assert [each["state"] for each in records.values()] == ["done", "skipped", "skipped"]
    assert records["two"]["reason"] == "the budget of 10 s was used up before it"
    assert runner.faults(records) == []


def test_a_part_that_runs_beyond_the_budget_is_stopped() -> None:
    def endless(context: Context) -> dict[str, Any]:
        while True:
            try:
                time.sleep(0.01)
            except Exception:
                continue

    began = time.monotonic()
    records = run_all([Part("one", endless), Part("two", good)], Context(device=CPU), 0.2, lambda found: None)
    assert [each["state"] for each in records.values()] == ["stopped", "skipped"]
    assert time.monotonic() - began < 5


def test_warnings_of_a_part_stand_in_its_record() -> None:
    def warn(context: Context) -> dict[str, Any]:
        import warnings

        warnings.warn("the network runs uncompiled", stacklevel=1)
        return {}

    records = run_all([Part("one", warn)], Context(device=CPU), 60, lambda found: None)
    assert records["one"]["warnings"] == ["the network runs uncompiled"]


def test_a_bound_that_is_not_kept_is_a_fault() -> None:
    checks = [correct.check("a", 2e-3, 1e-3), correct.check("b", 1e-3, 1e-3), correct.check("c", math.nan, 1.0)]
    assert runner.faults({"one": {"state": "done", "result": {"checks": checks}}}) == [
        "one: a is 2.0e-03, the bound is 1e-03",
        "one: c is nan, the bound is 1e+00",
    ]


# --------------------------------------------------------------------------------------------- the GPU's parts, without


def test_the_command_writes_its_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = ["ceiling", "dual pass", "plug-in", "B/2 bf16", "sampling"]
    arguments = ["--device", "cpu", "--quick", "--parts", ",".join(parts), "--out", str(tmp_path / "gpu.json")]
    assert gpu(arguments) == 0
    record = json.loads((tmp_path / "gpu.json").read_text())
    assert [record["parts"][name]["state"] for name in parts] == ["done"] * 5
    row = record["parts"]["B/2 bf16"]["result"]["runs"]["step"]
    assert row["images"] == pytest.approx(QUICK.batch / row["seconds"])
    assert 0 < row["share"] < 10
    assert "| B/2 bf16 | 8 | step | 4.39 |" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["gpu.json"]


def test_unknown_parts_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu(["--device", "cpu", "--parts", "celling", "--out", str(tmp_path / "gpu.json")])
    assert "ceiling" in capsys.readouterr().err


def test_numbers_are_right_on_the_processor() -> None:
    for part in (correct.dual_pass, correct.gradients):
        checks = part(QUICKLY)["checks"]
        assert [check["what"] for check in checks if not check["good"]] == []
        assert all(check["value"] > 0 for check in checks)  # rounding there is: something was compared


def test_a_wrong_tangent_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = correct.DualPass.keeping

    def wrong(self: Any, f: Any, x: Any, t: Any, v: Any) -> Any:
        value, tangent = right(self, f, x, t, v)
        return value, tangent * 1.1

    monkeypatch.setattr(correct.DualPass, "keeping", wrong)
    checks = correct.dual_pass(QUICKLY)["checks"]
    assert {check["what"].split()[0] for check in checks if not check["good"]} == {"tangent"}
    assert sum(not check["good"] for check in checks) == len(correct.VALUE)


def test_the_value_of_a_dual_pass_keeps_the_fused_kernel() -> None:
    found = attention.kernels(QUICKLY)
    assert [check["good"] for check in found["checks"]] == [True, True]
    for passes in found["modes"].values():
        assert passes["plain"]["operations"] == {"flash (processor)": 2}
        assert passes["dual"]["operations"]["flash (processor)"] == 2
        assert "flash (processor)" not in passes["torch.func.jvp"]["operations"]


def test_waits_are_counted_where_they_are_asked_for() -> None:
    x = torch.arange(6.0)

    def run() -> None:
        x.sum().item()
        x[x > 2].sum()
        x.nonzero()
        x[torch.tensor([1, 2])].sum()

    found = waits(run, CPU)
    assert found == {
        "asked": 3,
        "places": {f"elsewhere {name}": 1 for name in ("_local_scalar_dense", "index", "nonzero")},
        "warned": None,
    }
    step_of = waits(Subject(QUICK, ("step",)).steps()["step"], CPU)
    assert any(place.startswith(("draw.py", "rows.py")) and "nonzero" in place for place in step_of["places"])


def test_the_loop_and_what_waits_in_it() -> None:
    found = speed.waiting(QUICKLY)["of"]
    checks = {place for place in found["fixed step"]["places"] if place.startswith("nn/embeddings.py")}
    assert set(found["fixed step"]["places"]) == checks  # of times, and on the processor only
    assert 0 < found["flow matching"]["asked"] <= found["step"]["asked"] <= found["training loop"]["asked"]
    record = speed.loop(QUICKLY)
    assert record["images"] == pytest.approx(record["batch"] / record["seconds"])


def test_a_step_that_does_not_fit_is_named_and_the_others_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def loss(self: Subject, name: str, whole: Any = Subject.loss) -> torch.Tensor:
        if name == "reference":
            raise torch.OutOfMemoryError("too large")
        return whole(self, name)

    monkeypatch.setattr(Subject, "loss", loss)
    found = speed.steps("B/2", "fp32")(QUICKLY)
    assert found["out_of_memory"] == ["reference"]
    assert set(found["runs"]) == {"step", "flow matching", "forward"}


def test_a_network_that_gave_up_compiling_is_not_called_compiled() -> None:
    class Call:
        failed = True

    subject = Subject(QUICK, ("step", "compiled step"), backend="eager")
    network: nn.Module = subject.compiled["compiled step"].network
    network._compiled_call_impl = Call()  # type: ignore[assignment]
    with pytest.raises(RuntimeError, match="compiled step: the network runs uncompiled"):
        correct.compiling(subject)


@pytest.mark.slow
def test_compiled_networks_are_compared_and_measured(tmp_path: Path) -> None:
    """In a process of its own: what checks shapes in the tests cannot be traced."""
    parts = ["compiled networks", "B/2 bf16 compiled"]
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--quick", "--parts", ",".join(parts)]
    subprocess.run([*command, "--out", str(tmp_path / "gpu.json")], check=True, cwd=Path(__file__).parents[1])
    checked, timed = (json.loads((tmp_path / "gpu.json").read_text())["parts"][name]["result"] for name in parts)
    assert all(check["good"] for check in checked["checks"])
    assert all(each["graphs"] > 0 and each["breaks"] == 0 for each in checked["graphs"].values())
    assert timed["runs"]["compiled step"]["flops"] == timed["runs"]["step"]["flops"]
