"""The U-Net against a second, plain statement of its formulas, the published size, every size of image, errors."""

import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from shortflow.errors import ShortflowError
from shortflow.nn import UNet, UNetConfig, parameter_count

SMALL = {"channels": 8, "multipliers": (1, 2), "depth": 1, "attention": (0,)}
FIR = (1.0, 3.0, 3.0, 1.0)


def randomized(**options):
    torch.manual_seed(0)
    network = UNet(**{"shape": (3, 4, 6), **SMALL, **options})
    for weight in network.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return network.double()


class Restated:
    """A U-Net of two levels with one block each and attention on both, from its state dict."""

    def __init__(self, weights, heads, taps):
        self.w, self.heads, self.taps = weights, heads, taps

    def linear(self, name, x):
        return x @ self.w[f"{name}.weight"].T + self.w[f"{name}.bias"]

    def conv(self, name, x):
        weight = self.w[f"{name}.weight"]
        return F.conv2d(x, weight, self.w[f"{name}.bias"], padding=weight.shape[-1] // 2)

    def norm(self, name, x):
        b, c, h, w = x.shape
        groups = {8: 2, 16: 4, 24: 6, 32: 8}[c]
        cut = x.reshape(b, groups, -1)
        cut = (cut - cut.mean(2, True)) / (cut.var(2, correction=0, keepdim=True) + 1e-6).sqrt()
        weight, bias = (self.w[f"{name}.{kind}"][None, :, None, None] for kind in ("weight", "bias"))
        return cut.reshape(b, c, h, w) * weight + bias

    def filtered(self, x, way):
        if way == "same":
            return x
        along = torch.tensor(self.taps, dtype=x.dtype) / sum(self.taps)
        kernel = torch.outer(along, along).expand(x.shape[1], 1, -1, -1)
        p = len(along) // 2 - 1
        if way == "down":
            return F.conv2d(x, kernel, stride=2, padding=p, groups=x.shape[1])
        return F.conv_transpose2d(x, 4 * kernel, stride=2, padding=p, groups=x.shape[1])

    def attend(self, name, h):
        b, c, rows, columns = h.shape
        tokens = self.norm(f"{name}.norm", h).reshape(b, c, -1).mT
        q, k, v = self.linear(f"{name}.attn.qkv", tokens).chunk(3, -1)
        d, mixed = c // self.heads, []
        for i in range(self.heads):
            part = slice(i * d, i * d + d)
            mixed.append(torch.softmax(q[..., part] @ k[..., part].mT / math.sqrt(d), -1) @ v[..., part])
        added = self.linear(f"{name}.attn.proj", torch.cat(mixed, -1))
        return (h + added.mT.reshape(b, c, rows, columns)) / math.sqrt(2)

    def block(self, name, x, c, way="same"):
        h = F.silu(self.norm(f"{name}.norm1", x))
        x, h = self.filtered(x, way), self.filtered(h, way)
        h = self.conv(f"{name}.conv1", h) + self.linear(f"{name}.condition", c)[..., None, None]
        h = self.conv(f"{name}.conv2", F.silu(self.norm(f"{name}.norm2", h)))
        h = ((self.conv(f"{name}.skip", x) if f"{name}.skip.weight" in self.w else x) + h) / math.sqrt(2)
        return self.attend(f"{name}.attention", h) if f"{name}.attention.attn.qkv.weight" in self.w else h

    def __call__(self, x, c):
        c = F.silu(c)
        s0 = self.conv("first", x)
        s1 = self.block("encoder.0", s0, c)
        s2 = self.block("encoder.1", s1, c, "down")
        s3 = self.block("encoder.2", s2, c)
        h = self.block("middle.1", self.block("middle.0", s3, c), c)
        h = self.block("decoder.0", torch.cat([h, s3], 1), c)
        h = self.block("decoder.1", torch.cat([h, s2], 1), c)
        h = self.block("decoder.2", h, c, "up")
        h = self.block("decoder.3", torch.cat([h, s1], 1), c)
        h = self.block("decoder.4", torch.cat([h, s0], 1), c)
        return tuple(
            self.conv(f"{name}.conv", F.silu(self.norm(f"{name}.norm", h)))
            for name in ("final_layer", "velocity_layer")
        )


@pytest.mark.parametrize(("heads", "taps"), [(1, (1.0, 1.0)), (2, FIR)])
def test_forward_is_its_formula(heads, taps):
    network = randomized(attention=(0, 1), heads=heads, resample_filter=taps, num_classes=5, velocity_head=True)
    x, label = torch.randn(4, 3, 4, 6, dtype=torch.float64), torch.tensor([0, 1, 2, 4])
    time, second = torch.rand(2, 4, dtype=torch.float64)
    got = network.both(x, time, second, label)
    want = Restated(network.state_dict(), heads, taps)(x, network.condition(time, second, label))
    for value, expected in zip(got, want, strict=True):
        assert value.std() > 0.1
        torch.testing.assert_close(value, expected, rtol=0, atol=1e-11)


def test_which_blocks_attend():
    """On the way down every block of a level, on the way up its last one, between them the first (DDPM++)."""
    network = UNet(shape=(3, 8, 8), channels=8, multipliers=(1, 2, 2), depth=2, attention=(1,))
    ways = {"down": network.encoder, "middle": network.middle, "up": network.decoder}
    attending = {
        way: [i for i, block in enumerate(blocks) if block.attention is not None] for way, blocks in ways.items()
    }
    # down: 2 | resample 2 | resample 2;  up: 3 resample | 3 resample | 3
    assert attending == {"down": [3, 4], "middle": [0], "up": [6]}
    assert [i for i, block in enumerate(network.encoder) if block.resample is not None] == [2, 5]
    assert [i for i, block in enumerate(network.decoder) if block.resample is not None] == [3, 7]


def weights(c, multipliers, depth, attention, colours=3, times=1):
    """Number of weights in closed form, without classes."""
    width = 4 * c
    total = colours * c * 9 + c + times * (c * width + width + width * width + width)

    def block(i, o, attends=False, resampled=False):
        count = 2 * i + (i * o * 9 + o) + (width * o + o) + 2 * o + (o * o * 9 + o)
        count += i * o + o if i != o or resampled else 0
        return count + (2 * o + (3 * o * o + 3 * o) + (o * o + o) if attends else 0)

    now, skips = c, [c]
    for level, m in enumerate(multipliers):
        if level:
            total += block(now, now, resampled=True)
            skips.append(now)
        for _ in range(depth):
            total += block(now, c * m, level in attention)
            now = c * m
            skips.append(now)
    total += block(now, now, True) + block(now, now)
    for level, m in reversed(list(enumerate(multipliers))):
        for i in range(depth + 1):
            total += block(now + skips.pop(), c * m, level in attention and i == depth)
            now = c * m
        total += block(now, now, resampled=True) if level else 0
    return total + 2 * now + now * colours * 9 + colours


def test_the_published_size_to_the_last_weight():
    """DDPM++ on CIFAR-10 has 55.7 million weights (arXiv 2206.00364, table 8); a second time adds 328 704."""
    with torch.device("meta"):
        counts = [parameter_count(UNetConfig(size="cifar10").build((3, 32, 32), second_time=s)) for s in (False, True)]
    assert counts == [55_732_739, 55_732_739 + 128 * 512 + 512 + 512 * 512 + 512]
    assert counts == [weights(128, (2, 2, 2), 4, (1,), times=times) for times in (1, 2)]


@pytest.mark.parametrize(
    ("size", "shape", "count"),
    [("tiny", (1, 8, 8), 47_985), ("digits", (1, 8, 8), 188_769), ("mnist", (1, 28, 28), 317_121)],
)
def test_small_sizes(size, shape, count):
    network = UNetConfig(size=size).build(shape, second_time=False)
    dims = UNetConfig(size=size).dimensions
    assert parameter_count(network) == count
    assert count == weights(dims.channels, dims.multipliers, dims.depth, dims.attention, colours=1)
    x = torch.randn(2, *shape)
    assert network(x, torch.rand(2)).shape == x.shape


@settings(deadline=None, max_examples=50)
@given(h=st.integers(1, 20), w=st.integers(1, 20), levels=st.integers(1, 4))
def test_images_fit_if_and_only_if_their_sides_can_be_halved(h, w, levels):
    options = {"channels": 4, "multipliers": (1,) * levels, "depth": 1, "second_time": False}
    factor = 2 ** (levels - 1)
    if h % factor == 0 and w % factor == 0:
        x = torch.randn(2, 1, h, w)
        assert UNet(shape=(1, h, w), **options)(x, torch.rand(2)).shape == x.shape
    else:
        most = max(n for n in range(1, 6) if h % 2 ** (n - 1) == 0 and w % 2 ** (n - 1) == 0)
        with pytest.raises(ShortflowError, match=rf"multiples of {factor}, got {h}×{w}; .* at most {most} level"):
            UNet(shape=(1, h, w), **options)


@pytest.mark.parametrize("taps", [(1.0, 1.0), FIR])
def test_channels_last_changes_nothing(taps):
    network = randomized(resample_filter=taps)
    x, time = torch.randn(3, 3, 4, 6, dtype=torch.float64), torch.rand(3, dtype=torch.float64)

    def all_of_it(x):
        output = network(x, time, time / 2)
        slope = torch.func.jvp(lambda x: network(x, time, time / 2), (x,), (x,))[1]
        return output, slope, torch.autograd.grad(output.square().sum(), network.first.weight)[0]

    expected = all_of_it(x)
    network.to(memory_format=torch.channels_last)
    for value, want in zip(all_of_it(x.contiguous(memory_format=torch.channels_last)), expected, strict=True):
        torch.testing.assert_close(value, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "options", [{"embedding": "fourier"}, {"embedding": "fourier", "scale": 0.25}, {"scale": 16.0}]
)
def test_time_derivative_with_every_embedding(options):
    network = randomized(resample_filter=FIR, **options)
    x, time = torch.randn(3, 3, 4, 6, dtype=torch.float64), torch.rand(3, dtype=torch.float64)
    slope = torch.func.jvp(lambda t: network(x, t, time), (time,), (torch.ones_like(time),))[1]
    errors = []
    for h in (2e-4, 1e-4):
        ends = [network(x, time + s, time) for s in (h, -h)]
        errors.append(float(((ends[0] - ends[1]) / (2 * h) - slope).abs().max()))
    assert 3.8 < errors[0] / errors[1] < 4.2
    assert errors[1] < 1e-3 * slope.abs().max()


def test_signals_keep_their_size_at_the_start():
    """Sums of two are scaled by √½, and the blocks' branches start at zero: levels neither grow nor vanish."""
    torch.manual_seed(0)
    network = UNet(shape=(3, 16, 16), channels=32, multipliers=(1, 2, 2), depth=2, attention=(1,))
    h = network.trunk(torch.randn(4, 3, 16, 16), torch.randn(4, 128))
    assert bool(h.isfinite().all())
    assert 0.01 < h.std() < 10
    for name, weight in network.named_parameters():
        if name.endswith(("conv2.weight", "attn.proj.weight")) or name.startswith("final_layer.conv"):
            assert torch.equal(weight, torch.zeros_like(weight)), name
        elif weight.ndim > 1:
            fan = weight[0].numel() + weight.shape[0] * weight[0, 0].numel()
            gain = math.sqrt(0.2) if name.endswith("qkv.weight") else 1.0
            assert abs(weight.std() / (gain * math.sqrt(2 / fan)) - 1) < 0.1, name


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"channels": 6}, "channels must be a positive multiple of 4, got 6"),
        ({"channels": 0}, "channels must be .* got 0"),
        ({"multipliers": ()}, r"multipliers must be .* got \[\]"),
        ({"multipliers": (1, 0)}, r"multipliers must be .* got \[1, 0\]"),
        ({"depth": 0}, "depth must be at least 1, got 0"),
        ({"heads": 0}, "heads must be at least 1, got 0"),
        ({"heads": 3}, "heads must divide the 8 channels that attend, got 3; heads must divide the 16"),
        ({"attention": (2,)}, r"levels 0 to 1 \(0: full resolution\), got 2"),
        ({"attention": (-1,)}, "got -1"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"resample_filter": (1.0, 2.0, 1.0)}, r"even number of weights .* got \[1.0, 2.0, 1.0\]"),
        ({"scale": 0.0}, "scale must be a positive finite number, got 0.0"),
        ({"scale": math.inf}, "scale must be .* got inf"),
        ({"shape": (2,)}, r"got \(2,\); use an MLP"),
        ({"shape": (0, 4, 4)}, r"all at least 1, got \(0, 4, 4\)"),
        ({"channels": 2, "depth": 0}, "channels must be .*; depth must be"),
    ],
)
def test_impossible_settings_are_named(setting, message):
    with pytest.raises(ShortflowError, match=message):
        UNet(**{"shape": (3, 4, 6), **SMALL, **setting})


COMPILED = """
import torch
from shortflow.nn import UNet

torch.manual_seed(0)
network = UNet(shape=(2, 4, 4), channels=8, multipliers=(1, 2), depth=1, attention=(0,), velocity_head=True,
               guidance=True, num_classes=3, resample_filter=(1, 3, 3, 1), embedding="fourier").double()
for weight in network.parameters():
    torch.nn.init.normal_(weight, std=0.3)
x, time, label = torch.randn(3, 2, 4, 4).double(), torch.rand(3).double(), torch.tensor([0, 2, 1])
guidance = torch.tensor([[2.0, 0.1, 0.9]] * 3).double()

def step(x, time):
    function = lambda x, time: network.both(x, time, time / 2, label, guidance)
    output, slope, velocity = torch.func.jvp(function, (x, time), (2 * x, torch.ones_like(time)), has_aux=True)
    return network(x, time, time / 2, label, guidance), output, slope, velocity

with torch.no_grad():
    expected = step(x, time)
    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)(x, time)
print(max(float((a - b).abs().max()) for a, b in zip(compiled, expected)))
"""


@pytest.mark.slow
def test_compiled_derivative_is_the_eager_one():
    """In a process of its own, because functions that check their types cannot be compiled."""
    result = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    assert float(result.stdout) < 1e-11
