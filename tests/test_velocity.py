import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from oracles import column, f64
from shortflow.draw import Draw
from shortflow.errors import ShortflowError
from shortflow.flowmap import AverageVelocity, FlowMap
from shortflow.paths import Cosine, Linear, Path, VarianceExploding
from shortflow.theory import FiniteData, Gaussian, GaussianMixture
from shortflow.typing import Times
from shortflow.velocity import Conditional, Mixture, PlugIn, plug_in_velocity, plug_in_weights

PATHS = [Linear(), Linear(noise_scale=0.5), Cosine(), VarianceExploding(sigma_max=3.0)]
every_path = pytest.mark.parametrize("path", PATHS, ids=repr)


def teacher(path: Path) -> FlowMap:
    return FlowMap(nn.Identity(), path, AverageVelocity())


def draw_of(
    path: Path,
    x: Tensor,
    eps: Tensor,
    t: Tensor,
    label: Tensor | None = None,
    dropped: Tensor | None = None,
    coin: Tensor | None = None,
) -> Draw:
    return Draw(
        x=x,
        eps=eps,
        x_t=path.interpolate(x, eps, t),
        times=Times(t, t, t),
        label=label,
        dropped=torch.zeros(len(x), dtype=torch.bool) if dropped is None else dropped,
        coin=torch.zeros(len(x)) if coin is None else coin,
        null_label=None if label is None else int(label.max()) + 1,
    )


def batch(b: int, *shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """x with a standard deviation of .8, ε and t."""
    g = torch.Generator().manual_seed(seed)
    x, eps = torch.randn(2, b, *shape, generator=g, dtype=dtype)
    return 0.8 * x, eps, torch.rand(b, generator=g, dtype=dtype)


def pairwise(path: Path, x: Tensor, eps: Tensor, t: Tensor, allowed: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(γ, v̂) from the definition in float64: all differences, softmax, Σ γ_i v(x_t | x^i) with v = α'x^i + σ'ε^i."""
    x, eps, t = (value.double() for value in (x.flatten(1), eps.flatten(1), t))
    alpha, sigma = path.alpha(t)[:, None, None], path.sigma(t)[:, None, None]
    noise = (path.interpolate(x, eps, t)[:, None] - alpha * x) / sigma  # the noise that would have made it, (b, b, D)
    logits = -0.5 * noise.square().sum(-1)
    if allowed is not None:
        logits = logits.masked_fill(~allowed, -torch.inf)
    gamma = logits.softmax(-1)
    each = path.d_alpha(t)[:, None, None] * x + path.d_sigma(t)[:, None, None] * noise
    return gamma, (gamma[..., None] * each).sum(1)


@pytest.mark.parametrize(("field", "word"), [("images", "All"), ("mask", "classes")])
def test_unknown_words_are_refused(field: str, word: Any) -> None:
    with pytest.raises(ShortflowError, match=f"PlugIn: {field} must be .*, got '{word}'"):
        PlugIn(**{field: word})


# ------------------------------------------------------------------------------------------------------ golden, oracle


@pytest.mark.parametrize(
    ("path", "x_t", "v_c", "v_plug", "own", "ess"),
    [
        (
            Linear(),
            (-0.55, -0.2, 0.17),
            (1.5, -0.5, -1.4),
            (1.202122608130, -0.441224743438, -0.076209219653),
            (0.925531408530, 0.344060342663, 0.336781865484),
            (1.159886, 2.980230, 2.999761),
        ),
        (
            Cosine(),
            (-0.664011274319, -0.223513556014, 0.217380376965),
            (1.412921497063, -0.444404044379, -2.336606802982),
            (0.712546844789, -0.326871617587, -0.366300198017),
            (0.831377157497, 0.351172596996, 0.339400199848),
            None,
        ),
    ],
)
def test_golden_values(path: Path, x_t: Any, v_c: Any, v_plug: Any, own: Any, ess: Any) -> None:
    """x = (−1, .2, 1.5), ε = (.5, −.3, .1), t = (.3, .8, .95)."""
    draw = draw_of(path, column(-1, 0.2, 1.5), column(0.5, -0.3, 0.1), f64(0.3, 0.8, 0.95))
    flow = teacher(path)
    torch.testing.assert_close(draw.x_t, column(*x_t), rtol=0, atol=1e-11)
    torch.testing.assert_close(Conditional()(flow, draw), column(*v_c), rtol=0, atol=1e-11)
    torch.testing.assert_close(PlugIn()(flow, draw), column(*v_plug), rtol=0, atol=1e-11)
    gamma = plug_in_weights(path, draw.x, draw.eps, draw.times.t)
    torch.testing.assert_close(gamma.diagonal(), f64(*own), rtol=0, atol=1e-11)
    torch.testing.assert_close(gamma.sum(1), torch.ones(3, dtype=torch.float64))
    if ess is not None:
        torch.testing.assert_close(1 / gamma.square().sum(1), f64(*ess), rtol=0, atol=1e-6)


@every_path
@pytest.mark.parametrize("shape", [(1,), (5,), (3, 4, 4)])
def test_a_batch_that_is_the_whole_data_set_gives_the_marginal_velocity(path: Path, shape: tuple[int, ...]) -> None:
    x, eps, t = batch(12, *shape)
    t = t.clamp(min=0.01)
    draw = draw_of(path, x, eps, t)
    law = FiniteData(path=path, points=x)
    torch.testing.assert_close(PlugIn()(teacher(path), draw), law.velocity(draw.x_t, t), rtol=1e-10, atol=1e-10)


@every_path
def test_a_masked_batch_gives_the_velocity_of_each_class_and_of_no_class(path: Path) -> None:
    """Rows with a class see the images of their class, rows whose class is hidden see all images."""
    x, eps, t = batch(12, 3, seed=1)
    t = t.clamp(min=0.1)
    label = torch.tensor([0, 1, 2] * 4)
    dropped = torch.arange(12) % 4 == 0
    draw = draw_of(path, x, eps, t, label, dropped)
    law = FiniteData(path=path, points=x, labels=label)
    assert draw.condition is not None
    want = law.velocity(draw.x_t, t, draw.condition)
    torch.testing.assert_close(PlugIn(mask="label")(teacher(path), draw), want, rtol=1e-10, atol=1e-10)
    unmasked = law.velocity(draw.x_t, t, torch.full((12,), 3))
    torch.testing.assert_close(PlugIn(mask="none")(teacher(path), draw), unmasked, rtol=1e-10, atol=1e-10)
    assert float((want - unmasked).abs().max()) > 0.1


@every_path
@given(seed=st.integers(0, 10_000), low=st.floats(0.01, 1.0))
@settings(max_examples=20, deadline=None)
def test_two_products_equal_all_pairs(path: Path, seed: int, low: float) -> None:
    x, eps, t = batch(7, 2, seed=seed)
    t = low + (1 - low) * t
    allowed = torch.rand(7, 7, generator=torch.Generator().manual_seed(seed)) < 0.5
    allowed |= torch.eye(7, dtype=torch.bool)
    for mask in (None, allowed):
        gamma, v = pairwise(path, x, eps, t, mask)
        torch.testing.assert_close(plug_in_weights(path, x, eps, t, mask), gamma, rtol=0, atol=1e-9)
        torch.testing.assert_close(plug_in_velocity(path, x, eps, t, mask), v, rtol=1e-8, atol=1e-8)


def test_one_image_gives_the_conditional_velocity() -> None:
    for path in PATHS:
        x, eps, t = batch(1, 3)
        draw = draw_of(path, x, eps, t)
        assert torch.equal(PlugIn()(teacher(path), draw), Conditional()(teacher(path), draw))


def test_an_image_alone_in_its_class_gives_the_conditional_velocity() -> None:
    x, eps, t = batch(4, 3)
    draw = draw_of(Linear(), x, eps, t, torch.tensor([0, 1, 2, 3]))
    assert torch.equal(PlugIn()(teacher(Linear()), draw), Conditional()(teacher(Linear()), draw))


# --------------------------------------------------------------------------------------------------------- statistics


GROUP = 8


def groups_of_eight(
    path: Path, sample: Callable[[torch.Generator, int], tuple[Tensor, Tensor]], t: float, mask: bool, seeds: int = 160
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(x_t, label, v_c, v̂) of many independent batches of 8, each of shape (groups, 8); v̂ by class if `mask`."""
    rows = []
    for seed in range(seeds):
        g = torch.Generator().manual_seed(seed)
        n = 256
        x, label = sample(g, n)
        eps = torch.randn(n, 1, generator=g, dtype=torch.float64)
        time = torch.full((n,), t, dtype=torch.float64)
        group = torch.arange(n) // GROUP
        allowed = group[:, None] == group
        if mask:
            allowed = allowed & (label[:, None] == label)
        v_plug = plug_in_velocity(path, x, eps, time, allowed)
        rows.append([path.interpolate(x, eps, time), label, path.velocity(x, eps, time), v_plug])
    x_t, label, v_c, v_plug = (torch.cat(values).reshape(-1, GROUP) for values in zip(*rows, strict=True))
    return x_t, label, v_c, v_plug


def in_bands(value: Tensor, want: float = 0.0) -> float:
    """|mean − want| in standard errors; the rows of a group are not independent, the groups are."""
    means = value.mean(1)
    return abs(float(means.mean()) - want) / (float(means.std()) / math.sqrt(len(means)))


def test_plug_in_is_unbiased_and_has_less_variance() -> None:
    """N(0, 1) data, t = .6, B = 8: E|v_c − v|² = 1/.52 = 1.923 splits into E|v̂ − v|² = .301 and the part removed."""
    path = Linear()
    law = Gaussian(path=path, mean=0.0, std=1.0)

    def sample(g: torch.Generator, n: int) -> tuple[Tensor, Tensor]:
        return torch.randn(n, 1, generator=g, dtype=torch.float64), torch.zeros(n, dtype=torch.int64)

    x_t, _, v_c, v_plug = groups_of_eight(path, sample, 0.6, mask=False)
    flat = x_t.reshape(-1, 1)
    v = law.velocity(flat, torch.full((len(flat),), 0.6, dtype=torch.float64)).reshape(x_t.shape)
    for test_function in (torch.ones_like, lambda x: x, torch.tanh, lambda x: (x > 1).double()):
        assert in_bands((v_plug - v) * test_function(x_t)) < 5
        assert in_bands((v_c - v) * test_function(x_t)) < 5
    assert in_bands((v_c - v) ** 2, 1 / 0.52) < 5
    assert in_bands((v_plug - v) ** 2, 0.301) < 5
    assert in_bands((v_c - v_plug) ** 2, 1.625) < 5


@pytest.mark.parametrize("mask", [True, False])
def test_only_the_class_mask_is_unbiased_for_a_conditional_network(mask: bool) -> None:
    """Two classes N(±1, .3²) in one batch: by class v̂ estimates v_t(x | y), over all images v_t(x)."""
    path, t = Linear(), 0.5
    means = f64(-1.0, 1.0)
    classes = [Gaussian(path=path, mean=float(mean), std=0.3) for mean in means]
    both = GaussianMixture(path=path, weights=f64(0.5, 0.5), means=means[:, None], stds=f64(0.3, 0.3))

    def sample(g: torch.Generator, n: int) -> tuple[Tensor, Tensor]:
        label = torch.randint(2, (n,), generator=g)
        return (means[label] + 0.3 * torch.randn(n, generator=g, dtype=torch.float64))[:, None], label

    x_t, label, _, v_plug = groups_of_eight(path, sample, t, mask)
    flat, time = x_t.reshape(-1, 1), torch.full((x_t.numel(),), t, dtype=torch.float64)
    by_class = torch.where(
        label.reshape(-1, 1) == 0, classes[0].velocity(flat, time), classes[1].velocity(flat, time)
    ).reshape(x_t.shape)
    marginal = both.velocity(flat, time).reshape(x_t.shape)
    side = 2.0 * label - 1  # a function of the class: sees a bias towards the other class
    if mask:
        for function in (torch.ones_like(x_t), side, x_t, side * x_t):
            assert in_bands((v_plug - by_class) * function) < 5
    else:
        for function in (torch.ones_like(x_t), x_t, torch.tanh(x_t)):
            assert in_bands((v_plug - marginal) * function) < 5
        assert in_bands((v_plug - by_class) * side) > 20
        bias, whole = (float(((v - by_class) * side).mean()) for v in (v_plug, marginal))
        assert 0.5 < bias / whole < 1  # the way to the marginal velocity, less the weight of the own image


# -------------------------------------------------------------------------------------------------------- invariances


@every_path
def test_rotations_and_permutations_of_the_batch_go_through(path: Path) -> None:
    x, eps, t = batch(9, 4, seed=2)
    rotation = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64))[0]
    v = plug_in_velocity(path, x, eps, t)
    torch.testing.assert_close(plug_in_velocity(path, x @ rotation, eps @ rotation, t), v @ rotation)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(plug_in_velocity(path, x[order], eps[order], t[order]), v[order])


@given(rows=st.lists(st.integers(0, 8), min_size=1, max_size=9))
@settings(max_examples=20, deadline=None)
def test_chosen_rows_equal_the_whole_computation(rows: list[int]) -> None:
    x, eps, t = batch(9, 4, seed=4)
    draw = draw_of(Linear(), x, eps, t, torch.arange(9) % 2, torch.arange(9) % 5 == 0)
    index = torch.tensor(rows)
    for plug_in in (PlugIn(), PlugIn(mask="none")):
        whole = plug_in.at(Linear(), draw, None)
        torch.testing.assert_close(plug_in.at(Linear(), draw, index), whole[index], rtol=1e-12, atol=1e-12)


# ---------------------------------------------------------------------------------------------------------- precision


def images(kind: str) -> Tensor:
    """16 points of dimension 4096: independent, or four tight clusters far from the origin."""
    g = torch.Generator().manual_seed(5)
    if kind == "independent":
        return 0.8 * torch.randn(16, 4096, generator=g)
    centres = 0.8 * torch.randn(4, 4096, generator=g)
    return 2.0 + centres.repeat(4, 1) + 0.02 * torch.randn(16, 4096, generator=g)


@pytest.mark.parametrize("kind", ["independent", "clusters"])
@pytest.mark.parametrize("path", [Linear(), Cosine()], ids=repr)
def test_single_precision_products_agree_with_double_precision_pairs(kind: str, path: Path) -> None:
    """At D = 4096 to 1e-5 of the velocity, at times that cover weights from one-hot to uniform."""
    x = images(kind)
    eps = torch.randn(16, 4096, generator=torch.Generator().manual_seed(6))
    own = []
    for time in (1e-3, 0.01, 0.1, 0.3, 0.5, 0.9, 0.95, 0.98, 1.0):
        t = torch.full((16,), time)
        gamma, v = pairwise(path, x, eps, t)
        own.append(float(gamma.diagonal().mean()))
        got = plug_in_velocity(path, x, eps, t)
        assert got.dtype == torch.float32
        assert float((got - v).norm() / v.norm()) < 1e-5
        if kind == "independent":
            assert float((got - v).abs().max()) < 2e-5
    assert own[0] > 0.999
    assert own[-1] == pytest.approx(1 / 16)
    assert any(0.1 < weight < 0.9 for weight in own)


@every_path
def test_time_zero_gives_exactly_the_conditional_velocity(path: Path) -> None:
    x, eps, _ = batch(6, 10, dtype=torch.float32)
    x[3] = x[0]
    t = torch.zeros(6)
    assert torch.equal(plug_in_velocity(path, x, eps, t), path.velocity(x, eps, t))


@pytest.mark.parametrize("time", [0.0, 1e-6, 1e-3])
def test_the_own_weight_is_exactly_one_towards_time_zero(time: float) -> None:
    x = images("independent")
    eps = torch.randn(16, 4096, generator=torch.Generator().manual_seed(7))
    gamma = plug_in_weights(Linear(), x, eps, torch.full((16,), time))
    assert torch.equal(gamma, torch.eye(16))


@pytest.mark.parametrize("time", [0.0, 1e-6, 1e-3, 0.5, 1.0])
def test_duplicates_share_their_weight_without_nan(time: float) -> None:
    """Copies of an image change the weights but, among themselves, not the velocity."""
    path = Linear()
    x = images("independent")[:6]
    x[1:4] = x[0]
    eps = torch.randn(6, 4096, generator=torch.Generator().manual_seed(7))
    t = torch.full((6,), time)
    gamma, v = plug_in_weights(path, x, eps, t), plug_in_velocity(path, x, eps, t)
    assert bool(torch.isfinite(v).all())
    assert bool(torch.isfinite(gamma).all())
    torch.testing.assert_close(gamma.sum(1), torch.ones(6))
    if 1e-3 <= time <= 0.5:  # weights one-hot but for the copies
        torch.testing.assert_close(v, path.velocity(x, eps, t), rtol=0, atol=1e-3)
    if time >= 1e-3:
        torch.testing.assert_close(v.double(), pairwise(path, x, eps, t)[1], rtol=0, atol=1e-3)


def test_half_precision_images_are_weighed_in_single_precision() -> None:
    x, eps, t = batch(16, 512, seed=8, dtype=torch.float32)
    t = 0.8 + 0.2 * t
    low, noise = x.bfloat16(), eps.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = plug_in_velocity(Linear(), low, noise, t)
    gamma = plug_in_weights(Linear(), low, noise, t)
    want, v = pairwise(Linear(), low, noise, t)
    torch.testing.assert_close(gamma.double(), want, rtol=0, atol=1e-5)
    torch.testing.assert_close(got.double(), v, rtol=0, atol=0.05)


class Sizes(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation returns."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, tuple | list) else (out,):
            if isinstance(value, Tensor):
                self.largest = max(self.largest, value.numel())
        return out


@pytest.mark.parametrize(("b", "d"), [(512, 4096), (512, 16)])
def test_no_tensor_is_larger_than_the_batch_or_its_gram_matrix(b: int, d: int) -> None:
    """The differences of all pairs would take b·b·d elements: 4 GiB for 512 latents of 4096 numbers."""
    x, eps, t = batch(b, d, dtype=torch.float32)
    draw = draw_of(Linear(), x, eps, t, torch.arange(b) % 10)
    with Sizes() as sizes:
        PlugIn()(teacher(Linear()), draw)
    assert 0 < sizes.largest <= max(b * b, b * d)


def test_no_gradient_is_recorded() -> None:
    x, eps, t = batch(4, 3)
    assert not plug_in_velocity(Linear(), x.requires_grad_(), eps, t).requires_grad


# ------------------------------------------------------------------------------------------------------------ mixture


@dataclass(frozen=True, kw_only=True)
class Watched(PlugIn):
    """A plug-in velocity that remembers which rows it was asked for."""

    asked: list[list[int]] = field(default_factory=list)

    def at(self, path: Path, draw: Draw, rows: Tensor | None) -> Tensor:
        self.asked.append([] if rows is None else rows.tolist())
        return super().at(path, draw, rows)


def test_mixture_takes_the_plug_in_where_the_coin_falls_below_the_probability() -> None:
    x, eps, t = batch(6, 3, seed=9)
    coin = torch.tensor([0.1, 0.9, 0.49, 0.5, 0.51, 0.0])
    draw = draw_of(Linear(), x, eps, t, coin=coin)
    watched = Watched()
    flow = teacher(Linear())
    plug, conditional = PlugIn()(flow, draw), Conditional()(flow, draw)
    got = Mixture(plug_in=watched, probability=0.5)(flow, draw)
    torch.testing.assert_close(got, torch.where((coin < 0.5)[:, None], plug, conditional))
    assert torch.equal(got[[1, 3, 4]], conditional[[1, 3, 4]])
    assert watched.asked == [[0, 2, 5]]  # nothing is computed for the others
    torch.testing.assert_close(Mixture(probability=1.0)(flow, draw), plug)
    assert torch.equal(Mixture(plug_in=watched, probability=0.0)(flow, draw), conditional)
    assert len(watched.asked) == 1


def test_impossible_settings_are_refused_by_name() -> None:
    for probability in (-0.1, 1.1, math.nan):
        with pytest.raises(ShortflowError, match=r"probability must be in \[0, 1\]"):
            Mixture(probability=probability)
