"""Networks that are told vectors and sequences: what they compute, what stands for none, derivatives, refusals."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from shortflow.dual import push_forward
from shortflow.errors import IncompatibleParts, ShortflowError
from shortflow.flowmap import AverageVelocity, FlowMap
from shortflow.guidance import guide, guided_output
from shortflow.nn import MLP, SiT, UNet
from shortflow.nn.attention import CrossAttention
from shortflow.nn.checkpointing import checkpoint_blocks
from shortflow.nn.compiling import compile_network
from shortflow.nn.embeddings import SequenceEmbedding, VectorEmbedding
from shortflow.paths import Linear
from shortflow.plugin import identities
from shortflow.transplant import start_from
from steps import close

SHAPES = {"sit": (2, 4, 6), "unet": (2, 4, 6), "mlp": (3,)}
KINDS = [("sit", (5,)), ("sit", (3, 5)), ("unet", (5,)), ("mlp", (5,))]
kinds = pytest.mark.parametrize(("kind", "shape"), KINDS, ids=lambda value: str(value))


def build(kind: str, shape: tuple[int, ...] | None, *, zero: bool = False, **options: Any) -> Any:
    torch.manual_seed(0)
    options = {"condition": shape, "null_class": shape is not None, **options}
    if kind == "mlp":
        network: nn.Module = MLP(shape=SHAPES[kind], width=16, depth=2, **options)
    elif kind == "unet":
        network = UNet(shape=SHAPES[kind], channels=8, multipliers=(1, 2), depth=1, attention=(0,), **options)
    else:
        network = SiT(shape=SHAPES[kind], patch=2, width=16, depth=2, heads=2, qk_norm=True, **options)
    for weight in network.parameters():
        if not zero:
            nn.init.normal_(weight, std=0.3)
    return network.double()


def inputs(kind: str, rows: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(rows, *SHAPES[kind], generator=generator, dtype=torch.float64)
    time, second = torch.rand(2, rows, generator=generator, dtype=torch.float64)
    return x, time, second


def told(shape: tuple[int, ...], rows: int = 4) -> Tensor:
    """Conditions of every kind: whole, of sequences with padding behind and before, and none."""
    label = torch.randn(rows, *shape, generator=torch.Generator().manual_seed(2))
    label[1] = math.nan
    if len(shape) == 2:
        label[2, 2:] = math.nan
        label[3, 0] = math.nan
    return label


# ----------------------------------------------------------------------------------------------------- what is computed


def test_a_vector_is_added_to_the_conditioning_and_none_has_a_row_of_its_own() -> None:
    network, label = build("sit", (5,)), told((5,))
    _, time, second = inputs("sit")
    w = network.state_dict()
    first, last = ((w[f"y_embedder.mlp.{k}.weight"], w[f"y_embedder.mlp.{k}.bias"]) for k in (0, 2))
    want = silu(label.double() @ first[0].T + first[1]) @ last[0].T + last[1]
    want[1] = w["y_embedder.null.weight"][0]
    close(network.condition(time, second, label), network.t_embedder(time) + network.r_embedder(second) + want, 1e-12)
    assert math.isnan(network.null_label)
    assert network.condition_shape == (5,)
    assert network.num_classes == 0


def test_tokens_have_places_and_those_that_are_not_there_are_masked() -> None:
    torch.manual_seed(0)
    embedder, label = SequenceEmbedding((3, 5), 8, null=True).double(), told((3, 5))
    tokens, there = embedder(label)
    assert there.tolist() == [[True] * 3, [True, False, False], [True, True, False], [False, True, True]]
    close(tokens[1, 0], embedder.null.weight[0])
    close(tokens[0], embedder.mlp(label[0].double()) + embedder.positions.weight, 1e-12)
    shorter, _ = embedder(label[:1, :2])
    close(shorter, tokens[:1, :2])
    assert bool(tokens.isfinite().all())


def test_cross_attention_is_a_softmax_over_the_tokens_that_are_there() -> None:
    torch.manual_seed(0)
    layer = CrossAttention(width=6, heads=2).double()
    x, tokens = torch.randn(2, 3, 6, dtype=torch.float64), torch.randn(2, 4, 6, dtype=torch.float64)
    there = torch.tensor([[True, True, False, True], [False, False, True, False]])
    q, (k, v) = layer.q(x), layer.kv(tokens).chunk(2, -1)
    want = torch.empty_like(x)
    for row in range(2):
        for head in (slice(0, 3), slice(3, 6)):
            logits = q[row, :, head] @ k[row, there[row], head].T / 3**0.5
            want[row, :, head] = logits.softmax(-1) @ v[row, there[row], head]
    close(layer(x, tokens, there), layer.proj(want), 1e-12)


@kinds
def test_what_is_padding_changes_nothing_and_everything_else_does(kind: str, shape: tuple[int, ...]) -> None:
    network, label = build(kind, shape).requires_grad_(False), told(shape)
    at = inputs(kind)
    plain = network(*at, label)
    assert bool(plain.isfinite().all())
    other = label.clone()
    other[0] += 1
    moved = (network(*at, other) - plain).flatten(1).abs().amax(1)
    assert float(moved[0]) > 1e-3
    close(moved[1:], torch.zeros(3, dtype=torch.float64))
    missing = network(*at)  # no label at all is none for every row
    close(missing[1], plain[1])
    assert float((missing[0] - plain[0]).abs().max()) > 1e-3
    if len(shape) == 2:
        swapped = label.clone()
        swapped[0, [0, 1]] = label[0, [1, 0]]
        assert float((network(*at, swapped)[0] - plain[0]).abs().max()) > 1e-4  # the order counts


@kinds
def test_the_output_starts_at_zero_whatever_is_told(kind: str, shape: tuple[int, ...]) -> None:
    network = build(kind, shape, zero=True, velocity_head=True)
    for value in network.both(*inputs(kind), told(shape)):
        assert torch.equal(value, torch.zeros_like(value))


def test_class_conditional_weights_are_what_they_were() -> None:
    """Names, and the first and last numbers drawn under seed 0 before there were other conditions."""
    torch.manual_seed(0)
    network = SiT(shape=(2, 4, 6), patch=2, width=16, depth=2, heads=2, num_classes=3, null_class=True)
    names = list(network.state_dict())
    assert not any("cross" in name or "null" in name for name in names)
    table = network.y_embedder.embedding_table.weight  # pyright: ignore
    assert network.null_label == 3
    golden = torch.tensor([0.007869482040405273, -0.10559055954217911], dtype=torch.float64)
    close(torch.stack([table[0, 0], network.blocks[1].mlp.fc2.weight[0, 0]]).double(), golden, 1e-6)  # pyright: ignore


# ---------------------------------------------------------------------------------------------------------- derivatives


@kinds
def test_the_dual_pass_is_jvp_and_central_differences(kind: str, shape: tuple[int, ...]) -> None:
    network, label = build(kind, shape), told(shape)
    x, time, second = inputs(kind)
    way = (torch.randn_like(x), torch.randn_like(time))

    def function(x: Tensor, time: Tensor) -> Tensor:
        return network(x, time, second, label)

    value, rate = torch.func.jvp(function, (x, time), way)
    found, slope = push_forward(function, (x, time), way)
    close(found, value, 1e-12)
    close(slope, rate, 1e-12)
    h = 1e-6
    ahead, behind = (function(x + s * way[0], time + s * way[1]) for s in (h, -h))
    torch.testing.assert_close((ahead - behind) / (2 * h), rate, rtol=1e-6, atol=1e-6)
    assert float(rate.detach().abs().max()) > 0.1


def test_a_derivative_along_the_path_computes_nothing_for_the_tokens() -> None:
    """Keys and values of a condition are constants: the second half of the pass has no product for them."""
    from torch.utils.flop_counter import FlopCounterMode

    network = SiT(shape=(1, 4, 4), patch=2, width=32, depth=2, heads=2, condition=(64, 32), null_class=True)
    x, t, label = torch.randn(2, 1, 4, 4), torch.rand(2), torch.randn(2, 64, 32)

    def flops(f: Any) -> int:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            f()
        return counter.get_total_flops()

    def function(x: Tensor, t: Tensor) -> Tensor:
        return network(x, t, t, label)

    plain = flops(lambda: function(x, t))
    both = flops(lambda: push_forward(function, (x, t), (x, torch.ones_like(t))))
    assert both / plain < 1.4  # 2.0 if everything were differentiated


@kinds
def test_checkpointed_blocks_have_the_same_gradients(kind: str, shape: tuple[int, ...]) -> None:
    network, label = build(kind, shape), told(shape)
    at = inputs(kind)
    found = []
    for again in (False, True):
        if again:
            checkpoint_blocks(network)
        network.zero_grad()
        network(*at, label).square().mean().backward()
        found.append([weight.grad.clone() for weight in network.parameters() if weight.grad is not None])
    for one, two in zip(*found, strict=True):
        assert torch.equal(one, two)
    none = network.y_embedder.null.weight
    assert float(none.grad.abs().max()) > 0
    network.zero_grad()
    network(*at, told(shape)[[0, 0, 0, 0]]).square().mean().backward()
    assert torch.equal(none.grad, torch.zeros_like(none))  # processes that exchange gradients wait for all of them


def test_a_compiled_network_is_the_plain_one() -> None:
    network = SiT(shape=(1, 4, 4), patch=2, width=16, depth=1, heads=2, condition=(3, 5), null_class=True)
    for weight in network.parameters():
        nn.init.normal_(weight, std=0.2)
    x, t, label = torch.randn(4, 1, 4, 4), torch.rand(4), told((3, 5))
    with torch.no_grad():
        plain = network(x, t, t, label)
        compile_network(network, backend="aot_eager")
        torch.testing.assert_close(network(x, t, t, label), plain, rtol=1e-4, atol=1e-5)
    assert not network._compiled_call_impl.failed  # pyright: ignore


# ------------------------------------------------------------------------------------------------------------ flow maps


@kinds
def test_guidance_mixes_what_is_told_with_none(kind: str, shape: tuple[int, ...]) -> None:
    flow, label = FlowMap(build(kind, shape), Linear(), AverageVelocity()), told(shape)
    x, t, r = inputs(kind)
    r = r * t
    conditional, free = flow.predict(x, t, r, label), flow.predict(x, t, r)
    close(guided_output(flow, x, t, r, label, 2.5), free + 2.5 * (conditional - free), 1e-12)
    close(guide(flow, 2.5)(x, t, r, label), flow.move(x, free + 2.5 * (conditional - free), t, r), 1e-12)
    assert flow.conditional
    bare = FlowMap(build(kind, shape, null_class=False), Linear(), AverageVelocity())
    with pytest.raises(IncompatibleParts, match="label_dropout > 0"):
        guide(bare, 2.0)


@kinds
def test_weights_go_over_to_a_network_of_the_same_conditions(kind: str, shape: tuple[int, ...]) -> None:
    old = FlowMap(build(kind, shape, null_class=False), Linear(), AverageVelocity())
    new = FlowMap(build(kind, shape, zero=True), Linear(), AverageVelocity())
    start_from(new, old)
    x, t, _ = inputs(kind)
    label = told(shape)
    label[1] = label[0]
    close(new.velocity(x, t, label), old.velocity(x, t, label), 1e-12)
    other = FlowMap(build(kind, (*shape[:-1], 4), zero=True), Linear(), AverageVelocity())
    with pytest.raises(IncompatibleParts, match=r"is told a .* of 5 numbers, the new one a .* of 4 numbers"):
        start_from(other, old)


def test_rows_of_equal_conditions_have_one_number() -> None:
    vectors = torch.tensor([[1.0, 2.0], [2.0, 1.0], [1.0, 2.0], [math.nan, 2.0], [0.0, 0.0], [-0.0, 0.0]])
    found = identities(vectors).tolist()
    assert found[0] == found[2]
    assert found[4] == found[5]
    assert len(set(found)) == 4
    labels = torch.tensor([3, 1, 3])
    assert identities(labels) is labels
    many = torch.randint(0, 2, (4096, 3, 4)).float()
    assert len(set(identities(many).tolist())) == len(many.unique(dim=0))


# ------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("mlp", {"shape": (3, 5)}, "a MLP is told a vector.*a sequence of up to 3 vectors of 5 numbers.*use a SiT"),
        ("unet", {"shape": (3, 5)}, "a UNet is told a vector.*use a SiT"),
        ("sit", {"shape": (3, 5, 2)}, r"\(d,\) or a sequence of tokens of shape \(n, d\), got \(3, 5, 2\)"),
        ("sit", {"shape": (0,)}, r"got \(0,\)"),
        ("sit", {"shape": (5,), "num_classes": 3}, "a class or another condition"),
    ],
)
def test_what_a_network_cannot_be_told_is_refused(kind: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ShortflowError, match=message):
        build(kind, **options)


@pytest.mark.parametrize(
    ("shape", "label", "message"),
    [
        ((5,), torch.tensor([1, 2, 0, 1]), "told a vector of 5 numbers for each row, got torch.int64"),
        ((5,), torch.zeros(4, 6), r"got torch.float32 of shape \(4, 6\)"),
        ((3, 5), torch.zeros(4, 5), "a sequence of up to 3 vectors of 5 numbers"),
        ((3, 5), torch.zeros(4, 4, 5), r"got torch.float32 of shape \(4, 4, 5\)"),
    ],
)
def test_a_condition_of_another_kind_is_refused(shape: tuple[int, ...], label: Tensor, message: str) -> None:
    with pytest.raises(ShortflowError, match=message):
        build("sit", shape)(*inputs("sit"), label)


def test_a_class_network_refuses_vectors_and_a_network_without_none_refuses_it() -> None:
    at = inputs("sit")
    with pytest.raises(ShortflowError, match="one of 3 classes, as an integer"):
        build("sit", None, num_classes=3)(*at, torch.zeros(4, 5))
    for shape in ((5,), (3, 5)):
        bare = build("sit", shape, null_class=False)
        with pytest.raises(ShortflowError, match="nothing that stands for none; give every row one"):
            bare(*at, told(shape))
        with pytest.raises(ShortflowError, match="and has nothing that stands for none: pass label="):
            bare(*at)


def test_embeddings_know_what_they_embed() -> None:
    vector = VectorEmbedding((2,), 4, null=False)
    assert vector(torch.zeros(3, 2)).shape == (3, 4)
    assert vector.null is None
