"""`diagnose_run`: how far a trained model is from the exact flow of its data, where the error is made, and of which
kind."""

import copy
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from shortflow.config import to_plain
from shortflow.data import Dataset
from shortflow.diagnose.advice import advise_on_run, shares_of
from shortflow.diagnose.known import Known
from shortflow.diagnose.maps import as_map, bound_of, dyadic_times
from shortflow.diagnose.memory import memory
from shortflow.diagnose.ofdata import Looking
from shortflow.diagnose.record import Diagnosis
from shortflow.diagnose.stages import Stages
from shortflow.diagnose.velocities import COLLAPSE
from shortflow.errors import ConfigError
from shortflow.evaluate.transport import wasserstein
from shortflow.flowmap import FlowMap
from shortflow.hub import Model
from shortflow.sample import PushForward, default_sampler, grid_times
from shortflow.theory import FiniteData
from shortflow.theory.bounds import Bound
from shortflow.theory.dimension import learned_dimension, posterior_dimension
from shortflow.theory.estimates import Estimate, mean_of, ratio_of
from shortflow.theory.nodes import level_of
from shortflow.theory.residuals import boundary_error, eulerian, lagrangian, lipschitz, realised_guidance, semigroup
from shortflow.theory.variance import continuous_floor
from shortflow.typing import Report, expand

__all__ = ["diagnose_run"]

SMALL = 4_000_000  # weights up to which a network is asked in double precision
CELLS = (0.1, 0.3, 0.5, 0.7, 0.85, 0.95)
SHARES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128)
TIGHT = 16  # rows whose largest singular values are sought
PAIRED = 512  # points of an exact distance at most


def diagnose_run(
    model: Model,
    training: Dataset,
    held_out: Dataset | None = None,
    *,
    looking: Looking = Looking(),
    report: Report | None = None,
) -> Diagnosis:
    """The diagnosis of a trained model against the exact law of its training data.

    Args:
        training: what it was trained on.
        held_out: other data of the same kind; None: nothing is said of memorised data, nor of the true distance.
        report: is told (done, in all).

    Raises:
        ConfigError: if the data are not of the shape of the model's.
    """
    if training.shape != model.spec.shape:
        raise ConfigError(f"the model makes samples of shape {model.spec.shape}, the data have {training.shape}")
    run = _Run(model, training, looking)
    d = Diagnosis(kind="run", settings=run.settings())
    stages = Stages([6, 5, 2, 1, 1, 2, 1], report)
    run.bound(d, held_out, stages.next())
    run.residuals(d, stages.next())
    run.velocities(d, stages.next())
    run.self_distance(d, stages.next())
    run.stretch(d, stages.next())
    if held_out is not None:
        memory(d, model, training, held_out, looking, stages.next())
    stages.done()
    run.notes(d, held_out)
    advise_on_run(d)
    return d


class _Run:
    """A model, the law of its data, and numbers that all measurements share."""

    def __init__(self, model: Model, training: Dataset, looking: Looking) -> None:
        self.model, self.training, self.looking = model, training, looking
        size = sum(weight.numel() for weight in model.flow.parameters())
        classes = training.labels is not None and model.flow.num_classes > 0
        k = looking.known(training, model.spec, model.flow.path, classes)
        if size > SMALL and k.x.dtype == torch.float64:
            k = _single(k)
        self.k: Known = k
        self.flow: FlowMap = copy.deepcopy(model.flow).to(k.x.device, k.x.dtype).eval()
        self.map = as_map(self.flow)
        self.low, self.high = self.flow.span
        self.generator = torch.Generator().manual_seed(looking.seed)
        self.collapse = self._collapse()

    def settings(self) -> dict[str, Any]:
        model, k = self.model, self.k
        return {
            "model": str(model.path),
            "images_seen": model.images,
            "recipe": model.run.recipe.name,
            "data": self.training.name,
            "law": k.words,
            "closed": k.closed,
            "shape": list(model.spec.shape),
            "classes": self.flow.num_classes,
            "path": to_plain(self.flow.path),
            "ends": self.flow.ends,
            "span": [self.low, self.high],
            "guided": self.flow.guided,
            "points": self.looking.points,
            "flow_points": self.looking.flow_points,
            "rows": k.rows(self.looking.rows, flows=True),
            "flow_rows": k.rows(self.looking.flow_rows, flows=True),
            "seed": self.looking.seed,
            "precision": str(k.x.dtype).removeprefix("torch."),
            "most_steps": COUNTS[-1],
        }

    def told(self, label: Int[Tensor, "n"] | None, n: int) -> Int[Tensor, "n"] | None:
        """What the network is told: the class, or that there is none."""
        if self.flow.num_classes == 0:
            return None
        if label is None and self.flow.null_label is not None:
            return torch.full((n,), self.flow.null_label, device=self.k.x.device)
        return label

    def full(self, n: int, time: float) -> Float[Tensor, "n"]:
        return torch.full((n,), time, dtype=self.k.x.dtype, device=self.k.x.device)

    def times(self, shares: tuple[float, ...]) -> list[float]:
        """The times of noise levels that the network knows."""
        top = float(level_of(self.flow.path, torch.tensor([self.high], dtype=torch.float64)))
        known = [share for share in shares if share / (1 - share) < top]
        low = max(self.low, self.flow.lowest)
        return [t for t in self.k.times(torch.tensor(known, dtype=torch.float64)).tolist() if t > low]

    # ------------------------------------------------------------------------------------------------------- the bound

    def bound(self, d: Diagnosis, held_out: Dataset | None, report: Report) -> None:
        """The bound beside the distance, and the rate at which the error is made."""
        k, n = self.k, self.k.rows(self.looking.rows, flows=True)
        x, _, _, label = k.noisy(self.full(n, self.high), self.generator, flows=True)
        law = k.flows if k.label is not None else _free(k.flows)
        if self.flow.num_classes and label is None:  # the network is told that there is no class
            label = self.told(None, n)
        found, kind = bound_of(self.flow, law, x, label=label, report=report)
        order = sorted(range(len(found.times)), key=lambda i: found.times[i])
        times = [found.times[i] for i in order]
        words = "of each halving of t" if kind == "discrete" else "(E‖D_t X_{t,r}‖²)^½"
        d.curve(
            "error_rate", times, [found.terms[i] for i in order], f"where the error is made: {words}", "network units"
        )
        parts = [found.weights[i] * found.terms[i].value for i in order]
        times, parts = [*times, self.flow.lowest], [*parts, found.rest.value]
        below = sum(part for time, part in zip(times, parts, strict=True) if time < self.collapse)
        d.settings["error_below"] = below / sum(parts) if sum(parts) > 0 else 0.0
        d.settings["error_shares"] = shares_of(times, parts, self.collapse)
        spread = float((k.x - k.x.mean(0)).square().flatten(1).sum(1).mean().sqrt())
        d.scalar("bound", Estimate(found.value, found.error), "bound on the W₂ of one step", "network units")
        d.scalar(
            "distance", found.distance, "distance of one step to the exact end of the same noise (rms)", "network units"
        )
        d.scalar("holds", float(found.holds), "the distance is below the bound (1: yes)")
        d.scalar("spread", spread, "root mean square distance of the data from their mean", "network units")
        self._true(d, found, held_out)

    def _true(self, d: Diagnosis, found: Bound, held_out: Dataset | None) -> None:
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
        rows = torch.randperm(len(held_out), generator=self.generator)[: 2 * len(made)].sort().values.numpy()
        real = self.model.spec.encode(held_out.take(rows)).flatten(1).double()
        real = real[torch.randperm(len(real), generator=self.generator)]
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

    # --------------------------------------------------------------------------------------------------- the residuals

    def residuals(self, d: Diagnosis, report: Report) -> None:
        """Semigroup, Eulerian and Lagrangian residuals by cell, with the noise of the target there."""
        if self.flow.ends == "dyadic":
            self._dyadic(d)
            return
        if self.flow.ends != "any":
            d.notes.append(
                "The network knows jumps to one end only: none in between could disagree, so there are no residuals by "
                "cell; the Eulerian one of its own end is the rate of the error."
            )
            return
        starts, ends = self.times(CELLS), [self.low, *self.times(CELLS)]
        names = ("semigroup", "eulerian", "own", "lagrangian", "noise")
        maps: dict[str, dict[tuple[int, int], float]] = {name: {} for name in names}
        n = self.k.rows(self.looking.flow_rows, flows=True)
        for i, t in enumerate(starts):
            report(i, len(starts))
            time = self.full(n, t)
            x_t, x, eps, label = self.k.noisy(time, self.generator)
            told = self.told(label, n)
            v, own = self.k.law.velocity(x_t, time, label), self.flow.velocity(x_t, time, told)
            for j, r in enumerate(ends):
                if r >= t:
                    continue
                end = self.full(n, r)
                cell = i, j
                maps["semigroup"][cell] = float(semigroup(self.flow, x_t, time, (time + end) / 2, end, told).mean())
                maps["eulerian"][cell] = float(eulerian(self.flow, x_t, time, end, v, told).mean())
                maps["own"][cell] = float(eulerian(self.flow, x_t, time, end, own, told).mean())
                if r > self.low or self.k.closed:  # at t = 0 a finite set has velocities at its points only
                    maps["lagrangian"][cell] = float(
                        lagrangian(
                            self.flow, x_t, time, end, lambda x, t, label=label: self.k.law.velocity(x, t, label), told
                        ).mean()
                    )
                floor = continuous_floor(self.flow, self.k.law, x, eps, time, end, label, told)
                maps["noise"][cell] = float(floor.mean()) / self.k.dimension
        words = {
            "semigroup": "semigroup: ‖X_{s,r}∘X_{t,s} − X_{t,r}‖²/((t − r)² D), s in the middle",
            "eulerian": "Eulerian: ‖∂_t X + ∇X v‖²/D with the exact velocity",
            "own": "Eulerian with the network's own velocity",
            "lagrangian": "Lagrangian: ‖∂_r X − v_r(X)‖²/D with the exact velocity",
            "noise": "variance of the target in continuous time, with the network's Jacobian",
        }
        for name in names:
            d.map(f"residual/{name}", starts, ends, maps[name], words[name], "per dimension")
            if name != "noise":
                # Where a finite set has collapsed, its flow is not what the network should do.
                cells = [cell for cell in maps[name] if ends[cell[1]] >= self.collapse] or list(maps[name])
                values = torch.tensor([maps[name][cell] for cell in cells])
                d.scalar(
                    f"mean/{name}",
                    float(values.mean()),
                    f"mean over cells: {words[name].partition(':')[0]}",
                    "per dimension",
                )
        ratio = {
            cell: maps["eulerian"][cell] / maps["noise"][cell] for cell in maps["noise"] if maps["noise"][cell] > 0
        }
        d.map(
            "signal_to_noise",
            starts,
            ends,
            ratio,
            "Eulerian residual over the variance of the target: what is left to learn",
        )

    def _dyadic(self, d: Diagnosis) -> None:
        """The semigroup residual of the jumps that were trained, from the noisy end."""
        n, gaps, found = self.k.rows(self.looking.rows, flows=True), [], []
        for gap in dyadic_times(self.flow)[:-2]:
            t, s, r = (self.full(n, 1 - part * gap) for part in (0.0, 0.5, 1.0))
            x_t, _, _, label = self.k.noisy(t, self.generator)
            gaps.append(gap)
            found.append(mean_of(semigroup(self.flow, x_t, t, s, r, self.told(label, n))))
        d.curve(
            "semigroup",
            gaps,
            found,
            "semigroup: a jump of length d from t = 1 against its halves, over d² D",
            "per dimension",
            x_label="d",
        )
        d.scalar(
            "mean/semigroup",
            sum(each.value for each in found) / len(found),
            "mean over lengths: semigroup",
            "per dimension",
        )

    # -------------------------------------------------------------------------------------------------- the velocities

    def velocities(self, d: Diagnosis, report: Report) -> None:
        """The velocity at r = t against the exact one; its intrinsic dimension; the guidance in the weights."""
        if self.flow.ends == "zero":
            d.notes.append("The network is asked for jumps to the data only: its velocities at r = t mean nothing.")
            return
        k, n = self.k, self.k.rows(self.looking.rows)
        times = self.times(SHARES)
        error, share, learned, exact, along, squares = [], [], [], [], [], []
        for i, t in enumerate(times):
            report(i, len(times))
            time = self.full(n, t)
            x_t, _, _, label = k.noisy(time, self.generator)
            told, v = self.told(label, n), k.law.velocity(x_t, time, label)
            gap = boundary_error(self.flow, x_t, time, v, told)
            error.append(mean_of(gap))
            share.append(ratio_of(gap, v.square().flatten(1).mean(1)))
            learned.append(mean_of(learned_dimension(self.flow, x_t, time, told, self.generator)))
            exact.append(mean_of(posterior_dimension(k.law, x_t, time, label)))
            if label is not None and self.flow.null_label is not None:
                found = realised_guidance(self.flow, x_t, time, told, v - k.law.velocity(x_t, time))
                along.append(found[0])
                squares.append(found[1])
        d.curve("boundary", times, error, "velocity at r = t: ‖u_{t,t} − v_t‖²/D", "per dimension")
        known = [each.value for each, t in zip(error, times, strict=True) if t >= self.collapse]
        d.curve("boundary_share", times, share, "the same as a share of ‖v_t‖²")
        d.scalar("mean/boundary", sum(known) / len(known), "mean over t: boundary", "per dimension")
        levels = level_of(k.law.path, torch.tensor(times, dtype=torch.float64)).tolist()
        d.curve(
            "dimension/learned",
            levels,
            learned,
            "intrinsic dimension over noise levels: of the network's velocity",
            x_label="η = σ/α",
        )
        d.curve(
            "dimension/exact",
            levels,
            exact,
            "intrinsic dimension over noise levels: of the exact velocity",
            x_label="η = σ/α",
        )
        if along:
            d.curve(
                "guidance",
                times,
                [ratio_of(a, b) for a, b in zip(along, squares, strict=True)],
                "guidance scale in the weights",
            )
            weights = [1 / float(each.mean()) for each in squares]
            scaled = [torch.cat([a * w for a, w in zip(part, weights, strict=True)]) for part in (along, squares)]
            d.scalar("guidance", ratio_of(scaled[0], scaled[1]), "guidance scale in the weights, mean over t")

    # ------------------------------------------------------------------------------------------------ jumps by number

    def self_distance(self, d: Diagnosis, report: Report) -> None:
        """How far the ends of N jumps are from those of the most, from the same noise."""
        if isinstance(default_sampler(self.flow), PushForward) is False:
            d.notes.append(
                "The sampler of this network adds noise between jumps: there is no distance of one step to many."
            )
            return
        n = self.k.rows(self.looking.rows, flows=True)
        eps = torch.randn(1, n, *self.model.spec.shape, generator=self.generator, dtype=self.k.x.dtype).to(
            self.k.x.device
        )
        _, label = self.k.draw(n, self.generator, flows=True)
        told, ends = self.told(label, n), {}
        with torch.no_grad():
            for i, count in enumerate(COUNTS):
                report(i, len(COUNTS))
                ends[count] = PushForward().run(self.flow, eps, grid_times(self.flow, count), told)
        last = ends[COUNTS[-1]]
        found = [mean_of((ends[count] - last).square().flatten(1).mean(1)) for count in COUNTS[:-1]]
        d.curve(
            "self_distance",
            COUNTS[:-1],
            found,
            f"squared distance of N steps to {COUNTS[-1]} from the same noise",
            "per dimension",
            x_label="steps",
        )
        d.scalar(
            "sample_spread",
            float((last - last.mean(0)).square().mean()),
            f"variance of samples in {COUNTS[-1]} steps",
            "per dimension",
        )

    def stretch(self, d: Diagnosis, report: Report) -> None:
        """The largest singular values of the jump to the data and of its average velocity."""
        times, n = self.times(CELLS), TIGHT
        jump, rate = [], []
        for i, t in enumerate(times):
            report(i, len(times))
            time, end = self.full(n, t), self.full(n, self.low)
            if self.flow.ends == "dyadic":
                time = self.full(n, t := min(dyadic_times(self.flow)[:-1], key=lambda each: abs(each - t)))
                times[i] = t
            x_t, _, _, label = self.k.noisy(time, self.generator)
            told = self.told(label, n)

            def moved(x: Tensor, time: Tensor = time, end: Tensor = end, told: Tensor | None = told) -> Tensor:
                return self.map(x, time, end, told)

            def average(x: Tensor, time: Tensor = time, end: Tensor = end, told: Tensor | None = told) -> Tensor:
                return (self.map(x, time, end, told) - x) / expand(end - time, x)

            jump.append(mean_of(lipschitz(moved, x_t)))
            rate.append(mean_of(lipschitz(average, x_t)))
        d.curve("stretch", times, jump, "largest singular value of ∇X_{t,0}: how the jump to the data stretches")
        d.curve(
            "lipschitz", times, rate, "largest singular value of ∇u_{t,0}: a Lipschitz constant of the average velocity"
        )

    # ------------------------------------------------------------------------------------------------------------ notes

    def notes(self, d: Diagnosis, held_out: Dataset | None) -> None:
        d.scalar("collapse_time", self.collapse, COLLAPSE)
        if self.model.spec.image:
            d.notes.append("Distances are those of pixels, as the network sees them.")
        if self.flow.guided is not None:
            d.notes.append(
                f"The model carries {self.flow.guided}: its target is not the law of the data; distances contain that."
            )
        if held_out is None:
            d.notes.append("There are no held-out data: nothing is said of memorised data.")

    def _collapse(self) -> float:
        law, n = self.k.law, 64
        if not isinstance(law, FiniteData):
            return 0.0
        low, high = 0.0, 1.0
        for _ in range(8):
            middle = (low + high) / 2
            x_t, _, _, label = self.k.noisy(self.full(n, middle), torch.Generator().manual_seed(self.looking.seed))
            weight = float(law.responsibilities(x_t, self.full(n, middle), label).max(1).values.mean())
            low, high = (middle, high) if weight > 0.5 else (low, middle)
        return high


def _single(k: Known) -> Known:
    """The same in single precision."""

    def law_of(law: Any) -> Any:
        return replace(law, points=law.points.float()) if isinstance(law, FiniteData) else law

    return Known(law=law_of(k.law), flows=law_of(k.flows), x=k.x.float(), label=k.label, closed=k.closed, words=k.words)


def _free(law: Any) -> Any:
    """The law without classes."""
    return replace(law, labels=None) if getattr(law, "labels", None) is not None else law
