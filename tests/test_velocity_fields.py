"""Velocities that are known everywhere: the network's own, and that of a frozen teacher with its guidance."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from exactmaps import T, X, exact, gauss, points
from heads import headed, told_draw
from oracles import column, f64
from shortflow.draw import Draw, References
from shortflow.dropout import no_dropout, shared_dropout
from shortflow.errors import IncompatibleParts
from shortflow.flowmap import AverageVelocity, FlowMap, Transfer, TrigFlow
from shortflow.objective import Objective
from shortflow.paths import Cosine, Linear, Path
from shortflow.targets import Direct
from shortflow.times import Diagonal
from shortflow.velocity import Own, Reference
from steps import NULL, close, draw_at, mlp


class Table(nn.Module):
    """One output for each class; remembers the classes it was asked for."""

    def __init__(self, *values: float, null: bool = True) -> None:
        super().__init__()
        self.values, self.asked = column(*values), []
        self.num_classes = len(values) - 1 if null else len(values)
        self.null_label = self.num_classes if null else None

    def forward(self, x: Tensor, time: Tensor, second: Tensor, label: Tensor | None = None) -> Tensor:
        assert (label is None) == (self.num_classes == 0)
        self.asked.append(None if label is None else label.tolist())
        return (self.values[0] if label is None else self.values[label]).expand_as(x)


def table(*values: float, null: bool = True, path: Path = Linear()) -> FlowMap:
    return FlowMap(Table(*values, null=null), path, AverageVelocity())


STUDENT = FlowMap(nn.Identity(), Linear(), AverageVelocity())
TIMES = f64(0.1, 0.3, 0.8, 0.9)


def draw_of(references: References, labels: bool = True, dropped: Tensor | None = None) -> Draw:
    """Classes 0, 1, 0, 1 at four times."""
    x = torch.zeros(4, 1, dtype=torch.float64)
    label = torch.tensor([0, 1, 0, 1]) if labels else None
    draw = draw_at(Linear(), x, x, TIMES, 0 * TIMES, label=label, dropped=dropped, null_label=7 if labels else None)
    return replace(draw, references=references)


HIDDEN = torch.tensor([False, False, False, True])


# ------------------------------------------------------------------------------------------------------ reference


@pytest.mark.parametrize("form", [AverageVelocity(), Transfer()])
def test_the_velocity_of_an_exact_teacher_is_the_exact_velocity_everywhere(form: AverageVelocity) -> None:
    path = Cosine()
    law = gauss(path)
    draw = replace(points(path), references=References(teacher=exact(law, form)))
    close(Reference()(STUDENT, draw), law.velocity(X, T), 1e-12)
    rows, x, t = torch.tensor([2, 0]), column(0.4, -2.0), f64(0.3, 0.0)
    close(Reference().field(STUDENT, draw, rows, x, t), law.velocity(x, t), 1e-12)


def test_a_teacher_in_other_units_is_asked_for_its_velocity() -> None:
    """A TrigFlow teacher's output is not a velocity; its velocity is (π/2) σ_d F."""
    path = Cosine(noise_scale=0.5)
    teacher = FlowMap(Table(3.0, null=False), path, TrigFlow(), sigma_data=0.5)
    teacher.network.num_classes = 0
    draw = draw_of(References(teacher=teacher), labels=False)
    close(Reference()(STUDENT, draw), column(*[3 * math.pi / 4] * 4), 1e-12)


def test_guidance_of_the_teacher() -> None:
    """v_∅ + w (v_c − v_∅) in the closed window, on rows with a class; its own null class on the others."""
    teacher = table(2.0, 5.0, 1.0)
    draw = draw_of(References(teacher=teacher), dropped=HIDDEN)
    got = Reference(guidance=3.0, window=(0.3, 0.8))(STUDENT, draw)
    close(got, column(2, 1 + 3 * 4, 1 + 3 * 1, 1))
    assert isinstance(teacher.network, Table)
    assert teacher.network.asked == [[0, 1, 0, 2], [2, 2]]
    close(Reference(guidance=0.0)(STUDENT, draw), column(1, 1, 1, 1))
    close(Reference()(STUDENT, draw), column(2, 5, 2, 1))
    outside = Reference(guidance=3.0, window=(0.95, 1.0))
    teacher.network.asked.clear()
    close(outside(STUDENT, draw), column(2, 5, 2, 1))
    assert len(teacher.network.asked) == 1


def test_the_window_is_that_of_the_point_asked_for_and_not_of_the_row() -> None:
    """At the end of a jump or of Heun's first half it is another time."""
    draw = draw_of(References(teacher=table(2.0, 5.0, 1.0)))
    rows, x = torch.tensor([1, 2]), column(0.0, 0.0)
    got = Reference(guidance=3.0, window=(0.3, 0.8)).field(STUDENT, draw, rows, x, f64(0.2, 0.5))
    close(got, column(5, 1 + 3 * 1))


def test_autoguidance_by_a_weaker_model() -> None:
    """v_weak + λ (v − v_weak), after the guidance by class; each model is told its own classes."""
    draw = draw_of(References(teacher=table(2.0, 5.0, 1.0), weak=table(0.5, 0.5, 0.25)), dropped=HIDDEN)
    close(Reference(autoguidance=2.0)(STUDENT, draw), column(3.5, 9.5, 3.5, 1.75))
    close(Reference(guidance=3.0, autoguidance=2.0)(STUDENT, draw), column(7.5, 25.5, 7.5, 1.75))
    unconditional = replace(draw, references=References(teacher=table(2.0, 5.0, 1.0), weak=table(0.5, null=False)))
    assert unconditional.references.weak is not None
    unconditional.references.weak.network.num_classes = 0
    close(Reference(autoguidance=2.0)(STUDENT, unconditional), column(3.5, 9.5, 3.5, 1.5))


def test_what_each_kind_of_teacher_is_told() -> None:
    """No null class: the class itself also where it is hidden (unbiased: its mean over classes is v). No classes: None.
    No labels: no class."""
    teacher = table(2.0, 5.0, null=False)
    close(Reference()(STUDENT, draw_of(References(teacher=teacher), dropped=HIDDEN)), column(2, 5, 2, 5))
    with pytest.raises(IncompatibleParts, match="the teacher has no null class"):
        Reference(guidance=2.0)(STUDENT, draw_of(References(teacher=teacher)))
    plain = table(4.0, null=False)
    plain.network.num_classes = 0
    for labels in (True, False):
        close(Reference(guidance=2.0)(STUDENT, draw_of(References(teacher=plain), labels)), column(4, 4, 4, 4))


def test_teachers_run_without_dropout_and_without_gradient() -> None:
    teacher = FlowMap(mlp(dropout=0.5, num_classes=4, null_class=True), Linear(), AverageVelocity()).train()
    x = torch.randn(4, 3, dtype=torch.float64)
    draw = draw_at(Linear(), x, x.flip(0), TIMES, 0 * TIMES, label=torch.arange(4), null_label=NULL)
    draw = replace(draw, references=References(teacher=teacher))
    with shared_dropout(3, 4):
        got = Reference(guidance=2.0)(STUDENT, draw)
    assert not got.requires_grad
    with torch.no_grad(), no_dropout():
        c, null = (teacher.velocity(draw.x_t, TIMES, y) for y in (torch.arange(4), torch.full((4,), NULL)))
    close(got, null + 2 * (c - null), 1e-13)


def test_references_that_are_missing_are_asked_for() -> None:
    with pytest.raises(IncompatibleParts, match="pass --teacher RUN"):
        Reference()(STUDENT, draw_of(References()))
    with pytest.raises(IncompatibleParts, match="pass --weak RUN"):
        Reference(autoguidance=2.0)(STUDENT, draw_of(References(teacher=table(2.0, 5.0, 1.0))))
    with pytest.raises(IncompatibleParts, match=r"Reference: the guidance window \[0.5, 0.5\] is empty"):
        Reference(window=(0.5, 0.5))


def test_needs_and_notes() -> None:
    def objective(**settings: float) -> Objective:
        return Objective(times=Diagonal(), target=Direct(velocity=Reference(**settings)))  # pyright: ignore

    assert objective().needs == {"teacher"}
    assert objective(autoguidance=2.0).needs == {"teacher", "weak"}
    assert objective().guided is None
    guided = objective(guidance=2.0)
    assert guided.guided == "training guidance (scale 2 of the teacher)"
    assert guided.unconditional().target == Direct(velocity=Reference())
    close_to = objective(autoguidance=2.0).unconditional().target
    assert close_to == Direct(velocity=Reference(autoguidance=2.0))


# ------------------------------------------------------------------------------------------------------------ own


def test_own_velocity_is_that_of_the_weights_that_make_targets() -> None:
    flow = headed(told=False)
    draw = replace(told_draw(), guidance=None)
    t, rows = draw.times.t, torch.tensor([4, 2])
    got = Own()(flow, draw)
    assert not got.requires_grad
    close(got, flow.velocity(draw.x_t, t, draw.condition).detach(), 1e-13)
    close(Own(head=True)(flow, draw), flow.predict_both(draw.x_t, t, t, draw.condition)[1].detach(), 1e-13)
    x, later = draw.x_t[rows] + 1, f64(0.2, 0.3)
    assert draw.condition is not None
    close(Own().field(flow, draw, rows, x, later), flow.velocity(x, later, draw.condition[rows]).detach(), 1e-13)


def test_own_velocity_has_the_dropout_masks_of_its_rows() -> None:
    flow = headed(told=False, dropout=0.5).train()
    draw = replace(told_draw(), guidance=None, dropout_seed=5)
    whole, rows = Own()(flow, draw), torch.tensor([3, 1])
    close(Own().on(flow, draw, rows), whole[rows], 1e-13)
    assert (Own()(flow, replace(draw, dropout_seed=6)) != whole).any()
