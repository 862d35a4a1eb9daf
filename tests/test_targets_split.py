"""Rows of different kinds take different targets, wherever in the batch they are."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from shortflow.draw import Draw
from shortflow.errors import IncompatibleParts
from shortflow.flowmap import AverageVelocity, FlowMap, Transfer
from shortflow.losses import Adaptive, SquaredError
from shortflow.objective import Objective
from shortflow.paths import Cosine, Linear
from shortflow.targets import Along, Direct, Eulerian, Secant, Split, Tangent, Target, Terminal, TwoStep
from shortflow.times import Dyadic, Sorted
from shortflow.typing import Times
from shortflow.velocity import Own
from steps import close, draw_at, loss_and_gradient, mlp

KINDS = torch.tensor([0, 1, 2, 1, 0, 2, 1, 0])  # r = t, s < t, s = t


def mixed(kinds: Tensor = KINDS, path: Linear | Cosine = Linear(), n: int = 8) -> Draw:
    """Rows of the three kinds; the numbers of a row depend on its place only."""
    generator = torch.Generator().manual_seed(0)
    x, eps = (torch.randn(n, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    t = torch.linspace(0.4, 0.95, n, dtype=torch.float64)
    r = torch.where(kinds == 0, t, 0.4 * t)
    s = torch.where(kinds == 1, 0.5 * (t + r), t)
    return draw_at(path, x, eps, t, r, s)


def permuted(draw: Draw, order: Tensor) -> Draw:
    names = ("x", "eps", "x_t", "dropped", "coin")
    return replace(
        draw, times=Times(*(time[order] for time in draw.times)), **{n: getattr(draw, n)[order] for n in names}
    )


ALPHA_FLOW = Split(bootstrap=TwoStep(solver="euler"), limit=Tangent())
SPLITS = [
    ALPHA_FLOW,
    Split(bootstrap=Secant(clip=1.0), limit=Tangent()),
    Split(direct=Along(), bootstrap=TwoStep(first=None, clip=2.0), limit=Tangent(velocity=Own())),
]
RATES = [Split(bootstrap=Terminal()), Split(bootstrap=Eulerian()), Split(bootstrap=Eulerian(detach_space=False))]


@pytest.mark.parametrize("target", SPLITS, ids=repr)
def test_each_row_has_the_target_of_its_kind(target: Split) -> None:
    """Scattered by index: published code concatenates the kinds, which is right in one order of the rows only."""
    flow, draw = FlowMap(mlp(), Linear(), AverageVelocity()), mixed()
    value = target(flow, draw)
    assert value.space == "output"
    parts = (target.direct, target.bootstrap, target.limit)
    for i, kind in enumerate(KINDS.tolist()):
        part = parts[kind]
        assert part is not None
        alone = permuted(draw, torch.tensor([i]))
        close(value.value[i : i + 1], part(flow, alone).in_space("output", flow, alone), 1e-12)
    assert (~value.logs["tangent"].isnan()).tolist() == (KINDS == 2).tolist()


@given(order=st.permutations(range(8)), which=st.sampled_from([*SPLITS, *RATES]))
@settings(max_examples=40, deadline=None)
def test_the_order_of_the_rows_does_not_matter(order: list[int], which: Split) -> None:
    flow, index = FlowMap(mlp(), Linear(), AverageVelocity()), torch.tensor(order)
    kinds = torch.where(KINDS == 1, 2, KINDS) if which.compares == "rate" else KINDS
    draw = mixed(kinds)
    other = permuted(draw, index)
    close(which(flow, other).value, which(flow, draw).value[index], 1e-12)
    if which.compares == "rate":
        rows = torch.arange(8)
        got, want = which.compared(flow, flow, other, rows), which.compared(flow, flow, draw, rows)
        for one, all_ in zip(got, want, strict=True):
            close(one, all_[index], 1e-12)


@pytest.mark.parametrize("target", RATES, ids=repr)
@pytest.mark.parametrize("form", [AverageVelocity(), Transfer()])
def test_rows_without_a_jump_are_compared_as_velocities_beside_rates(target: Split, form: AverageVelocity) -> None:
    flow, draw = FlowMap(mlp(), Cosine(), form), mixed(torch.where(KINDS == 1, 2, KINDS), Cosine())
    rows = torch.arange(8)
    output, seen = target.compared(flow, flow, draw, rows)
    goal, still = target(flow, draw), KINDS == 0
    assert goal.space == "rate"
    (t, _, r), x = draw.times, draw.x_t
    close(output, flow.predict(x, t, r), 1e-12)
    close(seen[still], flow.velocity(x, t)[still], 1e-12)
    close(goal.value[still], Cosine().velocity(draw.x, draw.eps, t)[still], 1e-12)
    jumps = (~still).nonzero()[:, 0]
    close(seen[jumps], target.bootstrap.compared(flow, flow, draw, jumps)[1], 1e-12)
    close(goal.value[jumps], target.bootstrap.at(flow, draw, jumps).value, 1e-12)


@pytest.mark.parametrize("reduce", ["sum", "mean"])
def test_alpha_flow_at_alpha_zero_is_meanflow(reduce: str) -> None:
    """s = t on every jump: loss and gradient of MeanFlow with the same metric and adaptive weight."""
    flow, draw = FlowMap(mlp(), Linear(), AverageVelocity()), mixed(torch.where(KINDS == 1, 2, KINDS))
    others = {"metric": SquaredError(reduce=reduce), "weighting": Adaptive(), "label_dropout": 0.0}  # type: ignore[arg-type]
    alpha = Objective(times=Dyadic(), target=ALPHA_FLOW, **others)  # type: ignore[arg-type]
    meanflow = Objective(times=Sorted(), target=Tangent(), **others)  # type: ignore[arg-type]
    (loss, slope), (want, want_slope) = (loss_and_gradient(o, flow, draw) for o in (alpha, meanflow))
    close(loss, want, 1e-12)
    close(slope, want_slope, 1e-12)


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_kinds_that_have_no_row_are_not_asked(kind: int) -> None:
    class Never(Target):
        gaps, continuous = ("zero", "positive", "mixed"), None

        def at(self, *_: object, **__: object) -> object:  # type: ignore[override]
            raise AssertionError("there is no such row")

    flow, kinds = FlowMap(mlp(), Linear(), AverageVelocity()), KINDS.clone()
    kinds[kinds == kind] = (kind + 1) % 3
    draw = mixed(kinds)
    names = ("direct", "bootstrap", "limit")
    target = Split(bootstrap=TwoStep(first=None), limit=Tangent())
    object.__setattr__(target, names[kind], Never())
    assert target(flow, draw).value.isfinite().all()


@pytest.mark.parametrize(
    ("parts", "remedy", "message"),
    [
        ({"direct": Split()}, {}, "direct is itself a Split"),
        ({"bootstrap": Split()}, {}, "bootstrap is itself a Split"),
        ({"direct": TwoStep()}, {"direct": Direct()}, "where TwoStep is not defined; use Direct"),
        ({"bootstrap": Direct()}, {"bootstrap": Along()}, "where Direct is not defined"),
        ({"limit": TwoStep()}, {"limit": Tangent()}, "use limit=Tangent"),
        ({"limit": Terminal()}, {"limit": Tangent()}, "use limit=Tangent"),
        ({"bootstrap": Tangent(), "limit": Tangent()}, {"bootstrap": Tangent(), "limit": None}, "or no limit"),
    ],
)
def test_parts_that_do_not_fit_are_refused(parts: dict[str, Target], remedy: dict[str, Target], message: str) -> None:
    with pytest.raises(IncompatibleParts, match=message):
        Split(**parts)
    Split(**remedy)


def test_split_passes_on_what_its_jumps_are() -> None:
    assert (Split(bootstrap=Terminal()).compares, Split().compares) == ("rate", "jump")
    assert (Split(bootstrap=Secant()).quotient, Split(bootstrap=TwoStep()).quotient) == (True, False)
    assert (Split(bootstrap=Secant()).continuous, Split(bootstrap=Terminal()).continuous) == (False, True)
    assert ALPHA_FLOW.velocities() == (Direct().velocity,) * 3
