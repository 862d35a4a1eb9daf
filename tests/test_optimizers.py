"""The algorithms by their formulas, states that go on bit for bit, and averages with other profiles."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from jaxtyping import TypeCheckError
from safetensors.torch import load_file
from torch import Tensor, nn

import tiny
from oracles import f64
from shortflow.errors import ShortflowError
from shortflow.flowmap import AverageVelocity, FlowMap
from shortflow.optimizer import Optimizer
from shortflow.paths import Linear
from shortflow.recipes import flow_matching
from shortflow.train import Average, TrainStep, fit, train
from shortflow.train.ema import averages_of, power_of
from shortflow.train.loop import build_optimizer
from shortflow.train.state import load_state, save_state

Algorithm = Literal["adamw", "radam", "adam"]
ALGORITHMS: tuple[Algorithm, ...] = ("adamw", "radam", "adam")
every_algorithm = pytest.mark.parametrize("algorithm", ALGORITHMS)


class Number(nn.Module):
    """A network of one weight."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(f64(value))

    def forward(self, x: Tensor, time: Tensor, second: Tensor | None = None, label: Tensor | None = None) -> Tensor:
        return self.weight * x


def number(value: float) -> TrainStep:
    return TrainStep(FlowMap(Number(value), Linear(), AverageVelocity()), flow_matching().objective)


# --------------------------------------------------------------------------------------------------------- algorithms


def by_hand(settings: Optimizer, weight: float, gradients: list[float]) -> list[float]:
    """The weight after each step, in plain numbers.

    m = β₁ m + (1 − β₁) g, v = β₂ v + (1 − β₂) g², both divided by 1 − β^k; the step is lr m/(√v + ε). RAdam
    (arXiv 1908.03265) multiplies it by r_k = √((ρ_k − 4)(ρ_k − 2)ρ/((ρ − 4)(ρ − 2)ρ_k)), ρ = 2/(1 − β₂) − 1,
    ρ_k = ρ − 2k β₂^k/(1 − β₂^k), and leaves √v out while ρ_k ≤ 5.
    """
    (b1, b2), lr, decay = settings.betas, settings.lr, settings.weight_decay
    m = v = 0.0
    found = []
    for k, g in enumerate(gradients, start=1):
        if settings.algorithm == "adamw":
            weight -= lr * decay * weight
        else:
            g += decay * weight
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        mean, root = m / (1 - b1**k), math.sqrt(v / (1 - b2**k))
        if settings.algorithm != "radam":
            weight -= lr * mean / (root + settings.eps)
        else:
            full = 2 / (1 - b2) - 1
            rho = full - 2 * k * b2**k / (1 - b2**k)
            if rho > 5:
                ratio = (rho - 4) * (rho - 2) * full / ((full - 4) * (full - 2) * rho)
                # torch adds ε to √v before the correction of the bias
                weight -= lr * mean * math.sqrt(ratio) * math.sqrt(1 - b2**k) / (math.sqrt(v) + settings.eps)
            else:
                weight -= lr * mean
        found.append(weight)
    return found


@every_algorithm
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_algorithms_are_their_formulas(algorithm: Algorithm, decay: float) -> None:
    """Twelve steps, which for RAdam are five without and seven with the second moment; ε large enough to be seen."""
    settings = Optimizer(algorithm=algorithm, lr=0.01, betas=(0.9, 0.95), eps=1e-2, weight_decay=decay)
    gradients = [0.3, -0.1, 0.5, 0.2, -0.4, 0.25, 0.1, 0.6, -0.3, 0.05, 0.2, -0.2]
    step, found = number(0.7), []
    optimizer = build_optimizer(step, settings)
    for gradient in gradients:
        step.flow.network.weight.grad = f64(gradient)
        optimizer.step()
        found.append(step.flow.network.weight.item())
    assert found == pytest.approx(by_hand(settings, 0.7, gradients), rel=1e-12)


@every_algorithm
def test_frozen_weights_are_left_out(algorithm: Algorithm) -> None:
    step = number(0.7)
    step.flow.network.frozen = nn.Parameter(f64(1.0), requires_grad=False)
    optimizer = build_optimizer(step, Optimizer(algorithm=algorithm))
    assert [len(group["params"]) for group in optimizer.param_groups] == [1]


@every_algorithm
def test_a_loaded_state_goes_on_bit_for_bit(tmp_path: Path, algorithm: Algorithm) -> None:
    """Five steps, saved, loaded into another network with its own history, three more: the run of eight steps."""
    recipe = flow_matching()
    settings = Optimizer(algorithm=algorithm, lr=1e-2, weight_decay=0.01, ema=0.9)
    batches, length = tiny.batches(recipe), tiny.settings(8)

    def run(seed: int) -> tuple[TrainStep, torch.optim.Optimizer, Average]:
        step = TrainStep(tiny.flow_map(recipe, seed=seed), recipe.objective)
        return step, build_optimizer(step, settings), Average(step.flow, 0.9, warm=True)

    def go(parts: tuple[TrainStep, torch.optim.Optimizer, Average], start: int, stop: int) -> list[float]:
        step, adamw, average = parts
        records = train(step, length, settings, batches, adamw=adamw, averages=(average,), start=start)
        return [next(records).loss for _ in range(start, stop)]

    def state(parts: tuple[TrainStep, torch.optim.Optimizer, Average]) -> dict[str, Tensor]:
        step, adamw, average = parts
        moments = adamw.state_dict()["state"]
        return {
            **{f"network.{name}": value for name, value in step.flow.state_dict().items()},
            **{f"average.{name}": value for name, value in average.module.state_dict().items()},
            **{f"{i}.{name}": value for i, entry in moments.items() for name, value in entry.items()},
        }

    whole, first, other = run(0), run(0), run(7)
    losses = go(whole, 0, 8)
    assert go(first, 0, 5) == losses[:5]
    modules = {"network": first[0].flow, "average": first[2].module}
    where = save_state(tmp_path, 5, modules, first[1], {}, 1)
    go(other, 0, 3)
    load_state(where, {"network": other[0].flow, "average": other[2].module}, other[1])
    assert go(other, 5, 8) == losses[5:]
    got, want = state(other), state(whole)
    assert got.keys() == want.keys()
    assert sum(name.endswith("exp_avg_sq") for name in want) == len(list(whole[0].parameters()))
    for name, value in want.items():
        assert got[name].dtype == value.dtype
        assert torch.equal(got[name], value), name


# ------------------------------------------------------------------------------------------------------------ averages


def test_power_profiles_have_their_published_exponents() -> None:
    """γ = 16.97 for 5 %, 6.94 for 10 % (EDM2, section 3.1); a plain mean for 1/√12."""
    assert power_of(0.05) == pytest.approx(16.97, abs=0.005)
    assert power_of(0.10) == pytest.approx(6.94, abs=0.005)
    assert power_of(12**-0.5) == pytest.approx(0, abs=1e-9)
    for length in (0.02, 0.075, 0.2):
        g = power_of(length)
        assert math.sqrt((g + 1) / ((g + 2) ** 2 * (g + 3))) == pytest.approx(length, rel=1e-9)


@pytest.mark.parametrize("length", [0.05, 0.1, 0.25])
def test_a_power_average_weights_the_steps_by_its_profile(length: float) -> None:
    """After n steps the weight of step j is proportional to j^γ up to O(1/n), with the standard deviation `length · n`.

    The network is the step's number itself, so that mean and variance of the weights are read off the averages.
    """
    n, flow = 2000, FlowMap(Number(1.0), Linear(), AverageVelocity())
    first, second = (Average(flow, length=length) for _ in range(2))
    for j in range(1, n + 1):
        for average, value in ((first, j / n), (second, (j / n) ** 2)):
            with torch.no_grad():
                flow.network.weight.fill_(value)
            average.update(flow, j - 1)
    mean, square = (average.module.network.weight.item() for average in (first, second))
    power = power_of(length)
    assert mean == pytest.approx((power + 1) / (power + 2), abs=5e-4)
    assert math.sqrt(square - mean**2) == pytest.approx(length, rel=5e-3)


def test_a_power_average_forgets_its_start_at_once() -> None:
    average = Average(FlowMap(Number(1.0), Linear(), AverageVelocity()), length=0.05)
    assert average.rate(0) == 0
    assert average.rate(999) == pytest.approx(1 - (power_of(0.05) + 1) / 1000, abs=2e-4)


def test_the_averages_of_a_run() -> None:
    flow = FlowMap(Number(1.0), Linear(), AverageVelocity())
    plain = averages_of(flow, Optimizer(ema=0.99, extra_ema=(0.9996, 0.99995)))
    assert list(plain) == ["average", "ema-0.9996", "ema-0.99995"]
    assert [average.rate(10**6) for average in plain.values()] == [0.99, 0.9996, 0.99995]
    assert all(average.rate(0) == 0.1 for average in plain.values())
    power = averages_of(flow, Optimizer(ema=0.99, ema_length=0.1))
    assert power["average"].rate(10**6) == Average(flow, length=0.1).rate(10**6)


def test_extra_averages_are_saved_and_go_on_bit_for_bit(tmp_path: Path) -> None:
    """Beside the model, with its header; the run resumed in the middle has the files of the run uninterrupted."""
    recipe, settings = flow_matching(), Optimizer(lr=1e-2, ema=0.2, extra_ema=(0.05, 0.9))
    names = ("model.safetensors", "model-ema-0.05.safetensors", "model-ema-0.9.safetensors")

    def start(name: str, seed: int = 0, save_every: int = 1000, **options: bool) -> list[int]:
        flow = tiny.flow_map(recipe, seed=seed)
        records = fit(
            tmp_path / name,
            flow,
            recipe.objective,
            tiny.batches(recipe),
            settings=tiny.settings(6, save_every=save_every),
            optimizer=settings,
            metadata={"recipe": recipe.name},
            **options,
        )
        seen = []
        for record in records:
            seen.append(record.step)
            if save_every == record.step:
                break
        return seen

    start("whole")
    assert start("parts", save_every=4) == [1, 2, 3, 4]
    assert start("parts", seed=9, resume=True) == [5, 6]
    for name in names:
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    weights = [load_file(str(tmp_path / "whole" / name))["network.last.weight"] for name in names]
    assert not any(torch.equal(weights[i], weights[j]) for i in range(3) for j in range(i))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Optimizer(algorithm="sgd"), "(?s)algorithm"),  # type: ignore[arg-type]
        (lambda: Optimizer(eps=0.0), r"optimizer.eps must be positive and finite, got 0.0"),
        (lambda: Optimizer(eps=math.inf), r"optimizer.eps must be positive and finite, got inf"),
        (lambda: Optimizer(ema_length=0.0), r"optimizer.ema_length must be in \(0, 0.2886\] or null, got 0.0"),
        (lambda: Optimizer(ema_length=0.3), r"optimizer.ema_length must be in \(0, 0.2886\] or null, got 0.3"),
        (
            lambda: Optimizer(extra_ema=(0.9, 1.0)),
            r"optimizer.extra_ema must be in \[0, 1\), each once, got \(0.9, 1.0\)",
        ),
        (
            lambda: Optimizer(extra_ema=(0.9, 0.9)),
            r"optimizer.extra_ema must be in \[0, 1\), each once, got \(0.9, 0.9\)",
        ),
    ],
)
def test_impossible_settings_are_refused(build: Callable[[], object], message: str) -> None:
    with pytest.raises((ShortflowError, TypeCheckError), match=message):
        build()


def test_the_defaults_are_those_of_before() -> None:
    assert replace(Optimizer(), lr=2e-4) == Optimizer(algorithm="adamw", lr=2e-4, eps=1e-8, extra_ema=())
    assert type(build_optimizer(number(1.0), Optimizer())) is torch.optim.AdamW
