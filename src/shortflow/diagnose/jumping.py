"""One jump against many, and how jumps stretch space."""

import torch
from torch import Tensor

from shortflow.diagnose.maps import dyadic_times
from shortflow.diagnose.record import Diagnosis
from shortflow.diagnose.subject import CELLS, Subject
from shortflow.errors import SamplerError
from shortflow.flowmap import FlowMap
from shortflow.sample import PushForward, default_sampler, grid_times
from shortflow.theory.estimates import mean_of
from shortflow.theory.residuals import lipschitz
from shortflow.typing import Report, expand

__all__ = ["self_distance", "stretch"]

COUNTS = (1, 2, 4, 8, 16, 32, 64, 128)
TIGHT = 16  # rows whose largest singular values are sought


def self_distance(d: Diagnosis, s: Subject, report: Report) -> None:
    """How far the ends of N jumps are from those of the most, from the same noise."""
    if not isinstance(default_sampler(s.flow), PushForward):
        d.notes.append(
            "The sampler of this network adds noise between jumps: there is no distance of one step to many."
        )
        return
    counts = [count for count in COUNTS if _can(s.flow, count)]
    n = s.k.rows(s.looking.rows, flows=True)
    eps = torch.randn(1, n, *s.model.spec.shape, generator=s.generator, dtype=s.k.x.dtype).to(s.k.x.device)
    _, label = s.k.draw(n, s.generator, flows=True)
    told, ends = s.told(label, n), {}
    with torch.no_grad():
        for i, count in enumerate(counts):
            report(i, len(counts))
            ends[count] = PushForward().run(s.flow, eps, grid_times(s.flow, count), told)
    *fewer, most = counts
    last = ends[most]
    found = [mean_of((ends[count] - last).square().flatten(1).mean(1)) for count in fewer]
    d.settings["most_steps"] = most
    d.curve(
        "self_distance",
        fewer,
        found,
        f"squared distance of N steps to {most} from the same noise",
        "per dimension",
        x_label="steps",
    )
    d.scalar(
        "sample_spread",
        float((last - last.mean(0)).square().mean()),
        f"variance of samples in {most} steps",
        "per dimension",
    )


def _can(flow: FlowMap, count: int) -> bool:
    """Whether the network knows the jumps of so many steps: shortcut models have a smallest one."""
    try:
        PushForward().check(flow, grid_times(flow, count))
    except SamplerError:
        return False
    return True


def stretch(d: Diagnosis, s: Subject, report: Report) -> None:
    """The largest singular values of the jump to the data and of its average velocity."""
    times, n = s.times(CELLS), TIGHT
    jump, rate = [], []
    for i, t in enumerate(times):
        report(i, len(times))
        time, end = s.full(n, t), s.full(n, s.low)
        if s.flow.ends == "dyadic":
            time = s.full(n, t := min(dyadic_times(s.flow)[:-1], key=lambda each: abs(each - t)))
            times[i] = t
        x_t, _, _, label = s.k.noisy(time, s.generator)
        told = s.told(label, n)

        def moved(x: Tensor, time: Tensor = time, end: Tensor = end, told: Tensor | None = told) -> Tensor:
            return s.map(x, time, end, told)

        def average(x: Tensor, time: Tensor = time, end: Tensor = end, told: Tensor | None = told) -> Tensor:
            return (s.map(x, time, end, told) - x) / expand(end - time, x)

        jump.append(mean_of(lipschitz(moved, x_t)))
        rate.append(mean_of(lipschitz(average, x_t)))
    d.curve("stretch", times, jump, "largest singular value of ∇X_{t,0}: how the jump to the data stretches")
    d.curve(
        "lipschitz", times, rate, "largest singular value of ∇u_{t,0}: a Lipschitz constant of the average velocity"
    )
