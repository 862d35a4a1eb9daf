"""The bound on what one step misses, beside the distance, and the rate at which the error is made."""

import torch

from shortflow.data import Dataset
from shortflow.diagnose.advice import shares_of
from shortflow.diagnose.maps import bound_of
from shortflow.diagnose.record import Diagnosis
from shortflow.diagnose.subject import Subject, without_classes
from shortflow.evaluate.transport import wasserstein
from shortflow.theory.bounds import Bound
from shortflow.theory.estimates import Estimate
from shortflow.typing import Report

__all__ = ["bound"]

PAIRED = 512  # points of an exact distance at most


def bound(d: Diagnosis, s: Subject, held_out: Dataset | None, report: Report) -> None:
    """The bound beside the distance, and the rate at which the error is made."""
    k, n = s.k, s.k.rows(s.looking.rows, flows=True)
    x, _, _, label = k.noisy(s.full(n, s.high), s.generator, flows=True)
    law = k.flows if k.label is not None else without_classes(k.flows)
    told = s.told(None, n) if label is None else label  # the network is told that there is no class
    found, kind = bound_of(s.flow, law, x, label=told, report=report)
    order = sorted(range(len(found.times)), key=lambda i: found.times[i])
    times = [found.times[i] for i in order]
    words = "of each halving of t" if kind == "discrete" else "(E‖D_t X_{t,r}‖²)^½"
    d.curve("error_rate", times, [found.terms[i] for i in order], f"where the error is made: {words}", "network units")
    parts = [found.weights[i] * found.terms[i].value for i in order]
    times, parts = [*times, s.flow.lowest], [*parts, found.rest.value]
    below = sum(part for time, part in zip(times, parts, strict=True) if time < s.collapse)
    d.settings["error_below"] = below / sum(parts) if sum(parts) > 0 else 0.0
    d.settings["error_shares"] = shares_of(times, parts, s.collapse)
    spread = float((k.x - k.x.mean(0)).square().flatten(1).sum(1).mean().sqrt())
    d.scalar("bound", Estimate(found.value, found.error), "bound on the W₂ of one step", "network units")
    d.scalar(
        "distance", found.distance, "distance of one step to the exact end of the same noise (rms)", "network units"
    )
    d.scalar("holds", float(found.holds), "the distance is below the bound (1: yes)")
    d.scalar("spread", spread, "root mean square distance of the data from their mean", "network units")
    _true(d, s, found, held_out)


def _true(d: Diagnosis, s: Subject, found: Bound, held_out: Dataset | None) -> None:
    """W₂ of samples: to the exact ends of the same noise, to held-out data, and of held-out data among
    themselves."""
    made, exact = (each.flatten(1).double().cpu()[:PAIRED] for each in (found.made, found.exact))
    d.scalar(
        "w2/ends",
        wasserstein(made, exact),
        f"W₂ of {len(made)} samples to the exact ends of the same noise",
        "network units",
    )
    if held_out is None or len(held_out) < 2 * len(made):
        return
    rows = torch.randperm(len(held_out), generator=s.generator)[: 2 * len(made)].sort().values.numpy()
    real = s.model.spec.encode(held_out.take(rows)).flatten(1).double()
    real = real[torch.randperm(len(real), generator=s.generator)]
    d.scalar(
        "w2/held_out",
        wasserstein(made, real[: len(made)]),
        f"W₂ of {len(made)} samples to as many held-out points",
        "network units",
    )
    d.scalar(
        "w2/real",
        wasserstein(real[: len(made)], real[len(made) :]),
        "the same of held-out points to others: what chance makes of it",
        "network units",
    )
