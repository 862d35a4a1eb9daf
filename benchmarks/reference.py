"""A straightforward ESC step, as published code writes it: the yardstick that the library's step is measured against.

Full-batch forward mode of PyTorch with the tape on, one forward pass for each velocity of the guidance on the rows that
are guided, targets from a copy of the network, and the plug-in velocity by all pairs of images. Forward mode does not
go through fused attention; published code has none in its network for that reason, in no pass, and so the reference has
none. A fused reference has it in all passes but the derivative. Nothing of the library's targets is used; metric and
weights of the loss are shared, because they are not what is measured.
"""

import copy

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel

from shortflow.draw import Draw
from shortflow.flowmap import FlowMap
from shortflow.objective import Objective
from shortflow.products import stock_products

__all__ = ["ReferenceStep"]


def pairwise_plug_in(x: Tensor, x_t: Tensor, eps: Tensor, t: Tensor, allowed: Tensor) -> Tensor:
    """The velocity of the mini-batch on the linear path, through a B × B × D tensor."""
    wide = t.reshape(-1, 1, *[1] * (x.ndim - 1))
    noise = (x_t[:, None] - (1 - wide) * x[None]) / wide  # what noise each image would have needed
    logits = (-0.5 * noise.flatten(2).square().sum(2)).masked_fill(~allowed, -torch.inf)
    weights = torch.softmax(logits, 1)
    return torch.einsum("ij,ij...->i...", weights, noise - x[None])


def _as_it_is(saved: Tensor) -> Tensor:
    """Everything is kept, and nothing computed again, as in published code (without its graph, or it would stay)."""
    return saved.detach()


class ReferenceStep:
    """(draw) → mean loss, for an ESC or MeanFlow objective on the linear path with the average velocity."""

    def __init__(self, flow: FlowMap, objective: Objective, *, fused: bool = False) -> None:
        self.flow, self.objective, self.fused = flow, objective, fused
        self.target = copy.deepcopy(flow)

    def __call__(self, draw: Draw) -> Float[Tensor, ""]:
        with saved_tensors_hooks(_as_it_is, _as_it_is):
            if self.fused:
                return self._loss(draw)
            with sdpa_kernel(SDPBackend.MATH), stock_products():
                return self._loss(draw)

    def _loss(self, draw: Draw) -> Float[Tensor, ""]:
        flow, target = self.flow, self.target
        velocity = self.objective.target.velocity  # type: ignore[attr-defined]
        assert draw.label is not None
        assert draw.null_label is not None
        label = draw.condition
        t, _, r = draw.times
        x_t = draw.x_t

        v = draw.eps - draw.x
        allowed = (draw.label[:, None] == draw.label[None]) | draw.dropped[:, None]
        plug_in = pairwise_plug_in(draw.x, x_t, draw.eps, t, allowed)
        taken = (draw.coin < velocity.base.probability).reshape(-1, *[1] * (v.ndim - 1))
        v = torch.where(taken, plug_in, v)

        low, high = velocity.window
        guided = (~draw.dropped & (t >= low) & (t <= high)).nonzero()[:, 0]
        with torch.no_grad():
            own = target.predict(x_t[guided], t[guided], t[guided], draw.label[guided])
            null = torch.full_like(draw.label[guided], draw.null_label)
            free = target.predict(x_t[guided], t[guided], t[guided], null)
        mixed = velocity.omega * v[guided] + velocity.kappa * own + (1 - velocity.omega - velocity.kappa) * free
        v = v.index_copy(0, guided, mixed)

        with sdpa_kernel(SDPBackend.MATH):
            rate = torch.func.jvp(lambda x, time: target.predict(x, time, r, label), (x_t, t), (v, torch.ones_like(t)))[
                1
            ]
        goal = (v - (t - r).reshape(-1, *[1] * (v.ndim - 1)) * rate).detach()

        prediction = flow.predict(x_t, t, r, label)
        error = self.objective.metric(prediction, goal, flow, draw)
        return self.objective.weighting(error, flow, draw).mean()
