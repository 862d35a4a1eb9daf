"""Blocks that are run again in the backward pass: the same numbers, the same dropout, less memory."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shortflow.cost import peak_memory
from shortflow.dropout import Dropout, no_dropout, same_dropout, shared_dropout
from shortflow.dual import Dual, push_forward
from shortflow.errors import ShortflowError
from shortflow.nn import MLP, SiT, UNet, checkpointed, conditioning
from shortflow.nn.checkpointing import checkpoint_blocks
from shortflow.recipes import esc, lsd, meanflow, sct
from shortflow.streams import Streams
from shortflow.train import TrainStep
from shortflow.typing import Batch, Progress
from steps import needed

ROWS = 8
BUILD = {
    "sit": lambda **more: SiT(shape=(2, 8, 8), patch=4, width=16, depth=2, heads=2, **more),
    "unet": lambda **more: UNet(shape=(2, 8, 8), channels=4, multipliers=(1, 2), depth=1, attention=(1,), **more),
    "mlp": lambda **more: MLP(shape=(16,), width=32, depth=2, **more),
}


def network(kind: str, **more: Any) -> Any:
    torch.manual_seed(0)
    made = BUILD[kind](**more)
    for weight in made.parameters():
        nn.init.normal_(weight, std=0.15)
    return made


def passed(net: Any, what: str, rows: int = ROWS) -> list[Tensor]:
    """Value, derivative and gradients of a pass in float64 at least, with dropout where the network has it."""
    g = torch.Generator().manual_seed(1)
    dtype = next(net.parameters()).dtype
    x, v = torch.randn(2, rows, *net.shape, generator=g).to(dtype)
    t = torch.rand(rows, generator=g).to(dtype)

    def f(x: Tensor, t: Tensor) -> Tensor:
        with shared_dropout(7, rows):
            return net(x, t, t / 2)

    net.zero_grad()
    if what == "plain":
        found = [f(x, t)]
    else:
        found = list(push_forward(f, (x, t), (v, torch.ones_like(t)), graph=what == "differentiated"))
    sum(part.square().mean() for part in found if part.requires_grad).backward()
    found = [part.detach() for part in found]
    return [*found, *(weight.grad.clone() for weight in net.parameters())]


PASSES = ["plain", "dual", "differentiated"]


@pytest.mark.parametrize("what", PASSES)
@pytest.mark.parametrize("kind", BUILD)
def test_the_numbers_are_the_same_to_the_bit(kind: str, what: str) -> None:
    net = network(kind, dropout=0.3).double()
    expected = passed(net, what)
    checkpoint_blocks(net)
    for found, want in zip(passed(net, what), expected, strict=True):
        assert torch.equal(found, want)
    assert max(float(part.abs().max()) for part in expected) > 0


@pytest.mark.parametrize(("kind", "what"), [*(("mlp", what) for what in PASSES), ("sit", "dual"), ("unet", "dual")])
def test_the_older_way_gives_them_too(kind: str, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its gradients are added up in another order."""
    net = network(kind, dropout=0.3).double()
    expected = passed(net, what)
    checkpoint_blocks(net)
    monkeypatch.setattr(conditioning, "checkpointed", partial(checkpointed, reentrant=True))
    torch.testing.assert_close(passed(net, what), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("what", "reentrant"), [("plain", False), ("dual", False), ("differentiated", False), ("dual", True)]
)
def test_the_memory_is_that_of_one_block(what: str, reentrant: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conditioning, "checkpointed", partial(checkpointed, reentrant=reentrant))

    def held(depth: int, checkpoint: bool) -> int:
        torch.manual_seed(0)
        net = SiT(shape=(2, 8, 8), patch=1, width=32, depth=depth, heads=2, dropout=0.2)
        net.checkpoint = checkpoint
        return peak_memory(lambda: passed(net, what, 16))

    kept, again = ([held(depth, checkpoint) for depth in (1, 4)] for checkpoint in (False, True))
    token = 16 * 64 * 32 * 4  # bytes that one block hands to the next
    halves = 2 if what == "differentiated" else 1
    # Of three blocks more only what goes in is held (and the gradients of their weights, and the vector c).
    block = SiT(shape=(2, 8, 8), patch=1, width=32, depth=1, heads=2).blocks[0]
    weights = 4 * sum(weight.numel() for weight in block.parameters())
    assert again[1] - again[0] < 3 * (1.1 * halves * token + weights)
    assert again[1] < 0.6 * kept[1]


RECIPES = {"meanflow": meanflow(ratio=0.5), "esc": esc(kappa=0.3, ratio=0.5), "sct": sct(), "lsd": lsd(ratio=0.5)}


def step(name: str, checkpoint: bool, bf16: bool = False) -> list[Tensor]:
    """Loss and gradients of one training step."""
    recipe = RECIPES[name]
    net = network("sit", dropout=0.3, **needed(recipe))
    if checkpoint:
        checkpoint_blocks(net)
    module = TrainStep(recipe.flow_map(net), recipe.objective, bf16=bf16)
    g = torch.Generator().manual_seed(0)
    batch = Batch(x=torch.randn(16, *net.shape, generator=g), label=torch.arange(16) % 4)
    loss, _ = module(module.draw(batch, Streams(seed=5), Progress(images=500, total=1000, batch=16)))
    loss.backward()
    return [loss.detach(), *(weight.grad for weight in net.parameters())]


@pytest.mark.parametrize(("name", "bf16"), [*((name, False) for name in RECIPES), ("meanflow", True)])
def test_a_training_step_is_the_same_to_the_bit(name: str, bf16: bool) -> None:
    for found, want in zip(step(name, True, bf16), step(name, False, bf16), strict=True):
        assert torch.equal(found, want)


def test_blocks_run_twice_with_gradient_and_once_without() -> None:
    net = network("mlp")
    checkpoint_blocks(net)
    runs: list[bool] = []
    net.blocks[1].register_forward_pre_hook(lambda block, args: runs.append(isinstance(args[0], Dual)))
    passed(net, "dual")
    assert runs == [True, False]  # the second time without the tangent
    runs.clear()
    passed(net, "differentiated")
    assert runs == [True, True]
    runs.clear()
    with torch.no_grad():
        net(torch.randn(3, 16), torch.rand(3), torch.rand(3))
    torch.func.jvp(lambda t: net(torch.ones(3, 16), t, t), (torch.rand(3),), (torch.ones(3),))
    assert len(runs) == 2


def test_a_backward_pass_may_be_taken_twice() -> None:
    net = network("sit", dropout=0.3)
    checkpoint_blocks(net)
    x, t = torch.randn(ROWS, *net.shape), torch.rand(ROWS)
    with shared_dropout(3, ROWS):
        loss = net(x, t, t).square().mean()
    weights = list(net.parameters())
    first = torch.autograd.grad(loss, weights, retain_graph=True)
    for a, b in zip(first, torch.autograd.grad(loss, weights), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("off", [False, True])
def test_without_a_shared_pass_dropout_repeats_the_global_generator(off: bool) -> None:
    got = []
    for checkpoint in (False, True):
        net = network("mlp", dropout=0.5)
        net.checkpoint = checkpoint
        torch.manual_seed(3)
        with no_dropout() if off else torch.enable_grad():
            loss = net(torch.ones(ROWS, 16), torch.ones(ROWS), torch.ones(ROWS)).square().mean()
        loss.backward()
        got.append([weight.grad for weight in net.parameters()])
    for a, b in zip(*got, strict=True):
        assert torch.equal(a, b)


def test_masks_go_on_from_where_they_were() -> None:
    layer, x = Dropout(0.5).train(), torch.ones(4, 500)
    with shared_dropout(1, 4):
        layer(x)
        again = same_dropout()
        second, third = layer(x), layer(x)
    for _ in range(2):
        with again():
            assert torch.equal(layer(x), second)
            assert torch.equal(layer(x), third)
    with shared_dropout(1, 4):
        layer(x)
        with again():
            layer(x)
        assert torch.equal(layer(x), second)  # and the pass around it is not disturbed


def test_a_network_that_cannot_is_told_how() -> None:
    with pytest.raises(ShortflowError, match=r"Linear cannot checkpoint its blocks: give it .* train.checkpoint"):
        checkpoint_blocks(nn.Linear(2, 2))
