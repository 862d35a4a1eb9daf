import math
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from oracles import column, f64
from shortflow.draw import Draw
from shortflow.dropout import Dropout, shared_dropout
from shortflow.errors import IncompatibleParts, SamplerError, ShortflowError
from shortflow.flowmap import AverageVelocity, FlowMap, Transfer, TrigFlow
from shortflow.guidance import Guided, GuidedFlowMap, guide, guided_output
from shortflow.nn import MLP
from shortflow.paths import Cosine, Linear
from shortflow.typing import Times
from shortflow.velocity import Conditional, PlugIn, Velocity

CLASSES = 3
NULL = CLASSES


class Table(nn.Module):
    """F(x, t, label) = values[label], the last row for "no class"; remembers the labels it was asked."""

    num_classes = CLASSES
    null_label: int | None = NULL

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.values = values
        self.asked: list[list[int]] = []

    def forward(self, x: Tensor, time: Tensor, second: Tensor | None, label: Tensor | None) -> Tensor:
        assert label is not None
        self.asked.append(label.tolist())
        return self.values[label].expand_as(x) + 0 * x


@dataclass(frozen=True, kw_only=True)
class Given(Velocity):
    """A base velocity that depends on the class only."""

    values: Tensor = field(default_factory=lambda: column(3.0, -1.0, 0.5))

    def __call__(self, teacher: FlowMap, draw: Draw) -> Tensor:
        assert draw.label is not None
        return self.values[draw.label]


def table(*values: float) -> FlowMap:
    return FlowMap(Table(column(*values)), Linear(), AverageVelocity())


def draw_of(t: Tensor, label: Tensor | None, dropped: Tensor | None = None) -> Draw:
    b = len(t)
    g = torch.Generator().manual_seed(0)
    x, eps = torch.randn(2, b, 1, generator=g, dtype=torch.float64)
    return Draw(
        x=x,
        eps=eps,
        x_t=Linear().interpolate(x, eps, t),
        times=Times(t, t, t),
        label=label,
        dropped=torch.zeros(b, dtype=torch.bool) if dropped is None else dropped,
        coin=torch.zeros(b),
        null_label=NULL,
    )


def trained() -> FlowMap:
    """A class-conditional network with weights that are not zero, and two-dimensional points."""
    torch.manual_seed(0)
    net = MLP(shape=(2,), width=16, depth=1, num_classes=CLASSES, null_class=True, dropout=0.5).double()
    for weight in net.parameters():
        nn.init.normal_(weight, std=0.3)
    return FlowMap(net, Cosine(), Transfer())


def points(b: int = 4) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(3)
    x = torch.randn(b, 2, generator=g, dtype=torch.float64)
    r, t = torch.rand(2, b, generator=g, dtype=torch.float64).sort(0).values
    return x, t, r, torch.arange(b) % CLASSES


# ---------------------------------------------------------------------------------------------------- in training


@pytest.mark.parametrize(
    ("omega", "kappa", "scale"),
    [(1.0, 0.5, 2.0), (0.2, 0.92, 2.5), (2.0, 0.0, 2.0), (1.5, -0.5, 1), (0.0, 0.5, 0.0)],
)
def test_fixed_point_and_its_rate(omega: float, kappa: float, scale: float) -> None:
    """Iterating u_c ← ṽ converges to w v_c + (1 − w) v_∅ with w = ω/(1 − κ), by the factor κ each time."""
    guided = Guided(base=Given(), omega=omega, kappa=kappa)
    assert guided.effective_scale == pytest.approx(scale)
    null = 0.7
    u = column(0.0, 0.0, 0.0, null)
    label = torch.arange(CLASSES)
    fixed = scale * Given().values + (1 - scale) * null
    errors = []
    for _ in range(6):
        flow = FlowMap(Table(u), Linear(), AverageVelocity())
        u = torch.cat([guided(flow, draw_of(f64(0.2, 0.5, 0.9), label)), column(null)])
        errors.append(u[:CLASSES] - fixed)
    for before, after in pairwise(errors):
        torch.testing.assert_close(after, kappa * before, rtol=1e-9, atol=1e-12)
    at_fixed = FlowMap(Table(torch.cat([fixed, column(null)])), Linear(), AverageVelocity())
    torch.testing.assert_close(guided(at_fixed, draw_of(f64(0.2, 0.5, 0.9), label)), fixed)


def test_mix_of_velocities_by_hand() -> None:
    """ṽ = ω v + κ u(c) + (1 − ω − κ) u(∅), where "no class" is the row after the last class and not class 0."""
    flow = table(10.0, 20.0, 30.0, 100.0)
    got = Guided(base=Given(), omega=1.0, kappa=0.5)(flow, draw_of(f64(0.5, 0.5, 0.5), torch.tensor([0, 1, 2])))
    want = [3 + 0.5 * 10 - 0.5 * 100, -1 + 0.5 * 20 - 0.5 * 100, 0.5 + 0.5 * 30 - 0.5 * 100]
    torch.testing.assert_close(got, column(*want))
    assert isinstance(flow.network, Table)
    assert flow.network.asked == [[0, 1, 2, NULL, NULL, NULL]]


def test_outputs_are_mixed_as_velocities() -> None:
    """On a path whose output is not the velocity, u_{t,t} is the velocity the output stands for."""
    path = Cosine(noise_scale=0.5)
    flow = FlowMap(Table(column(1.0, 2.0, 3.0, 4.0)), path, TrigFlow(), sigma_data=0.5)
    got = Guided(base=Given(), omega=2.0, kappa=0.25)(flow, draw_of(f64(0.3), torch.tensor([1])))
    unit = math.pi / 2 * 0.5
    torch.testing.assert_close(got, column(2 * -1.0 + 0.25 * unit * 2 - 1.25 * unit * 4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_window_is_closed_and_rows_outside_are_untouched(dtype: torch.dtype) -> None:
    t = torch.tensor([0.1, 0.3, 0.5, 0.8, 0.81, 1.0], dtype=dtype)
    flow = FlowMap(Table(column(1.0, 2.0, 3.0, 4.0).to(dtype)), Linear(), AverageVelocity())
    draw = draw_of(t.double(), torch.tensor([0, 1, 2, 0, 1, 2]))
    draw = draw.with_times(Times(t, t, t))
    base = Given(values=Given().values.to(dtype))
    got = Guided(base=base, omega=1.0, kappa=0.5, window=(0.3, 0.8))(flow, draw)
    plain = base(flow, draw)
    assert (got != plain)[:, 0].tolist() == [False, True, True, True, False, False]
    assert isinstance(flow.network, Table)
    assert flow.network.asked == [[1, 2, 0, NULL, NULL, NULL]]  # the network sees the rows of the window only


def test_rows_with_a_hidden_class_are_untouched() -> None:
    flow = table(1.0, 2.0, 3.0, 4.0)
    dropped = torch.tensor([True, False, True])
    draw = draw_of(f64(0.5, 0.5, 0.5), torch.tensor([0, 1, 2]), dropped)
    got = Guided(base=Given(), omega=1.0, kappa=0.5)(flow, draw)
    assert torch.equal(got[dropped], Given()(flow, draw)[dropped])
    assert got[1].item() == -1 + 0.5 * 2 - 0.5 * 4


@pytest.mark.parametrize(
    ("omega", "kappa", "asked"),
    [
        (1.0, 0.5, [[0, 1, NULL, NULL]]),
        (2.0, 0.0, [[NULL, NULL]]),  # κ = 0: no conditional pass
        (0.5, 0.5, [[0, 1]]),  # 1 − ω − κ = 0: no unconditional pass
        (0.7, 0.3, [[0, 1]]),  # the same up to rounding
        (1.0, 0.0, []),
    ],
)
def test_only_passes_that_count_are_run(omega: float, kappa: float, asked: list[list[int]]) -> None:
    flow = table(1.0, 2.0, 3.0, 4.0)
    draw = draw_of(f64(0.5, 0.5), torch.tensor([0, 1]))
    got = Guided(base=Given(), omega=omega, kappa=kappa)(flow, draw)
    assert isinstance(flow.network, Table)
    assert flow.network.asked == asked
    want = omega * f64(3.0, -1.0) + kappa * f64(1.0, 2.0) + (1 - omega - kappa) * 4.0
    torch.testing.assert_close(got, want[:, None])


@pytest.mark.parametrize("case", ["all dropped", "all outside"])
def test_a_batch_without_a_guided_row_runs_no_pass(case: str) -> None:
    flow = table(1.0, 2.0, 3.0, 4.0)
    dropped = torch.tensor([case == "all dropped"] * 2)
    draw = draw_of(f64(0.9, 0.95), torch.tensor([0, 1]), dropped)
    window = (0.0, 1.0) if case == "all dropped" else (0.0, 0.75)
    got = Guided(base=Given(), omega=1.0, kappa=0.5, window=window)(flow, draw)
    assert torch.equal(got, Given()(flow, draw))
    assert isinstance(flow.network, Table)
    assert flow.network.asked == []


def test_data_without_classes_are_not_guided() -> None:
    flow = table(1.0, 2.0, 3.0, 4.0)
    draw = draw_of(f64(0.5, 0.9), None)
    got = Guided(omega=2.0, kappa=0.0)(flow, draw)
    assert torch.equal(got, Conditional()(flow, draw))
    assert isinstance(flow.network, Table)
    assert flow.network.asked == []


def test_guidance_wraps_any_base_velocity() -> None:
    flow = table(1.0, 2.0, 3.0, 4.0)
    draw = draw_of(f64(0.5, 0.9, 0.8), torch.tensor([1, 1, 1]))
    got = Guided(base=PlugIn(), omega=1.0, kappa=0.5)(flow, draw)
    torch.testing.assert_close(got, PlugIn()(flow, draw) + 0.5 * 2 - 0.5 * 4)


def test_training_passes_have_no_dropout_and_no_gradient() -> None:
    flow = trained().train()
    assert any(isinstance(layer, Dropout) for layer in flow.modules())
    x, t, _, label = points()
    draw = Draw(
        x=x,
        eps=x.flip(0),
        x_t=flow.path.interpolate(x, x.flip(0), t),
        times=Times(t, t, t),
        label=label,
        dropped=torch.zeros(4, dtype=torch.bool),
        coin=torch.zeros(4),
        null_label=NULL,
    )
    guided = Guided(omega=1.0, kappa=0.5)
    got = guided(flow, draw)
    with shared_dropout(3, 4):
        again = guided(flow, draw)
    assert torch.equal(got, again)
    torch.testing.assert_close(got, guided(flow.eval(), draw))
    assert not got.requires_grad
    own, null = flow.velocity(draw.x_t, t, label), flow.velocity(draw.x_t, t, torch.full_like(label, NULL))
    torch.testing.assert_close(got, Conditional()(flow, draw) + 0.5 * (own - null))


@pytest.mark.parametrize("window", [(0.5, 0.5), (1.0, 0.0), (-0.1, 0.5), (0.0, 1.1), (math.nan, 1.0)])
def test_empty_windows_are_refused(window: tuple[float, float]) -> None:
    with pytest.raises(IncompatibleParts, match="Guided: the guidance window"):
        Guided(window=window)
    with pytest.raises(IncompatibleParts, match="guide: the guidance window"):
        guide(table(1.0, 2.0, 3.0, 4.0), 2.0, window)


@pytest.mark.parametrize("kappa", [1.0, 1.5, -1.0, math.nan])
def test_a_fixed_point_that_does_not_attract_is_refused(kappa: float) -> None:
    with pytest.raises(ShortflowError, match="kappa must be between"):
        Guided(kappa=kappa)


def test_networks_without_a_null_class_are_refused_with_the_remedy() -> None:
    flow = table(1.0, 2.0, 3.0, 4.0)
    flow.network.null_label = None  # type: ignore[assignment]
    draw = draw_of(f64(0.5), torch.tensor([0]))
    for act in (
        lambda: Guided(base=Given(), omega=2.0, kappa=0.0)(flow, draw),
        lambda: guide(flow, 2.0),
    ):
        with pytest.raises(IncompatibleParts, match="label_dropout > 0"):
            act()
    # Only the conditional pass is needed where ω + κ = 1.
    torch.testing.assert_close(Guided(base=Given(), omega=0.5, kappa=0.5)(flow, draw), column(0.5 * 3 + 0.5 * 1))


# ----------------------------------------------------------------------------------------------------- in sampling


@pytest.mark.parametrize("scale", [-0.5, 0.0, 0.5, 1.5, 4.0])
def test_sampling_extrapolates_from_no_class_to_the_class(scale: float) -> None:
    flow = trained().eval()
    x, t, r, label = points()
    null = torch.full_like(label, NULL)
    conditional, unconditional = flow.predict(x, t, r, label), flow.predict(x, t, r, null)
    assert (conditional - unconditional).abs().max().item() > 0.01
    guided = guide(flow, scale)
    want = unconditional + scale * (conditional - unconditional)
    torch.testing.assert_close(guided.predict(x, t, r, label), want)
    torch.testing.assert_close(guided(x, t, r, label), flow.move(x, want, t, r))


def test_scale_zero_is_the_unconditional_model() -> None:
    flow = table(1.0, 2.0, 3.0, 100.0)
    x = column(0.3, 0.4)
    got = guide(flow, 0.0).predict(x, f64(1.0, 0.5), f64(0.0, 0.0), torch.tensor([0, 1]))
    assert got.tolist() == [[100.0], [100.0]]


def test_scale_one_is_the_same_object() -> None:
    flow = table(1.0, 2.0, 3.0, 4.0)
    assert guide(flow, 1.0) is flow
    assert guide(flow, 1.0, (0.2, 0.3)) is flow
    flow.guided = "training guidance"
    assert guide(flow, 1.0) is flow


def test_guidance_points_away_from_no_class() -> None:
    """With class 1 at 2 and no class at 4, scale 3 gives 4 + 3 (2 − 4) = −2."""
    flow = table(50.0, 2.0, 3.0, 4.0)
    got = guide(flow, 3.0).predict(column(0.0), f64(1.0), f64(0.0), torch.tensor([1]))
    assert got.item() == -2
    assert isinstance(flow.network, Table)
    assert flow.network.asked == [[1, NULL]]


def test_every_row_has_its_own_times_and_scale() -> None:
    flow = trained().eval()
    x, t, r, label = points(6)
    guided = guide(flow, 2.5)
    whole = guided(x, t, r, label)
    for i in range(6):
        one = slice(i, i + 1)
        torch.testing.assert_close(whole[one], guided(x[one], t[one], r[one], label[one]))
    scale = f64(0.0, 1.0, 2.0, 3.0, -1.0, 0.5)
    mixed = guided_output(flow, x, t, r, label, scale)
    for i in range(6):
        one = slice(i, i + 1)
        want = guided_output(flow, x[one], t[one], r[one], label[one], float(scale[i]))
        torch.testing.assert_close(mixed[one], want)


def test_sampling_window_is_closed_and_costs_nothing_outside() -> None:
    flow = table(1.0, 2.0, 3.0, 4.0)
    assert isinstance(flow.network, Table)
    guided = guide(flow, 2.0, (0.25, 0.75))
    x, label = column(0.0, 0.0, 0.0, 0.0, 0.0), torch.tensor([0, 1, 2, 0, 1])
    got = guided.predict(x, f64(0.2, 0.25, 0.5, 0.75, 0.8), torch.zeros(5, dtype=torch.float64), label)
    torch.testing.assert_close(got, column(1.0, 4 + 2 * (2 - 4), 4 + 2 * (3 - 4), 4 + 2 * (1 - 4), 2.0))
    flow.network.asked.clear()
    got = guided.predict(x, torch.full((5,), 0.9, dtype=torch.float64), torch.zeros(5, dtype=torch.float64), label)
    assert flow.network.asked == [label.tolist()]
    assert got[:, 0].tolist() == [1, 2, 3, 1, 2]


def test_a_guided_map_is_a_flow_map_like_the_one_it_wraps() -> None:
    flow = FlowMap(trained().network, Cosine(), Transfer(), sigma_data=0.7, ends="zero", span=(0.1, 0.9)).eval()
    guided = guide(flow, 2.0, (0.0, 0.8))
    assert isinstance(guided, GuidedFlowMap)
    for name in ("path", "parameterization", "conditioning", "sigma_data", "ends", "span", "num_classes", "null_label"):
        assert getattr(guided, name) == getattr(flow, name)
    assert guided.guided == "sampling guidance 2 on [0, 0.8]"
    x, t, r, label = points()
    v = torch.ones_like(x)
    value, rate = guided.tangent(x, t, r, v, label)
    null = torch.full_like(label, NULL)
    parts = [flow.tangent(x, t, r, v, c) for c in (label, null)]
    inside = (t <= 0.8)[:, None]
    for got, c, u in zip((value, rate), *parts, strict=True):
        torch.testing.assert_close(got, torch.where(inside, u + 2 * (c - u), c))


def test_guiding_twice_is_refused() -> None:
    flow = table(1.0, 2.0, 3.0, 4.0)
    with pytest.raises(SamplerError, match=r"already carries sampling guidance 2 on \[0, 1\].*scale 1"):
        guide(guide(flow, 2.0), 1.5)
    flow.guided = "training guidance (omega 1, kappa 0.5)"
    with pytest.raises(SamplerError, match=r"already carries training guidance .*scale 1"):
        guide(flow, 1.5)
    with pytest.raises(IncompatibleParts, match="guided already"):
        Guided(base=Guided())


def test_sampling_without_classes_is_refused() -> None:
    flow = table(1.0, 2.0, 3.0, 4.0)
    with pytest.raises(SamplerError, match="guidance needs a class for every image"):
        guide(flow, 2.0)(column(0.0), f64(1.0), f64(0.0))
