"""A few-step model from the weights of an old one: at step 0 its velocity is exactly the old velocity.

What both networks have is copied. What only the new one has starts without effect:

    second time, guidance   the last layer of their embeddings is zero (its gradient is not), so that for every r the
                            output is the old output F(x, t): X_{t,r} is one DDIM step along the old velocity
    velocity head           a copy of the layers that make the output: the old velocity, too
    log-variance            zero
    "no class"              the mean of the rows of all classes; of other conditions, what the new network starts with

The old model must speak of the same thing: the same path, the same first time, an output that stands for the velocity
in the same units. Names of weights are those of `shortflow.nn`; networks of one's own take part by the same prefixes.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from shortflow.errors import IncompatibleParts
from shortflow.flowmap import FlowMap
from shortflow.typing import condition_words

__all__ = ["check_start", "start_from"]

INPUTS = {"r_embedder": "a second time", "g_embedder": "guidance as an input"}
HEADS = ("logvar", "velocity_")
TABLE, NONE = "y_embedder.embedding_table.weight", "y_embedder.null.weight"


def start_from(flow: FlowMap, source: FlowMap) -> None:
    """Copy the weights of `source` into `flow`, in place, such that both have the same velocity bit for bit.

    Raises:
        IncompatibleParts: as `check_start`, or if the networks compute different things with the same weights (such as
            other numbers of attention heads), which is tried on random points.
    """
    check_start(flow, source)
    old, new = source.network.state_dict(), flow.network.state_dict()
    values = {name: _value(name, value, old, flow, source) for name, value in new.items()}
    flow.network.load_state_dict(values)
    for prefix in INPUTS:
        if not _having(old, prefix):
            for name, module in flow.network.named_modules():
                if name == prefix:
                    _silence(module)
    _try(flow, source)


def check_start(flow: FlowMap, source: FlowMap) -> None:
    """Raise `IncompatibleParts`, naming the difference and the remedy, unless `flow` can start from `source`.

    Looks at shapes only, so that both may be without memory (on the meta device).
    """
    if flow.path != source.path:
        raise IncompatibleParts(
            f"the old model lives on {source.path}, the new one on {flow.path}; train on the old path "
            "(--set recipe.path=…), or distil it (--teacher), which translates between paths"
        )
    _check_units(flow, source)
    if source.ends == "zero" and flow.ends != "zero":
        raise IncompatibleParts(
            "the old model was trained for jumps to the data only and knows no velocity to start from; "
            "start from a flow-matching model"
        )
    if type(flow.network) is not type(source.network):
        raise IncompatibleParts(
            f"the old network is a {type(source.network).__name__}, the new one a {type(flow.network).__name__}; "
            "use the old network (leave out --set network=…)"
        )
    if flow.num_classes != source.num_classes:
        raise IncompatibleParts(
            f"the old model knows {source.num_classes or 'no'} classes, the new one {flow.num_classes or 'none'}; "
            "start from a model of the same data"
        )
    if flow.condition_shape != source.condition_shape:
        has, wants = (
            "no conditions but classes" if each.condition_shape is None else condition_words(each.condition_shape)
            for each in (source, flow)
        )
        raise IncompatibleParts(
            f"the old model is told {has}, the new one {wants}; start from a model of the same data"
        )
    _check_weights(flow, source)


def _check_units(flow: FlowMap, source: FlowMap) -> None:
    """The output must stand for the same velocity, of the same input at the same first time."""
    t = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)

    def said(model: FlowMap) -> tuple[list[Tensor], Tensor, Tensor]:
        rates = model.parameterization.rates(model.path, model.sigma_data, t)
        scale = model.parameterization.input_scale(model.path, model.sigma_data, t)
        seen = torch.ones_like(t) if scale is None else scale
        return [*rates], seen, model.conditioning.inputs(model.path, t, t)[0]

    (rates, scale, time), (old_rates, old_scale, old_time) = said(flow), said(source)
    same = all(torch.allclose(a, b, rtol=1e-12, atol=0) for a, b in zip(rates, old_rates, strict=True))
    if not same or not torch.allclose(scale, old_scale, rtol=1e-12, atol=0):
        raise IncompatibleParts(
            f"the outputs are in other units: {source.parameterization} with sigma_data {source.sigma_data:g} in the "
            f"old model, {flow.parameterization} with {flow.sigma_data:g} in the new one; use the old parameterisation "
            "(--set recipe.parameterization=…), or distil it (--teacher)"
        )
    if not torch.equal(time, old_time):
        raise IncompatibleParts(
            f"the old network was told the time by {source.conditioning}, the new one by {flow.conditioning}; "
            "use the same first time (--set recipe.conditioning=…)"
        )
    if source.conditioning.second and source.conditioning != flow.conditioning:
        raise IncompatibleParts(
            f"the old network was told its second time by {source.conditioning}, the new one by {flow.conditioning}; "
            "use the old conditioning, or start from a flow-matching model, which has one time"
        )


def _check_weights(flow: FlowMap, source: FlowMap) -> None:
    old, new = source.network.state_dict(), flow.network.state_dict()
    for prefix, what in INPUTS.items():
        if _having(old, prefix) and not _having(new, prefix):
            raise IncompatibleParts(
                f"the old network takes {what}, which the new one does not; start from a model without it"
            )
    faults = []
    for name, value in new.items():
        if name not in old:
            if not name.startswith((*INPUTS, *HEADS, NONE)):  # what stands for none may come or go
                faults.append(f"{name} is not in the old one")
        elif value.shape[name == TABLE :] != old[name].shape[name == TABLE :]:  # the row "no class" may come or go
            faults.append(f"{name} has the shape {tuple(old[name].shape)} in the old one, not {tuple(value.shape)}")
    faults += [
        f"{name} is not in the new one" for name in old if name not in new and not name.startswith((*HEADS, NONE))
    ]
    if faults:
        more = f", and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise IncompatibleParts(
            f"the networks are not alike: {'; '.join(faults[:3])}{more}; use the network of the old model"
        )


def _having(names: Iterable[str], prefix: str) -> bool:
    return any(name.startswith(prefix) for name in names)


def _twin(name: str, names: Mapping[str, Any]) -> str | None:
    """The weight of the output that a weight of the velocity head corresponds to; None for other weights."""
    if not name.startswith("velocity_"):
        return None
    # The head's own blocks run beside the last ones of the trunk.
    found = re.match(r"velocity_blocks\.(\d+)\.(.*)", name)
    if found:
        depth, own = (
            len({key.split(".")[at] for key in names if key.startswith(stem)})
            for stem, at in (("blocks.", 1), ("velocity_blocks.", 1))
        )
        return f"blocks.{depth - own + int(found[1])}.{found[2]}"
    twin = name.removeprefix("velocity_")
    return twin if twin in names else f"final_{twin}" if f"final_{twin}" in names else None


def _value(name: str, fresh: Tensor, old: Mapping[str, Tensor], flow: FlowMap, source: FlowMap) -> Tensor:
    """What the weight `name` of the new network starts as; `fresh` is what it is."""
    if name == TABLE and fresh.shape != old[name].shape:
        rows = old[name][: source.num_classes]
        return torch.cat([rows, rows.mean(0, keepdim=True)]) if flow.null_label is not None else rows
    twin = name if name in old else _twin(name, flow.network.state_dict())
    if twin is not None and twin in old and old[twin].shape == fresh.shape:
        return old[twin]
    return torch.zeros_like(fresh) if name.startswith("logvar") else fresh


@torch.no_grad()
def _silence(module: nn.Module) -> None:
    """Zero the last layer of every embedding in `module`: no effect, but a gradient (the hidden values)."""
    stacks = [part for part in module.modules() if isinstance(part, nn.Sequential)] or [module]
    for stack in stacks:
        linear = [part for part in stack.modules() if isinstance(part, nn.Linear)]
        if not linear:
            raise IncompatibleParts(
                f"{type(module).__name__}, the embedding of a new input, has no linear layer that could silence it"
            )
        for weight in linear[-1].parameters():
            weight.zero_()


@torch.no_grad()
def _try(flow: FlowMap, source: FlowMap) -> None:
    """Raise `IncompatibleParts` unless both have the same velocity at random points."""
    shape = getattr(flow.network, "shape", None)
    if shape is None:
        return
    x = torch.randn(4, *shape, generator=torch.Generator().manual_seed(0))
    low, high = source.span
    t = torch.linspace(low, high, 6)[1:5]

    def velocity(model: FlowMap) -> Tensor:
        like = next(model.parameters())
        label = torch.arange(4, device=like.device) % model.num_classes if model.num_classes else None
        if model.condition_shape is not None:
            label = torch.randn(4, *model.condition_shape, generator=torch.Generator().manual_seed(1)).to(like)
        training = [module for module in model.modules() if module.training]
        try:
            return model.eval().velocity(x.to(like), t.to(like), label).cpu()
        finally:
            for module in training:
                module.training = True

    # Bit for bit on the same device; a source elsewhere, or of another precision, may round otherwise.
    if not torch.allclose(velocity(flow).double(), velocity(source).double(), rtol=1e-3, atol=1e-4):
        raise IncompatibleParts(
            "the networks have the same weights and yet compute different things; use the settings of the old network "
            "(heads, normalisation, the scale of the time)"
        )
