"""Few-step models from old weights: the old velocity bit for bit at step 0, and every mismatch refused by name."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shortflow.errors import IncompatibleParts
from shortflow.flowmap import (
    AverageVelocity,
    Conditioning,
    FlowMap,
    LogStep,
    Parameterization,
    StartAndGap,
    StartOnly,
    Transfer,
)
from shortflow.nn import MLP, SiT
from shortflow.nn.unet import UNet
from shortflow.paths import Cosine, Linear, Path
from shortflow.recipes import esc, flow_matching, meanflow, shortcut
from shortflow.transplant import check_start, start_from
from steps import close, gradient, mlp, network_for, randomize

N = 6


def sit(**settings: Any) -> nn.Module:
    built: dict[str, Any] = {"shape": (1, 8, 8), "patch": 4, "width": 16, "depth": 2, "heads": 2, **settings}
    return SiT(**built)


def points(network: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(N, *network.shape, generator=generator, dtype=torch.float64)  # pyright: ignore
    t, r = torch.rand(2, N, generator=generator, dtype=torch.float64).sort(0, descending=True)[0]
    r[0] = t[0]
    return x, t, r


def flow(
    network: nn.Module,
    path: Path = Linear(),
    form: Parameterization = AverageVelocity(),
    told: Conditioning = StartAndGap(),
    **others: Any,
) -> FlowMap:
    return FlowMap(network.double(), path, form, told, **others)


def old(network: nn.Module, path: Path = Linear(), **others: Any) -> FlowMap:
    """A flow-matching model with random weights."""
    return flow(randomize(network), path, told=StartOnly(), ends="diagonal", **others)


NETWORKS = {
    "mlp": lambda **settings: MLP(shape=(3,), width=16, depth=2, **settings),
    "sit": sit,
    "u-net": lambda **settings: UNet(
        shape=(1, 8, 8), channels=8, multipliers=(1, 2), depth=1, attention=(1,), embedding="fourier", **settings
    ),
    "sit, normalised": lambda **settings: sit(qk_norm=True, modulation_norm=True, **settings),
}


# -------------------------------------------------------------------------------------------------------------- step 0


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("classes", [{}, {"num_classes": 3}, {"num_classes": 3, "null_class": True}])
@pytest.mark.parametrize("told", [StartAndGap(), LogStep()])
@pytest.mark.parametrize("form", [AverageVelocity(), Transfer()])
def test_step_0_is_the_old_model_bit_for_bit(name: str, classes: Any, told: Conditioning, form: Any) -> None:
    build = NETWORKS[name]
    source = old(build(second_time=False, **classes))
    new = flow(build(second_time=True, log_variance=True, **classes), form=form, told=told)
    start_from(new, source)
    x, t, r = points(source.network)
    label = torch.arange(N) % 3 if classes else None
    v = source.velocity(x, t, label)
    assert float(v.detach().std()) > 0.1
    assert torch.equal(new.velocity(x, t, label), v)
    assert torch.equal(new.predict(x, t, r, label), v)
    # One Euler step, whatever the end.
    close(new(x, t, r, label), x + (r - t).reshape(-1, *[1] * (x.ndim - 1)) * v)
    assert torch.equal(new.log_variance(t, r, label), torch.zeros(N, dtype=torch.float64))


def test_on_the_cosine_path_a_jump_is_the_ddim_step() -> None:
    source = old(mlp(second_time=False), Cosine())
    new = flow(MLP(shape=(3,), width=16, depth=2), Cosine(), Transfer())
    start_from(new, source)
    x, t, r = points(source.network)
    a, b = Cosine().transfer(t, r)
    close(new(x, t, r), a[:, None] * x + b[:, None] * source.velocity(x, t))


@pytest.mark.parametrize("name", NETWORKS)
def test_the_second_time_has_no_effect_but_a_gradient(name: str) -> None:
    source = old(NETWORKS[name](second_time=False))
    new = flow(NETWORKS[name](second_time=True))
    start_from(new, source)
    x, t, r = points(source.network)
    loss = new(x, t, r).square().mean()
    assert gradient(loss, new.network.r_embedder.mlp[2]).abs().max() > 1e-6  # pyright: ignore
    # After one step along it the ends are told apart.
    loss = new(x, t, r).square().mean()
    torch.optim.SGD(new.parameters(), lr=1.0).zero_grad()
    loss.backward()
    with torch.no_grad():
        for weight in new.network.r_embedder.parameters():  # pyright: ignore
            weight -= weight.grad
    assert not torch.allclose(new.predict(x, t, r), new.predict(x, t, t), rtol=0, atol=1e-6)


def test_weights_are_copied_not_shared() -> None:
    source = old(mlp(second_time=False))
    new = flow(MLP(shape=(3,), width=16, depth=2))
    start_from(new, source)
    before = source.network.last.weight.clone()  # pyright: ignore
    with torch.no_grad():
        for weight in new.parameters():
            weight.add_(1.0)
    assert torch.equal(source.network.last.weight, before)  # pyright: ignore
    assert all(weight.requires_grad for weight in new.parameters())


@pytest.mark.parametrize("make", [esc, meanflow, shortcut])
def test_published_recipes_start_from_flow_matching(make: Any) -> None:
    recipe, base = make(), flow_matching()
    source = base.flow_map(network_for(base))
    new = recipe.flow_map(network_for(recipe, seed=7))
    start_from(new, source)
    x, t, r = points(source.network)
    for label in (torch.arange(N) % 4, torch.full((N,), 4)):
        assert torch.equal(new.predict(x, t, r, label), source.velocity(x, t, label))


def test_a_missing_null_class_is_the_mean_of_the_classes_and_one_too_many_is_left() -> None:
    x, t, _ = points(mlp())
    source = old(mlp(second_time=False, num_classes=3))
    new = flow(MLP(shape=(3,), width=16, depth=2, num_classes=3, null_class=True))
    start_from(new, source)
    table = new.network.y_embedder.embedding_table.weight  # pyright: ignore
    assert torch.equal(table[:3], source.network.y_embedder.embedding_table.weight)  # pyright: ignore
    close(table[3], table[:3].mean(0))
    back = flow(MLP(shape=(3,), width=16, depth=2, num_classes=3))
    start_from(back, new)
    label = torch.arange(N) % 3
    assert torch.equal(back.velocity(x, t, label), source.velocity(x, t, label))
    assert back.null_label is None


def test_a_few_step_model_starts_another_of_the_same_kind() -> None:
    source = flow(mlp(log_variance=True))
    new = flow(MLP(shape=(3,), width=16, depth=2))
    start_from(new, source)
    x, t, r = points(source.network)
    assert torch.equal(new(x, t, r), source(x, t, r))


class Told(nn.Module):
    """A network of another library's: a trunk, a second time, guidance and a velocity head, by the known prefixes."""

    def __init__(self, extra: bool) -> None:
        super().__init__()
        self.shape = (3,)
        self.blocks = nn.ModuleList(nn.Linear(3, 3) for _ in range(3))
        self.final_layer = nn.Linear(3, 3)
        if extra:
            self.r_embedder = nn.Sequential(nn.Linear(1, 8), nn.SiLU(), nn.Linear(8, 3))
            self.g_embedder = nn.ModuleDict(
                {name: nn.Sequential(nn.Linear(1, 8), nn.SiLU(), nn.Linear(8, 3)) for name in ("omega", "low", "high")}
            )
            self.velocity_blocks = nn.ModuleList(nn.Linear(3, 3) for _ in range(2))
            self.velocity_layer = nn.Linear(3, 3)

    def both(self, x, time, second=None, label=None, guidance=None):  # type: ignore[no-untyped-def]
        h = x + time[:, None]
        if second is not None:
            h = h + self.r_embedder(second[:, None])
            for i, name in enumerate(("omega", "low", "high")):
                h = h + self.g_embedder[name](guidance[:, i : i + 1])
        h = self.blocks[0](h).tanh()
        out, head = h, h
        for k in (1, 2):
            out = self.blocks[k](out).tanh()
            head = self.velocity_blocks[k - 1](head).tanh() if second is not None else head
        return self.final_layer(out), self.velocity_layer(head) if second is not None else head

    def forward(self, x, time, second=None, label=None, guidance=None):  # type: ignore[no-untyped-def]
        return self.both(x, time, second, label, guidance)[0]


def test_guidance_as_an_input_has_no_effect_and_the_velocity_head_starts_as_the_output() -> None:
    source = old(Told(False))
    new = flow(Told(True), told=StartAndGap())
    new.told = (1.0, 0.0, 1.0)
    start_from(new, source)
    x, t, r = points(source.network)
    guidance = torch.rand(N, 3, dtype=torch.float64) + 1
    output, head = new.predict_both(x, t, r, None, guidance)
    assert torch.equal(output, source.velocity(x, t))
    assert torch.equal(head, output)
    assert gradient(output.square().mean(), new.network.g_embedder).abs().max() > 1e-6  # pyright: ignore


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_takes_guidance_and_a_velocity_head_without_effect(name: str) -> None:
    source = old(NETWORKS[name](second_time=False))
    new = flow(NETWORKS[name](guidance=True, velocity_head=True))
    new.told = (1.0, 0.0, 1.0)
    start_from(new, source)
    x, t, r = points(source.network)
    guidance = torch.rand(N, 3, dtype=torch.float64) + 1
    output, head = new.predict_both(x, t, r, None, guidance)
    assert torch.equal(output, source.velocity(x, t))
    assert torch.equal(head, output)
    for part in (new.network.g_embedder.omega, new.network.g_embedder.high):  # pyright: ignore
        assert gradient(new(x, t, r, None, guidance).square().mean(), part).abs().max() > 1e-7


# ------------------------------------------------------------------------------------------------------------ refusals


def small(**settings: Any) -> nn.Module:
    return MLP(shape=(3,), width=16, depth=2, **settings)


REFUSED: dict[str, tuple[Any, Any, str]] = {
    "path": (
        lambda: old(small(second_time=False), Cosine()),
        lambda: flow(small()),
        r"old model lives on Cosine.*the new one on Linear.*recipe\.path.*--teacher",
    ),
    "noise scale": (
        lambda: old(small(second_time=False), Linear(noise_scale=0.5)),
        lambda: flow(small()),
        r"noise_scale=0\.5.*noise_scale=1",
    ),
    "units": (
        lambda: old(small(second_time=False), sigma_data=0.5),
        lambda: flow(small(), form=AverageVelocity(normalize=True), sigma_data=0.5),
        r"other units: AverageVelocity\(normalize=False.*recipe\.parameterization",
    ),
    "data scale": (
        lambda: flow(small(second_time=False), form=AverageVelocity(normalize=True), told=StartOnly(), sigma_data=0.5),
        lambda: flow(small(), form=AverageVelocity(normalize=True), sigma_data=1.0),
        r"sigma_data 0\.5 in the old model.*with 1 in the new one",
    ),
    "first time": (
        lambda: old(small(second_time=False)),
        lambda: flow(small(), told=StartAndGap(scale=1000.0)),
        r"told the time by StartOnly\(\), the new one by StartAndGap\(scale=1000\.0\)",
    ),
    "second time": (
        lambda: flow(small(), told=LogStep()),
        lambda: flow(small(), told=StartAndGap()),
        r"told its second time by LogStep\(steps=128\), the new one by StartAndGap",
    ),
    "a second time too many": (
        lambda: flow(small()),
        lambda: old(small(second_time=False)),
        r"second time by StartAndGap\(scale=1\.0\), the new one by StartOnly",
    ),
    "jumps to the data": (
        lambda: flow(small(second_time=False), told=StartOnly(), ends="zero"),
        lambda: flow(small()),
        "jumps to the data only and knows no velocity",
    ),
    "kind": (
        lambda: old(sit(second_time=False)),
        lambda: flow(small()),
        "the old network is a SiT, the new one a MLP",
    ),
    "classes": (
        lambda: old(small(second_time=False, num_classes=3)),
        lambda: flow(small()),
        "knows 3 classes, the new one none",
    ),
    "width": (
        lambda: old(MLP(shape=(3,), width=8, depth=2, second_time=False)),
        lambda: flow(small()),
        r"has the shape \(8, 256\) in the old one, not \(16, 256\).* and \d+ more",
    ),
    "depth": (
        lambda: old(MLP(shape=(3,), width=16, depth=3, second_time=False)),
        lambda: flow(small()),
        r"blocks\.2\.fc1\.weight is not in the new one",
    ),
    "depth the other way": (
        lambda: old(MLP(shape=(3,), width=16, depth=1, second_time=False)),
        lambda: flow(small()),
        r"blocks\.1\.fc1\.weight is not in the old one",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_models_that_do_not_fit_are_refused_with_a_remedy(what: str) -> None:
    source, new, message = REFUSED[what]
    with pytest.raises(IncompatibleParts, match=f"(?s){message}"):
        start_from(new(), source())


def test_the_check_needs_no_weights() -> None:
    with torch.device("meta"):
        source, new = flow(small(second_time=False), told=StartOnly()), flow(small())
        other = flow(sit(second_time=False), told=StartOnly())
    check_start(new, source)
    with pytest.raises(IncompatibleParts, match="SiT"):
        check_start(new, other)


def test_the_same_weights_with_other_heads_are_refused() -> None:
    """Attention heads leave no trace in the shapes."""
    with pytest.raises(IncompatibleParts, match="same weights and yet compute different things"):
        start_from(flow(sit(heads=4)), old(sit(heads=2, second_time=False)))
