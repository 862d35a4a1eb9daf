"""Samplers that jump: push-forward, re-noise, and what lies between them."""

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from shortflow.errors import SamplerError, require
from shortflow.flowmap import FlowMap, LogStep
from shortflow.paths import Path
from shortflow.sample.grids import check_data_end, check_grid, noise_ratio, time_at
from shortflow.typing import Condition, expand

__all__ = ["Gamma", "PushForward", "ReNoise", "Restart", "Sampler", "default_sampler"]

Time = Float[Tensor, "b"]
State = Float[Tensor, "b ..."]
Noise = Float[Tensor, "n b ..."]
Label = Condition | None


def at(x: State, time: float) -> Time:
    """`time` for every row of x, in single precision at least."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    return torch.full((len(x),), time, dtype=dtype, device=x.device)


def start(flow: FlowMap, eps: State, time: float) -> State:
    """The noise end σ_t ε."""
    return expand(flow.path.sigma(at(eps, time)), eps) * eps


def _jump(flow: FlowMap, x: State, a: float, b: float, label: Label) -> State:
    """X_{a,b}(x); of a network that was trained at r = t only, the path's step with u_{a,a} (DDIM)."""
    t, r = at(x, a), at(x, b)
    if flow.ends == "diagonal":
        keep, move = flow.path.transfer(t, r)
        return expand(keep, x) * x + expand(move, x) * flow.velocity(x, t, label)
    return flow(x, t, r, label)


def _noising(path: Path, low: Time, high: Time) -> tuple[Time, Time]:
    """(k, n) with k x_low + n ε distributed as x_high: k = α_high/α_low, n = √(σ_high² − k² σ_low²)."""
    keep = path.alpha(high) / path.alpha(low)
    return keep, (path.sigma(high) ** 2 - (keep * path.sigma(low)) ** 2).clamp(min=0).sqrt()


def _dyadic(flow: FlowMap, a: float, b: float) -> bool:
    """Whether the jump from a to b has a length 2⁻ʲ that was trained, and starts at a multiple of it."""
    level, multiple = -math.log2(a - b), a / (a - b)
    finest = math.log2(flow.conditioning.steps) if isinstance(flow.conditioning, LogStep) else math.inf
    return abs(level - round(level)) < 1e-3 and abs(multiple - round(multiple)) < 1e-3 and level < finest + 1e-3


def _finest(flow: FlowMap) -> str:
    """The end of a list of dyadic lengths: that of the finest step, where it is known."""
    return f"…, 1/{flow.conditioning.steps}" if isinstance(flow.conditioning, LogStep) else "…"


class Sampler(ABC):
    """A rule for going down a grid of times."""

    @abstractmethod
    def check(self, flow: FlowMap, times: Sequence[float]) -> None:
        """Raise `SamplerError` if the network was not trained for what it would be asked."""

    @abstractmethod
    def run(self, flow: FlowMap, eps: Noise, times: Sequence[float], label: Label) -> State:
        """The samples from standard normal noise: eps[0] is the start, the others are added in their order."""

    def draws(self, steps: int) -> int:
        """How many noises an image of `steps` steps takes."""
        return 1


@dataclass(frozen=True, kw_only=True)
class PushForward(Sampler):
    """x ← X_{t_i, t_{i+1}}(x).

    A network trained at r = t only is asked for its velocity there, and the jump is the path's: x ← ā x + b̄ u_{t,t}(x)
    with `Path.transfer` (DDIM; on the linear path Euler's step), of first order in the step.
    """

    def check(self, flow: FlowMap, times: Sequence[float]) -> None:
        check_grid(flow, times)
        if flow.ends == "zero":
            if len(times) > 2:
                raise SamplerError(
                    "this model was trained only for jumps to the data (r = 0); a push-forward over "
                    f"{len(times) - 1} steps would ask it for jumps in between. Use the re-noise sampler"
                )
            check_data_end(flow, times)
        if flow.ends == "dyadic":
            for a, b in pairwise(times):
                if not _dyadic(flow, a, b):
                    raise SamplerError(
                        f"this model was trained for jumps of length 1, 1/2, 1/4, {_finest(flow)}, not from {a:g} to "
                        f"{b:g}; use 1, 2, 4, 8, … steps on the uniform grid"
                    )

    def run(self, flow: FlowMap, eps: Noise, times: Sequence[float], label: Label) -> State:
        return deque(self.states(flow, eps, times, label), maxlen=1)[0]

    def states(self, flow: FlowMap, eps: Noise, times: Sequence[float], label: Label) -> Iterator[State]:
        """The states on the way, one at each of the times: the noise end first, the samples last."""
        x = start(flow, eps[0], times[0])
        yield x
        for a, b in pairwise(times):
            x = _jump(flow, x, a, b, label)
            yield x


@dataclass(frozen=True, kw_only=True)
class ReNoise(Sampler):
    """x̂ ← X_{t_i, end}(x), then x ← the path's point at t_{i+1} from x̂ and new noise (multistep consistency sampling).

    The end may hold noise already, σ_end > 0: with k = α_t/α_end the point is k x̂ + √(σ_t² − k² σ_end²) ε, on the
    variance-exploding path x̂ + √(σ² − σ_min²) ε. Source: Song et al. 2023 (arXiv 2303.01469), algorithm 1; IMM
    (arXiv 2503.07565) calls it restart sampling.
    """

    def draws(self, steps: int) -> int:
        return steps

    def check(self, flow: FlowMap, times: Sequence[float]) -> None:
        check_grid(flow, times)
        if flow.ends == "diagonal":
            raise SamplerError(
                "this model was trained at r = t only (flow matching) and has no jump to the data; "
                "use the push-forward sampler"
            )
        if flow.ends == "dyadic" and not all(_dyadic(flow, time, times[-1]) for time in times[:-1]):
            raise SamplerError(
                f"this model was trained for jumps to the data from 1, 1/2, 1/4, {_finest(flow)} only; "
                "use such times, or the push-forward sampler"
            )
        check_data_end(flow, times)

    def run(self, flow: FlowMap, eps: Noise, times: Sequence[float], label: Label) -> State:
        x = start(flow, eps[0], times[0])
        end, last = at(x, times[-1]), len(times) - 2
        for i, time in enumerate(times[:-1]):
            x = flow(x, at(x, time), end, label)
            if i < last:
                keep, add = _noising(flow.path, end, at(x, times[i + 1]))
                x = expand(keep, x) * x + expand(add, x) * eps[i + 1]
        return x


@dataclass(frozen=True, kw_only=True)
class Gamma(Sampler):
    """γ-sampling: x ← X_{t_i, r}(x) to a time r below t = t_{i+1}, then new noise from r up to t.

    With the noise level η = σ/α and the data end of the grid (η_end = 0, or σ_min on the variance-exploding path),

        η_r² = (1 − γ²) η_t² + γ² η_end²,    x ← (α_t/α_r) x + γ √(σ_t² − (α_t/α_end)² σ_end²) ε.

    The share γ² of the variance of the noise is new in every step: γ = 0 is `PushForward`, γ = 1 is `ReNoise`. For the
    exact flow map, and any γ and grid, the law at t is the path's: k² σ_r² + n² = α_t² η_r² + γ² (σ_t² − α_t² η_end²)
    = σ_t². Source: CTM (arXiv 2310.02279), γ-sampling, there for α = 1 and σ_end = 0; used by Align Your Flow (arXiv
    2506.14603). Needs a network for jumps to any end, except where γ is 0 or 1.
    """

    gamma: float = 0.5

    def __post_init__(self) -> None:
        require(0 <= self.gamma <= 1, f"Gamma needs 0 ≤ gamma ≤ 1, got {self.gamma}")

    def draws(self, steps: int) -> int:
        return 1 if self.gamma == 0 else steps

    def check(self, flow: FlowMap, times: Sequence[float]) -> None:
        if self.gamma in (0, 1):
            (PushForward() if self.gamma == 0 else ReNoise()).check(flow, times)
            return
        check_grid(flow, times)
        if flow.ends != "any":
            known = {
                "diagonal": "at r = t only (flow matching)",
                "zero": "only for jumps to the data (r = 0)",
                "dyadic": "for jumps of length 1, 1/2, 1/4, … only",
            }[flow.ends]
            remedy = "re-noise" if flow.ends == "zero" else "push-forward"
            raise SamplerError(
                f"this model was trained {known}; gamma sampling with gamma = {self.gamma:g} asks it for jumps to "
                f"times between those of the grid. Use the {remedy} sampler"
            )
        check_data_end(flow, times)

    def below(self, path: Path, time: float, end: float) -> float:
        """r, the time that is jumped to on the way to `time`."""
        if self.gamma == 0 or time == end:
            return time
        if self.gamma == 1:
            return end
        # γ² + (1 − γ²) is 1 in exact arithmetic only, hence not a difference of squares.
        ratio = math.hypot(
            math.sqrt((1 - self.gamma) * (1 + self.gamma)) * noise_ratio(path, time),
            self.gamma * noise_ratio(path, end),
        )
        return min(max(time_at(path, ratio), end), time)

    def run(self, flow: FlowMap, eps: Noise, times: Sequence[float], label: Label) -> State:
        path, x = flow.path, start(flow, eps[0], times[0])
        end, last = at(x, times[-1]), len(times) - 2
        for i, (a, b) in enumerate(pairwise(times)):
            r = self.below(path, b, times[-1])
            x = _jump(flow, x, a, r, label)
            if self.gamma > 0 and i < last:
                # Not √(σ_t² − k² σ_r²), which is the same but cancels where γ is small.
                keep, add = path.alpha(at(x, b)) / path.alpha(at(x, r)), _noising(path, end, at(x, b))[1]
                x = expand(keep, x) * x + expand(self.gamma * add, x) * eps[i + 1]
        return x


@dataclass(frozen=True, kw_only=True)
class Restart(Sampler):
    """x ← X_{t_i, t_{i+1}}(x), and `repeats` times back up to the previous level t_i with new noise, and down again.

    Back up: x ← k x + √(σ_{t_i}² − k² σ_{t_{i+1}}²) ε with k = α_{t_i}/α_{t_{i+1}}. Like `ReNoise` it puts new noise in
    the place of the errors made so far, but of one interval only, so that most of the image stays. The exact flow map
    keeps its law. The first interval is crossed once: what goes back up to pure noise has kept nothing. In all
    1 + (N − 1)(1 + repeats) network calls.
    Source: Xu et al. 2023 (arXiv 2306.14878), algorithm 1, with a jump in the place of their ODE solver. What IMM calls
    restart sampling goes all the way to the data: that is `ReNoise`.
    """

    repeats: int = 1

    def __post_init__(self) -> None:
        require(self.repeats >= 0, f"Restart needs repeats ≥ 0, got {self.repeats}")

    def draws(self, steps: int) -> int:
        return 1 + (steps - 1) * self.repeats

    def check(self, flow: FlowMap, times: Sequence[float]) -> None:
        PushForward().check(flow, times)

    def run(self, flow: FlowMap, eps: Noise, times: Sequence[float], label: Label) -> State:
        x = _jump(flow, start(flow, eps[0], times[0]), times[0], times[1], label)
        used = 1
        for a, b in pairwise(times[1:]):
            x = _jump(flow, x, a, b, label)
            for _ in range(self.repeats):
                keep, add = _noising(flow.path, at(x, b), at(x, a))
                x = expand(keep, x) * x + expand(add, x) * eps[used]
                x = _jump(flow, x, a, b, label)
                used += 1
        return x


def default_sampler(flow: FlowMap) -> Sampler:
    """The sampler that a network was trained for: re-noise for those that only know the data end, else push-forward."""
    return ReNoise() if flow.ends == "zero" else PushForward()
