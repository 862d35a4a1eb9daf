"""What several tests of training steps share: small networks, draws with all they need, exact velocities, gradients.

Everything is float64.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from shortflow.draw import Draw, References
from shortflow.flowmap import EDM, FlowMap, LogSigma, Transfer
from shortflow.nn import MLP
from shortflow.objective import Objective
from shortflow.paths import Path, VarianceExploding
from shortflow.recipe import Recipe
from shortflow.streams import Streams
from shortflow.theory import Law
from shortflow.typing import Batch, Progress, Times
from shortflow.velocity import Velocity

NULL = 4
"""The label for no class in networks of four classes."""


@dataclass(frozen=True, kw_only=True)
class Marginal(Velocity):
    """The exact marginal velocity of a law."""

    law: Law

    def __call__(self, teacher: FlowMap, draw: Draw) -> Tensor:
        return self.law.velocity(draw.x_t, draw.times.t, draw.condition if self.law.num_classes else None)


def draw_at(
    path: Path,
    x: Tensor,
    eps: Tensor,
    t: Tensor,
    r: Tensor,
    s: Tensor | None = None,
    *,
    x_t: Tensor | None = None,
    label: Tensor | None = None,
    dropped: Tensor | None = None,
    null_label: int | None = None,
    progress: Progress = Progress(images=1),
) -> Draw:
    """A draw with everything given; s = t where it is left out, and any x_t where only the marginal matters."""
    return Draw(
        x=x,
        eps=eps,
        x_t=path.interpolate(x, eps, t) if x_t is None else x_t,
        times=Times(t, t if s is None else s, r),
        label=label,
        dropped=torch.zeros(len(x), dtype=torch.bool) if dropped is None else dropped,
        coin=torch.zeros(len(x)),
        null_label=null_label,
        progress=progress,
    )


def randomize(network: nn.Module, seed: int = 1) -> nn.Module:
    """The network in float64 with all weights drawn anew: networks start as the zero function, which tests nothing."""
    generator = torch.Generator().manual_seed(seed)
    network = network.double()
    with torch.no_grad():
        for weight in network.parameters():
            fan = weight.shape[-1] if weight.ndim > 1 else 4
            weight.copy_(torch.randn(weight.shape, generator=generator, dtype=torch.float64) / fan**0.5)
    return network


def mlp(d: int = 3, seed: int = 1, width: int = 16, depth: int = 2, **settings: object) -> nn.Module:
    return randomize(MLP(shape=(d,), width=width, depth=depth, **settings), seed)  # pyright: ignore[reportArgumentType]


def needed(recipe: Recipe, classes: int = 4) -> dict[str, Any]:
    """The settings of the network that a recipe needs for data with so many classes (0: none)."""
    return {
        "num_classes": classes,
        "null_class": recipe.null_class and classes > 0,
        "second_time": recipe.conditioning.second,
        "log_variance": recipe.log_variance,
        "guidance": recipe.objective.guidance is not None,
        "velocity_head": recipe.objective.velocity_head,
    }


def network_for(recipe: Recipe, classes: int = 4, d: int = 3, seed: int = 1, dropout: float = 0.0) -> nn.Module:
    """The small network that a recipe needs."""
    return mlp(d, seed, dropout=dropout, **needed(recipe, classes))


def frozen(path: Path, network: nn.Module) -> FlowMap:
    """A model on the path that targets may ask for velocities and for jumps, as `references` hands it to them."""
    if isinstance(path, VarianceExploding):  # where points are large and networks want them scaled
        flow = FlowMap(network, path, EDM(), LogSigma(), sigma_data=0.5)
    else:
        flow = FlowMap(network, path, Transfer())
    return flow.requires_grad_(False).eval()


def references_for(recipe: Recipe, classes: int = 4, d: int = 3) -> References:
    """The frozen models that a recipe follows, with weights of their own, for data with so many classes."""
    second = not isinstance(recipe.path, VarianceExploding)
    built = {
        role: frozen(recipe.path, mlp(d, seed, num_classes=classes, null_class=classes > 0, second_time=second))
        for role, seed in (("teacher", 11), ("weak", 12))
        if role in recipe.objective.needs
    }
    return References(**built)


def gradient(loss: Tensor, module: nn.Module) -> Tensor:
    """The gradient of a number with respect to all weights, in one vector; zeros where there is none."""
    weights = list(module.parameters())
    found = torch.autograd.grad(loss, weights, allow_unused=True)
    return torch.cat(
        [(torch.zeros_like(weight) if g is None else g).flatten() for weight, g in zip(weights, found, strict=True)]
    )


def loss_and_gradient(
    objective: Objective, flow: FlowMap, draw: Draw, teacher: FlowMap | None = None
) -> tuple[Tensor, Tensor]:
    """(loss of every row, gradient of their mean)."""
    loss = objective.evaluate(flow, teacher or flow, draw).loss
    return loss.detach(), gradient(loss.mean(), flow.network)


def close(got: Tensor, want: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


def batch(n: int = 16, d: int = 3, labels: bool = True, seed: int = 0, pairs: bool = False) -> Batch:
    """n standard normal points, of four classes; with `pairs` the noise that they are coupled with, too."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    label = torch.randint(0, 4, (n,), generator=generator) if labels else None
    eps = (x + torch.randn(n, d, generator=generator, dtype=torch.float64)) / 2**0.5 if pairs else None
    return Batch(x=x, label=label, eps=eps)


EARLY, MIDDLE = Progress(images=13, total=1000), Progress(images=500, total=1000)
"""A little into the run: inside every warm-up. In the middle: every schedule has left its beginning."""


def drawn(
    recipe: Recipe,
    n: int = 16,
    labels: bool = True,
    streams: Streams = Streams(seed=3),
    progress: Progress = EARLY,
    given: Batch | None = None,
) -> Draw:
    """A draw of the recipe for `given`, by default `batch`, with the frozen models that the recipe follows."""
    given = batch(n, labels=labels, pairs="pairs" in recipe.objective.needs) if given is None else given
    classes = 0 if given.label is None else NULL
    null = NULL if recipe.null_class and classes else None
    references = references_for(recipe, classes, given.x[0].numel())
    return recipe.objective.draw(given, recipe.path, streams, progress, null, references)


def taken(draw: Draw, rows: Tensor) -> Draw:
    """The draw of the chosen rows, in their order."""
    names = ("x", "eps", "x_t", "label", "dropped", "coin", "guidance")
    changes = {name: None if getattr(draw, name) is None else getattr(draw, name)[rows] for name in names}
    return replace(draw, **changes, times=draw.times.take(rows), jumps=None)


def flow_of(recipe: Recipe, classes: int = 4, seed: int = 1, dropout: float = 0.0) -> FlowMap:
    """The flow map of the recipe with a small random network."""
    return recipe.flow_map(network_for(recipe, classes, seed=seed, dropout=dropout))
