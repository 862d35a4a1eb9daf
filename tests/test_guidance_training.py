"""Guidance that training bakes in or that the network is told, and the velocity head, against formulas by hand."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor, nn
from torch.autograd.functional import jvp as double_backward

from heads import EFFECTIVE, Headed, headed, told_draw
from oracles import column, f64
from shortflow.draw import Draw
from shortflow.errors import IncompatibleParts, SamplerError, ShortflowError
from shortflow.flowmap import AverageVelocity, FlowMap
from shortflow.guidance import FadingGuidance, GuidanceAsInput, Guided, GuidedFlowMap, PowerGuidance, guide
from shortflow.losses import Adaptive, SquaredError
from shortflow.nn import MLP, SiT
from shortflow.objective import Objective
from shortflow.paths import Linear
from shortflow.recipe import Recipe
from shortflow.recipes import imf
from shortflow.streams import Streams
from shortflow.targets import Along, Direct, Split, Tangent, TwoStep
from shortflow.times import Diagonal, Dyadic, Sorted
from shortflow.typing import Batch, Times, expand
from shortflow.velocity import Conditional, Mixture, Own, Velocity
from steps import NULL, batch, close, draw_at, gradient, loss_and_gradient, needed, randomize

ROWS = torch.arange(6)


@dataclass(frozen=True, kw_only=True)
class Given(Velocity):
    """One velocity for each class."""

    values: ClassVar[Tensor] = column(3.0, -1.0, 0.5, 2.0)

    def __call__(self, teacher: FlowMap, draw: Draw) -> Tensor:
        assert draw.label is not None
        return self.values[draw.label].expand_as(draw.x)


class Table(nn.Module):
    """One output for each class and a guidance that it may be told; remembers the classes it was asked for."""

    num_classes = null_label = 4

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.values, self.asked = values, []

    def forward(self, x: Tensor, time: Tensor, second: Tensor, label: Tensor, guidance: Tensor | None = None) -> Tensor:
        self.asked.append(label.tolist())
        values = self.values[label]
        return (values if guidance is None else guidance[:, :1] * values).expand_as(x)


def table(values: Tensor, told: bool = False) -> FlowMap:
    return FlowMap(Table(values), Linear(), AverageVelocity(), told=told)


def at_times(t: Tensor, dropped: Tensor | None = None) -> Draw:
    """Rows with r = t of classes 0, 1, 2, …"""
    x = torch.zeros(len(t), 1, dtype=torch.float64)
    return draw_at(Linear(), x, x, t, t, label=torch.arange(len(t)) % 4, dropped=dropped, null_label=4)


# ------------------------------------------------------------------------------------------------ fading guidance


@pytest.mark.parametrize(
    ("t", "decay"), [(0.0, 1), (0.8, 1), (0.801, 0.993), (0.81, 0.378), (0.85, 0.072), (0.9, 0.025), (1.0, 0)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_published_fading_is_nearly_a_step(t: float, decay: float, dtype: torch.dtype) -> None:
    got = FadingGuidance().decay(torch.tensor([t], dtype=dtype))
    assert got.dtype == dtype
    assert got.item() == pytest.approx(decay, abs=5e-4)


@given(rate=st.floats(0.01, 10), edge=st.floats(0, 0.95))
@settings(max_examples=50, deadline=None)
def test_fading_falls_from_one_to_zero(rate: float, edge: float) -> None:
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    decay = FadingGuidance(rate=rate, edge=edge).decay(t)
    assert decay.isfinite().all()
    assert (decay.diff() <= 0).all()
    assert (decay[t <= edge] == 1).all()
    assert decay[-1] == 0


def test_fading_guidance_by_hand() -> None:
    """mix·[v + d (w − 1)(v − u_∅)] + (1 − mix) u_c; the identity without a class."""
    values = column(10.0, 20.0, 30.0, 40.0, 100.0)
    t, guided = f64(0.5, 0.81, 0.9, 0.3), FadingGuidance(base=Given(), scale=3.0, mix=0.25)
    got = guided(table(values), at_times(t, torch.arange(4) == 3))
    d, v = guided.decay(t)[:, None], Given.values
    want = 0.25 * (v + 2 * d * (v - 100)) + 0.75 * values[:4]
    close(got[:3], want[:3])
    close(got[3], v[3])


@pytest.mark.parametrize("w", [3.0, 0.0])
@pytest.mark.parametrize("mix", [0.25, 1.0])
def test_fixed_point_of_fading_guidance(mix: float, w: float) -> None:
    """u_c ← v' converges to u_c = W v_c + (1 − W) v_∅, W = 1 + d (w − 1), by the factor 1 − mix each time."""
    guided, null, t = FadingGuidance(base=Given(), scale=w, mix=mix), 0.7, f64(0.5, 0.8, 0.81, 0.9)
    scale = 1 + (w - 1) * guided.decay(t)[:, None]
    fixed = scale * Given.values + (1 - scale) * null
    u = column(0, 0, 0, 0, null)
    errors = []
    for _ in range(5):
        u = torch.cat([guided(table(u), at_times(t)), column(null)])
        errors.append(u[:4] - fixed)
    for before, after in pairwise(errors):
        close(after, (1 - mix) * before, 1e-10)


def test_a_scale_of_one_asks_for_no_velocity_without_a_class() -> None:
    """Also for networks that have no null class."""
    flow, draw = table(column(10.0, 20.0, 30.0, 40.0)), at_times(f64(0.5, 0.9))
    assert isinstance(flow.network, Table)
    flow.network.null_label = None  # type: ignore[assignment]
    got = FadingGuidance(base=Given(), scale=1.0, mix=0.25)(flow, draw)
    close(got, 0.25 * Given.values[:2] + 0.75 * column(10.0, 20.0))
    assert flow.network.asked == [[0, 1]]
    close(FadingGuidance(base=Given(), scale=1.0, mix=1.0)(flow, draw), Given.values[:2])
    assert len(flow.network.asked) == 1


@pytest.mark.parametrize(
    "guided",
    [
        Guided(base=Given(), window=(0.2, 0.8)),
        FadingGuidance(base=Given()),
        GuidanceAsInput(base=Given(), head=False),
        Guided(base=Mixture(probability=0.5), omega=2.0, kappa=0.0),
    ],
    ids=lambda guided: f"{type(guided).__name__}-{type(guided.base).__name__}",
)
def test_guidance_on_some_rows_is_that_of_all_and_asks_the_network_for_those_rows_only(guided: Velocity) -> None:
    draw = replace(told_draw(), coin=torch.linspace(0, 0.99, 6))
    flow = headed(told=isinstance(guided, GuidanceAsInput))
    draw = draw if isinstance(guided, GuidanceAsInput) else replace(draw, guidance=None)
    assert isinstance(flow.network, Headed)
    whole, rows = guided(flow, draw), torch.tensor([5, 2, 0])
    flow.network.asked.clear()
    close(guided.on(flow, draw, rows), whole[rows], 1e-13)
    assert len(flow.network.asked) == 1
    assert set(flow.network.asked[0][0].tolist()) <= {0, 1, NULL}  # rows 5 and 0; row 2 has no class


def test_the_kinds_of_a_split_share_the_cost_of_guidance() -> None:
    """Each row is asked for once, by the part that it belongs to."""
    draw = replace(told_draw(), guidance=None)
    draw = replace(draw, times=draw.times._replace(s=0.5 * (draw.times.t + draw.times.r)))
    flow, guided = headed(told=False), Guided(omega=2.0, kappa=0.0)
    assert isinstance(flow.network, Headed)
    target = Split(direct=Direct(velocity=guided), bootstrap=TwoStep(first=guided))
    target(flow, draw)
    asked = [len(label) for label, _ in flow.network.asked if (label == NULL).all()]
    assert sorted(asked) == [1, 4]


# ----------------------------------------------------------------------------------------- guidance as an input


def test_scale_that_the_network_is_told() -> None:
    """ω inside the closed window, 1 outside; the window it is told is [0, 1], the one its velocity is trained with."""
    draw = told_draw()
    got = draw.velocity_guidance(ROWS, draw.times.t)
    assert got is not None
    close(got, torch.stack([EFFECTIVE, torch.zeros(6).double(), torch.ones(6).double()], 1), 0)
    later = draw.velocity_guidance(torch.tensor([1, 0]), f64(0.5, 0.76))
    assert later is not None
    close(later[:, 0], f64(3.0, 1.0), 0)
    assert replace(draw, guidance=None).velocity_guidance(ROWS, draw.times.t) is None


@pytest.mark.parametrize("head", [True, False])
def test_guidance_by_the_networks_own_velocities(head: bool) -> None:
    """v + (1 − 1/ω̃)(v_c − v_∅): v_c at ω̃, v_∅ at scale 1; the identity without a class and outside the window."""
    flow, draw = headed(), told_draw()
    got = GuidanceAsInput(head=head)(flow, draw)
    assert not got.requires_grad
    t, x, v = draw.times.t, draw.x_t, draw.eps - draw.x
    zero, one = torch.zeros(6).double(), torch.ones(6).double()

    def velocity(label: Tensor, scale: Tensor) -> Tensor:
        outputs = flow.predict_both(x, t, t, label, torch.stack([scale, zero, one], 1))
        return outputs[1 if head else 0].detach()

    assert draw.label is not None
    difference = velocity(draw.label, EFFECTIVE) - velocity(torch.full((6,), NULL), one)
    want = v + (1 - 1 / EFFECTIVE)[:, None] * difference
    close(got, want, 1e-13)
    assert (got != v).any(1).tolist() == [True, False, False, True, True, True]


def test_fixed_point_of_a_scale_that_is_told() -> None:
    """v_c = ω v(c) + (1 − ω) v(∅): a network with that velocity is guided to it."""
    null, scales = 0.7, f64(2.0, 3.0, 1.0, 8.0)
    fixed = scales[:, None] * Given.values + (1 - scales[:, None]) * null
    values = torch.cat([fixed / scales[:, None], column(null)])  # the table multiplies by the scale it is told
    draw = replace(at_times(f64(0.2, 0.4, 0.6, 0.8)), guidance=torch.stack([scales, 0 * scales, 0 * scales + 1], 1))
    close(GuidanceAsInput(base=Given(), head=False)(table(values, told=True), draw), fixed, 1e-12)


@pytest.mark.parametrize("head", [True, False])
def test_the_own_velocity_is_asked_with_the_scale_of_its_time(head: bool) -> None:
    """Improved MeanFlow's direction is v_c, the velocity at ω̃: at a point outside the window, that without guidance."""
    flow, draw = headed(), told_draw()
    x, t = 0.5 * draw.x_t, f64(0.5, 0.8, 0.1, 0.95, 0.2, 0.7)
    scale = f64(2.0, 1.0, 1.0, 4.0, 1.0, 8.0)
    told = torch.stack([scale, 0 * scale, 0 * scale + 1], 1)
    want = flow.predict_both(x, t, t, draw.condition, told)[1 if head else 0]
    close(Own(head=head).field(flow, draw, ROWS, x, t), want.detach(), 1e-13)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 2.0])
def test_law_of_the_scale(power: float) -> None:
    """Density ∝ ω^{−power} on [1, 8], by its distribution function: exact at the quantiles, and by drawn numbers."""
    law = PowerGuidance(highest=8.0, power=power)

    def cdf(w: Tensor) -> Tensor:
        if power == 1:
            return w.log() / f64(8.0).log()
        return (w ** (1 - power) - 1) / (8.0 ** (1 - power) - 1)

    u = torch.linspace(0, 1, 50, dtype=torch.float64)
    close(cdf(law.scale(u)), u, 1e-12)
    generator = torch.Generator().manual_seed(0)
    drawn = law.scale(torch.rand(4000, generator=generator, dtype=torch.float64))
    assert stats.kstest(drawn.numpy(), lambda w: cdf(torch.as_tensor(w)).numpy()).pvalue > 1e-3


def test_windows_that_the_network_is_told() -> None:
    """[U(0, ½), U(½, 1)] on rows that jump; [0, 1] where r = t, and [0, 1] and ω = 1 without a class."""
    times = Times(f64(0.9, 0.8, 0.7), f64(0.9, 0.8, 0.7), f64(0.1, 0.8, 0.2))
    u = torch.tensor([[0.5, 0.3, 0.6]] * 3, dtype=torch.float64)
    got = PowerGuidance()(u, times, torch.tensor([False, False, True]))
    close(got, torch.tensor([[8**0.5, 0.15, 0.8], [8**0.5, 0, 1], [1, 0, 1]], dtype=torch.float64), 1e-14)


def test_a_draw_brings_the_guidance_of_its_rows() -> None:
    objective = Objective(
        times=Sorted(),
        target=Tangent(velocity=GuidanceAsInput(head=False)),
        guidance=PowerGuidance(),
        label_dropout=0.3,
    )
    draw = objective.draw(batch(200), Linear(), Streams(seed=1), null_label=NULL)
    assert draw.guidance is not None
    scale, low, high = draw.guidance.unbind(1)
    assert draw.dropped.any()
    assert (scale[draw.dropped] == 1).all()
    whole = draw.dropped | ~draw.times.bootstrap
    assert ((low == 0) & (high == 1))[whole].all()
    assert ((low < 0.5) & (high > 0.5) & (low > 0) & (high < 1))[~whole].all()
    plain = replace(objective, target=Tangent(), guidance=None).draw(
        batch(200), Linear(), Streams(seed=1), null_label=4
    )
    assert plain.guidance is None
    assert torch.equal(plain.x_t, draw.x_t)  # from a stream of its own


def test_telling_a_network_its_guidance() -> None:
    """Before sampling: the same weights, another default; rows may still be told otherwise; no pass is doubled."""
    flow, draw = headed(), told_draw()
    t, _, r = draw.times
    guided = guide(flow, 2.5, (0.1, 0.7))
    assert guided.network is flow.network
    assert (flow.told, guided.told) == ((1.0, 0.0, 1.0), (2.5, 0.1, 0.7))
    for model, told in ((flow, (1.0, 0.0, 1.0)), (guided, (2.5, 0.1, 0.7))):
        rows = torch.tensor([told] * 6, dtype=torch.float64)
        close(model(draw.x_t, t, r, draw.label), flow(draw.x_t, t, r, draw.label, rows), 0)
        close(model.velocity(draw.x_t, t, draw.label), flow.velocity(draw.x_t, t, draw.label, rows), 0)
    close(guided(draw.x_t, t, r, draw.label, draw.guidance), flow(draw.x_t, t, r, draw.label, draw.guidance), 0)
    assert guide(flow, 1.0) is flow
    for scale in (0.0, 0.5, -1.0):
        with pytest.raises(SamplerError, match="knows scales from 1 only"):
            guide(flow, scale)
    plain = headed(told=False)
    assert plain.told is None
    assert isinstance(guide(plain, 2.5), GuidedFlowMap)


def test_a_guided_flow_map_keeps_its_earliest_time() -> None:
    flow = FlowMap(Table(column(0, 1, 2, 3, 4)), Linear(), AverageVelocity(), lowest=0.3, span=(0.0, 0.9))
    guided = guide(flow, 2.0)
    assert (guided.lowest, guided.span, guided.ends) == (0.3, (0.0, 0.9), flow.ends)


# ------------------------------------------------------------------------------------------------- velocity head


def test_improved_meanflow_with_both_heads() -> None:
    """adp(‖û + (t−r) sg D − v_g‖²) + adp(‖v̂ − v_g‖²), D along v_c of the head: loss and gradient by hand."""
    flow, draw = headed(), told_draw()
    objective = Objective(
        times=Sorted(),
        target=Tangent(velocity=GuidanceAsInput(), direction=Own(head=True)),
        metric=SquaredError(reduce="sum"),
        weighting=Adaptive(c=0.01),
        guidance=PowerGuidance(),
        velocity_head=True,
    )
    terms = objective.evaluate(flow, flow, draw)
    (t, _, r), x, told = draw.times, draw.x_t, draw.guidance
    v_g = GuidanceAsInput()(flow, draw)
    along = Own(head=True)(flow, draw)
    rate = double_backward(
        lambda x, t: flow.predict(x, t, r, draw.condition, told), (x, t), (along, torch.ones_like(t))
    )[1]
    output, head = flow.predict_both(x, t, r, draw.condition, told)
    form = (output + expand(t - r, x) * rate - v_g).square().sum(1)
    beside = (head - v_g).square().sum(1)
    want = form / (form.detach() + 0.01) + beside / (beside.detach() + 0.01)
    close(terms.loss.detach(), want.detach(), 1e-10)
    close(terms.logs["error"], form.detach(), 1e-10)
    close(terms.logs["head_error"], beside.detach(), 1e-12)
    slope = gradient(terms.loss.mean(), flow.network)
    close(slope, gradient(want.mean(), flow.network), 1e-9)


@dataclass(frozen=True, kw_only=True)
class Asked(Own):
    """The network's own velocity under another name, so that every direction has a pass of its own."""


def separately(recipe: Recipe) -> Objective:
    target = recipe.objective.target
    assert isinstance(target, Tangent)
    return replace(recipe.objective, target=replace(target, direction=Asked(head=True)))


def test_the_direction_of_improved_meanflow_is_a_branch_of_its_guidance() -> None:
    """v_c has one pass for both, on rows with a jump; where r = t it is the prediction of the head.

    v_∅ is asked for where ω̃ ≠ 1, on four rows; guidance alone asks for v_c there, on three with a jump.
    """
    flow, draw, recipe = headed(), told_draw(), imf()
    assert isinstance(flow.network, Headed)
    results = []
    for objective, passes in ((recipe.objective, [1, 5 + 4, 5]), (separately(recipe), [1, 3 + 4, 5, 5])):
        flow.network.asked.clear()
        results.append(loss_and_gradient(objective, flow, draw))
        assert [len(label) for label, _ in flow.network.asked] == passes
    for one, other in zip(*results, strict=True):
        close(one, other, 1e-14)  # some processors sum the products of five rows and of eight in another order
    everyone = replace(draw, dropped=torch.zeros(6, dtype=torch.bool))
    flow.network.asked.clear()
    recipe.objective.evaluate(flow, flow, everyone)
    assert [len(label) for label, _ in flow.network.asked] == [1, 5 + 4, 5]


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("kind", ["mlp", "sit"])
def test_sharing_the_direction_changes_no_bit(kind: str, dropout: float) -> None:
    """With dropout nothing is shared: guidance has none, direction and prediction have the masks of the step."""
    recipe = imf()
    settings = {**needed(recipe), "dropout": dropout}
    built = {
        "mlp": lambda: MLP(shape=(4,), width=32, depth=2, **settings),
        "sit": lambda: SiT(shape=(1, 4, 4), patch=2, width=32, depth=3, heads=2, head_depth=1, **settings),
    }
    network = randomize(built[kind]()).float()
    flow, passes = recipe.flow_map(network), []
    given = Batch(x=torch.randn(32, *network.shape), label=torch.arange(32) % 4)
    network.t_embedder.register_forward_hook(lambda _, inputs, __: passes.append(len(inputs[0])))
    for seed in range(3):
        draw = recipe.objective.draw(given, recipe.path, Streams(seed=seed), null_label=NULL)
        assert draw.dropped.any()
        shown = (~draw.dropped).nonzero()[:, 0]
        told = draw.velocity_guidance(shown, draw.times.t[shown])
        assert told is not None
        acts = told[:, 0] != 1
        free, jumping = int(acts.sum()), int((acts & draw.times.bootstrap[shown]).sum())
        passes.clear()
        shared = loss_and_gradient(recipe.objective, flow, draw)
        assert passes == ([16, 2 * free, 16, 16] if dropout else [16, 16 + free, 16])
        passes.clear()
        alone = loss_and_gradient(separately(recipe), flow, draw)
        assert passes == [16, (free if dropout else jumping) + free, 16, 16]
        assert all(torch.equal(one, other) for one, other in zip(shared, alone, strict=True))


@pytest.mark.parametrize("target", [Direct(), Along()])
def test_the_head_learns_the_velocity_of_other_targets(target: Direct | Along) -> None:
    flow, draw = headed(told=False), replace(told_draw(), guidance=None)
    law = Diagonal() if isinstance(target, Direct) else Sorted()
    draw = draw.with_times(Times(draw.times.t, draw.times.t, draw.times.t)) if law == Diagonal() else draw
    objective = Objective(times=law, target=target, velocity_head=True)
    loss, slope = loss_and_gradient(objective, flow, draw)
    output, head = flow.predict_both(draw.x_t, draw.times.t, draw.times.r, draw.condition)
    v = draw.eps - draw.x
    want = (output - v).square().mean(1) + (head - v).square().mean(1)
    close(loss, want.detach(), 1e-11)
    close(slope, gradient(want.mean(), flow.network), 1e-11)


def test_both_heads_and_the_derivative_share_the_dropout_masks() -> None:
    """Another seed is another thinned network, the same seed the same, whatever ran in between."""
    flow = headed(dropout=0.5, told=False).train()
    objective = Objective(times=Sorted(), target=Tangent(direction=Own(head=True)), velocity_head=True)
    draw = replace(told_draw(), guidance=None, dropout_seed=3)
    first, again = (objective.evaluate(flow, flow, draw).loss for _ in range(2))
    close(first, again, 0)
    assert (objective.evaluate(flow, flow, replace(draw, dropout_seed=4)).loss != first).all()


# ------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: FadingGuidance(mix=0.0), "FadingGuidance: mix = 0.0 is impossible"),
        (lambda: FadingGuidance(edge=1.0), "edge = 1.0"),
        (lambda: FadingGuidance(rate=0.0), "rate = 0.0"),
        (lambda: FadingGuidance(base=Guided()), "FadingGuidance: the base velocity is guided already"),
        (lambda: GuidanceAsInput(base=FadingGuidance()), "GuidanceAsInput: the base velocity is guided already"),
        (lambda: PowerGuidance(highest=1.0), "highest must be above 1, got 1.0"),
    ],
)
def test_impossible_settings_are_refused(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ShortflowError, match=message):
        build()


def test_what_a_network_lacks_is_named() -> None:
    flow, draw = headed(told=False), replace(told_draw(), guidance=None)
    with pytest.raises(IncompatibleParts, match=r"set objective.guidance"):
        GuidanceAsInput()(flow, draw)
    plain = table(column(0, 1, 2, 3, 4))
    with pytest.raises(IncompatibleParts, match="build it with velocity_head=True"):
        plain.predict_both(draw.x_t, draw.times.t, draw.times.r, draw.label)


def test_guidance_in_words_and_out_again() -> None:
    """A network that is told its guidance carries none; data without classes have none."""
    told = Objective(times=Sorted(), target=Tangent(velocity=GuidanceAsInput(head=False)), guidance=PowerGuidance())
    assert told.guided is None
    plain = told.unconditional()
    assert (plain.target, plain.guidance, plain.label_dropout) == (Tangent(velocity=Conditional()), None, 0.0)
    fading = Objective(
        times=Dyadic(),
        target=Split(direct=Direct(velocity=FadingGuidance()), bootstrap=TwoStep(first=FadingGuidance())),
    )
    assert fading.guided == "training guidance (scale 3 up to t = 0.8, fading above)"
    assert fading.unconditional().target == Split(direct=Direct(), bootstrap=TwoStep())
