"""The time of a run before it starts: steps × passes × the time of a pass, by hand."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from shortflow import runs
from shortflow.config import RunConfig
from shortflow.data import DataSpec
from shortflow.estimate import SHARE
from shortflow.runs import pacing

SMALL = ["network={kind: MLPConfig, width: 16, depth: 1}", "train.batch=64", "train.group=16", "train.images=640"]


def planned(tmp_path: Path, *settings: str) -> tuple[RunConfig, DataSpec, runs.Plan]:
    run, dataset = runs.configure("meanflow", "gaussian", settings=[*SMALL, *settings])
    return run, DataSpec.fit(dataset, run.recipe.sigma_data), runs.plan(run, dataset, tmp_path / "run")


def test_a_pass_is_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """10 steps of 2 parts, each of as many F as a step costs, of half a second."""
    run, spec, plan = planned(tmp_path, "train.parts=2")
    rows: list[int] = []

    def timed(pass_: Callable[[], Any], device: torch.device) -> float:
        pass_()
        return 0.5

    class Watched(torch.nn.Module):
        def __init__(self, flow: Any) -> None:
            super().__init__()
            self.flow = flow

        def predict(self, x: torch.Tensor, *args: Any) -> torch.Tensor:
            assert not torch.is_grad_enabled()
            rows.append(len(x))
            return self.flow.predict(x, *args)

    build = pacing.build_flow
    monkeypatch.setattr(pacing, "build_flow", lambda *given: Watched(build(*given)))
    monkeypatch.setattr(pacing, "_timed", timed)
    monkeypatch.setattr(pacing, "_rate", lambda *given: 1e12)
    found = runs.pace(run, spec, plan, tmp_path / "run")
    assert rows == [32]
    assert found.seconds == pytest.approx(2 * plan.estimate.step * 0.5)
    assert found.hours == pytest.approx(10 * found.seconds / 3600)
    assert found.how == "an estimate, from a pass timed over 32 of 32 rows: F is 0.500 s"
    # On four processes that share the batch, each has a part of 16 rows.
    shared = replace(plan, processes=4, parts=4, rows=16)
    assert runs.pace(run, spec, shared, tmp_path / "run").seconds == pytest.approx(plan.estimate.step * 0.5)
    assert rows == [32, 16]


def test_as_many_rows_are_timed_as_take_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, spec, plan = planned(tmp_path)
    monkeypatch.setattr(pacing, "_rate", lambda *given: 10.5 * plan.estimate.forward / SHARE)
    monkeypatch.setattr(pacing, "_timed", lambda *given: 1.0)
    found = runs.pace(run, spec, plan, tmp_path / "run")
    assert found.seconds == pytest.approx(plan.estimate.step * 64 / 10)
    assert "timed over 10 of 64 rows: F is 6.400 s" in found.how


def test_a_network_that_is_too_large_to_be_timed_is_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, spec, plan = planned(tmp_path)
    monkeypatch.setattr(pacing, "build_flow", lambda *given: pytest.fail("it was made"))
    monkeypatch.setattr(pacing, "_rate", lambda *given: plan.estimate.forward)
    found = runs.pace(run, spec, plan, tmp_path / "run")
    assert found.seconds == pytest.approx(plan.estimate.step * 64 / SHARE)
    assert found.how.startswith("an estimate, from 40% of the ")


def test_a_run_that_goes_on_has_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, spec, plan = planned(tmp_path)
    monkeypatch.setattr(pacing, "read_status", lambda directory: SimpleNamespace(speed=32.0))
    found = runs.pace(run, spec, replace(plan, begun=4), tmp_path / "run")
    assert (found.seconds, found.hours, found.how) == (2.0, 6 * 2.0 / 3600, "as its log says")


def test_the_rate_is_that_of_a_product() -> None:
    """Between a processor of a watch and the largest machine there is."""
    assert 1e7 < pacing._rate(torch.device("cpu"), torch.float32) < 1e18
