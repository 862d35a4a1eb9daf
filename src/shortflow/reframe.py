"""A flow map seen on another path and in other units of the data: how a teacher speaks to a student unlike it.

A student's point x' = α'x + σ'ε and the teacher's point y = α(kx + m) + σε hold the same data x and the same noise ε.
At equal noise-to-signal ratio, σ_t/α_t = k σ'_{t'}/α'_{t'}, one is an affine image of the other,

    y = c_t x' + α_t m,    c_t = (k α_t + σ_t)/(α'_{t'} + σ'_{t'}),

which divides by nothing that vanishes. Both marginal flows then have the same trajectories, so flow maps conjugate,
X'_{t',r'}(x') = (X_{t,r}(y) − α_r m)/c_r, and both have the same noise ε̂ and, up to units, the same data x̂ = k x̂' + m.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from shortflow.errors import IncompatibleParts
from shortflow.flowmap import FlowMap, Transfer
from shortflow.paths import Cosine, Linear, Path, VarianceExploding
from shortflow.typing import Condition, expand

__all__ = ["ReframedFlowMap", "equal_ratio_time", "reframe"]

Time = Float[Tensor, "b"]
State = Float[Tensor, "b ..."]
Label = Condition | None
Guidance = Float[Tensor, "b 3"] | None

HALVINGS = 60  # of [0, 1]: more than the digits of float64


def equal_ratio_time(path: Path, signal: Time, noise: Time) -> Time:
    """The t ∈ [0, 1] with σ_t/α_t = noise/signal; 1 where the path stays below that ratio.

    In closed form on the linear, cosine and variance-exploding path. On others by bisection in float64 (σ/α rises, as
    its derivative is W/α² > 0) and one step of Newton's method, through which the time can be differentiated.
    """
    # Rounding puts cos(π/2) below zero.
    signal, noise = signal.clamp(min=0), noise.clamp(min=0)
    if type(path) is Linear:
        return noise / (noise + path.noise_scale * signal)
    if type(path) is Cosine:
        return torch.atan2(noise, path.noise_scale * signal) * (2 / math.pi)
    if type(path) is VarianceExploding:
        highest = path.sigma_max * signal
        beyond = noise >= highest
        return torch.where(beyond, torch.ones_like(noise), noise / torch.where(beyond, torch.ones_like(noise), highest))
    return _solved(path, signal.double(), noise.double()).to(signal.dtype)


def _solved(path: Path, signal: Time, noise: Time) -> Time:
    def excess(t: Time, signal: Time, noise: Time) -> Time:
        return path.sigma(t) * signal - path.alpha(t) * noise

    fixed = signal.detach(), noise.detach()
    low, high = torch.zeros_like(fixed[0]), torch.ones_like(fixed[0])
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        above = excess(middle, *fixed) > 0
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    t = (low + high) / 2
    slope = path.d_sigma(t) * fixed[0] - path.d_alpha(t) * fixed[1]
    return (t - excess(t, signal, noise) / slope).clamp(0, 1)


def _rows(mask: Bool[Tensor, "b"], like: Tensor) -> Tensor:
    return mask.reshape(len(mask), *([1] * (like.ndim - 1)))


class _Seen(NamedTuple):
    """A jump as the other model sees it: its point and times, the factor at its end, and what lies outside its span."""

    y: Tensor
    t: Tensor
    r: Tensor
    factor: Tensor
    late: Tensor
    early: Tensor
    ended: Tensor


class ReframedFlowMap(FlowMap):
    """`flow` on another path and in other data units; to targets and samplers a flow map like any other.

    Its output is that of the `Transfer` parameterisation, F' = α'' x̂' + σ'' ε̂ with the pair of the jump, so that
    X'_{t',r'}(x') = ā x' + b̄ F' and F' is the velocity at r' = t'. Made by `reframe`.

    Outside the times that `flow` was trained at, it is asked at the nearest of them: with the noise matched beyond the
    last, where x̂' is kept and ε̂ follows from the point, and with the data matched before the first, where ε̂ is kept.
    A jump to before the first time ends where the jump to the first time ends, as samples of `flow` do.
    """

    def __init__(self, flow: FlowMap, path: Path, scale: float, shift: float) -> None:
        window = (0.0, 0.0) if flow.told is None else flow.told[1:]
        at = torch.tensor((*flow.span, flow.lowest, *window), dtype=torch.float64)
        here = equal_ratio_time(path, scale * flow.path.alpha(at), flow.path.sigma(at)).tolist()
        grid = torch.linspace(0, 1, 33, dtype=torch.float64)
        there = equal_ratio_time(flow.path, path.alpha(grid), scale * path.sigma(grid))
        same = torch.allclose(grid, there, rtol=0, atol=1e-9)
        super().__init__(
            flow.network,
            path,
            Transfer(),
            flow.conditioning,
            sigma_data=flow.sigma_data / scale,
            # Jumps of dyadic length have other lengths where times change; the velocity remains.
            ends=flow.ends if same or flow.ends != "dyadic" else "diagonal",
            span=flow.span if same else (here[0], here[1]),
            guided=flow.guided,
            told=flow.told is not None,
            lowest=flow.lowest if same else here[2],
        )
        if flow.told is not None:
            self.told = (flow.told[0], here[3], here[4])
        self.flow, self.scale, self.shift = flow, scale, shift

    def _there(self, t: Time) -> tuple[Time, Time, Bool[Tensor, "b"], Bool[Tensor, "b"]]:
        """(time of `flow`, factor c, beyond its last time, before its first) of each row."""
        old, new = self.flow.path, self.path
        signal, noise = new.alpha(t), self.scale * new.sigma(t)
        first, last = (torch.full_like(t, end) for end in self.flow.span)
        late = noise * old.alpha(last) > signal * old.sigma(last)
        early = noise * old.alpha(first) < signal * old.sigma(first)
        time = equal_ratio_time(old, signal, noise)
        time = torch.where(late, last, torch.where(early, first, time.clamp(*self.flow.span)))
        alpha, sigma, one = self.scale * old.alpha(time), old.sigma(time), torch.ones_like(t)
        above = torch.where(late, sigma, torch.where(early, alpha, alpha + sigma))
        below = torch.where(late, new.sigma(t), torch.where(early, signal, signal + new.sigma(t)))
        return time, above / torch.where(below > 0, below, one), late, early

    def predict(self, x_t: State, t: Time, r: Time, label: Label = None, guidance: Guidance = None) -> State:
        seen = self._seen(x_t, t, r)
        raw = self.flow.predict(seen.y, seen.t, seen.r, label, self._told(self._guidance(guidance, t)))
        return self._answer(x_t, t, r, seen, raw)

    def predict_both(
        self, x_t: State, t: Time, r: Time, label: Label = None, guidance: Guidance = None
    ) -> tuple[State, State]:
        seen = self._seen(x_t, t, r)
        raw, head = self.flow.predict_both(seen.y, seen.t, seen.r, label, self._told(self._guidance(guidance, t)))
        return self._answer(x_t, t, r, seen, raw), self._answer(x_t, t, t, self._seen(x_t, t, t), head)

    def predict_head(self, x_t: State, t: Time, label: Label = None, guidance: Guidance = None) -> State:
        seen = self._seen(x_t, t, t)
        head = self.flow.predict_head(seen.y, seen.t, label, self._told(self._guidance(guidance, t)))
        return self._answer(x_t, t, t, seen, head)

    def _seen(self, x_t: State, t: Time, r: Time) -> "_Seen":
        """The jump from x_t as `flow` sees it."""
        time, factor, late, early = self._there(t)
        end, end_factor, _, ended = self._there(r)
        y = expand(factor, x_t) * x_t + expand(self.flow.path.alpha(time), x_t) * self.shift
        return _Seen(y=y, t=time, r=end, factor=end_factor, late=late, early=early, ended=ended)

    def _answer(self, x_t: State, t: Time, r: Time, seen: "_Seen", raw: State) -> State:
        """The output for the jump here that `flow`'s output `raw` stands for there."""
        old, new, y = self.flow.path, self.path, seen.y
        output = self._transfer_output(y, seen.t, seen.r, raw)
        data = (old.data(y, output, seen.t) - self.shift) / self.scale
        noise = old.noise(y, output, seen.t)
        alpha, sigma, one = new.alpha(t), new.sigma(t), torch.ones_like(t)
        kept = (x_t - expand(alpha, x_t) * data) / expand(torch.where(seen.late, sigma, one), x_t)
        left = (x_t - expand(sigma, x_t) * noise) / expand(torch.where(seen.early, alpha, one), x_t)
        data = torch.where(_rows(seen.early, x_t), left, data)
        answer = new.velocity(data, torch.where(_rows(seen.late, x_t), kept, noise), t)
        # The noise of a long jump is not what is left at its end.
        keep, move = new.transfer(t, r)
        short = seen.ended & ~seen.early & (move != 0)
        landed = self.flow.move(y, raw, seen.t, seen.r) - expand(old.alpha(seen.r), y) * self.shift
        landed = landed / expand(seen.factor, y)
        pulled = (landed - expand(keep, x_t) * x_t) / expand(torch.where(short, move, one), x_t)
        return torch.where(_rows(short, x_t), pulled, answer)

    def _transfer_output(self, y: State, t: Time, r: Time, output: State) -> State:
        """The F of `Transfer` with the jump of `output`: ((a − ā) y + b F)/b̄, and the velocity at r = t."""
        a, b = self.flow.coefficients(t, r)
        keep, move = self.flow.path.transfer(t, r)
        still = move == 0
        move = torch.where(still, torch.ones_like(move), move)
        rate_a, rate_b = self.flow.parameterization.rates(self.flow.path, self.flow.sigma_data, t)
        ours = torch.where(still, rate_a, (a - keep) / move)
        theirs = torch.where(still, rate_b, b / move)
        return expand(ours, y) * y + expand(theirs, y) * output

    def _told(self, guidance: Guidance) -> Guidance:
        """(ω, low, high) with the window in the times of `flow`."""
        if guidance is None:
            return None
        scale, low, high = guidance.unbind(1)
        return torch.stack([scale, self._there(low)[0], self._there(high)[0]], 1)

    def log_variance(self, t: Time, r: Time, label: Label = None) -> Time:
        """That of `flow` at the same points, which is in its units."""
        return self.flow.log_variance(self._there(t)[0], self._there(r)[0], label)


def reframe(flow: FlowMap, path: Path, *, scale: float = 1.0, shift: float = 0.0) -> FlowMap:
    """The same model on `path` and for data x' = (x − shift)/scale of which `flow` knows x = scale·x' + shift.

    The noise level counts against the data: a teacher of data with deviation 1 is asked at twice the σ/α of a student
    whose data have deviation ½ (scale 2). Returns `flow` itself where nothing changes.

    Raises:
        IncompatibleParts: if scale is not positive and finite, or shift not finite.
    """
    if not (scale > 0 and math.isfinite(scale) and math.isfinite(shift)):
        raise IncompatibleParts(f"reframe: scale must be positive and finite and shift finite, got {scale} and {shift}")
    if path == flow.path and scale == 1 and shift == 0:
        return flow
    return ReframedFlowMap(flow, path, scale, shift)
