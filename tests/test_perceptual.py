"""LPIPS on random weights: against the sums written out, as a distance, and what is refused.

The trunk has its real size (58 MB as a file) but random weights; the published ones are never downloaded.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from jaxtyping import TypeCheckError
from safetensors.torch import save_file
from torch import Tensor, nn

from oracles import f64
from shortflow.errors import IncompatibleParts, ShortflowError
from shortflow.flowmap import AverageVelocity, FlowMap
from shortflow.losses import Perceptual
from shortflow.losses.perceptual import load_weights
from shortflow.paths import Linear
from steps import close, draw_at

STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
FLOW = FlowMap(nn.Identity(), Linear(), AverageVelocity())


def trunk() -> nn.Sequential:
    """The convolutions, rectifiers and poolings of VGG16 in the published order, with random weights."""
    generator, layers, channels = torch.Generator().manual_seed(0), [], 3
    for widths in STAGES:
        for width in widths:
            layer = nn.Conv2d(channels, width, 3, padding=1)
            with torch.no_grad():
                layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) * (2 / (9 * channels)) ** 0.5)
                layer.bias.copy_(0.1 * torch.randn(width, generator=generator))
            layers += [layer, nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers).requires_grad_(False)


TRUNK = trunk()
HEADS = [torch.rand(1, widths[-1], 1, 1, generator=torch.Generator().manual_seed(len(widths))) for widths in STAGES]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Files in the public layouts, with entries that are of no use here beside those that are."""
    folder = tmp_path_factory.mktemp("weights")
    tensors = {f"features.{name}": value for name, value in TRUNK.state_dict().items()}
    torch.save({**tensors, "classifier.0.bias": torch.zeros(3)}, folder / "vgg16.pth")
    save_file({f"lin{i}.model.1.weight": head for i, head in enumerate(HEADS)}, str(folder / "heads.safetensors"))
    return str(folder / "vgg16.pth"), str(folder / "heads.safetensors")


@pytest.fixture
def metric(files: tuple[str, str]) -> Perceptual:
    return Perceptual(trunk=files[0], heads=files[1], size=None)


def images(n: int = 2, side: int = 16, seed: int = 0, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, channels, side, side, generator=generator) * 2 - 1


def distance(metric: Perceptual, x: Tensor, y: Tensor) -> Tensor:
    t = torch.ones(len(x), dtype=torch.float64)
    state = torch.zeros(len(x), 1, dtype=torch.float64)
    return metric(x, y, FLOW, draw_at(Linear(), state, state, t, 0 * t))


def by_hand(x: Tensor, y: Tensor, average: bool = False) -> Tensor:
    """The distance pixel by pixel and channel by channel, from the layers one after the other."""
    low, high = 1 - f64(0.030, 0.088, 0.188).float() - 1, f64(0.458, 0.448, 0.450).float()
    x, y = ((z - low[:, None, None]) / high[:, None, None] for z in (x, y))
    total, stage = torch.zeros(len(x), dtype=torch.float64), 0
    layers = list(TRUNK)
    for number, layer in enumerate(layers[:-1]):
        pooling = isinstance(layer, nn.MaxPool2d)
        if pooling and average:
            layer = nn.AvgPool2d(2)
        x, y = layer(x), layer(y)
        if isinstance(layers[number + 1], nn.MaxPool2d):
            a, b = x.double(), y.double()
            for i in range(a.shape[2]):
                for j in range(a.shape[3]):
                    p, q = a[:, :, i, j], b[:, :, i, j]
                    p, q = p / (p.norm(dim=1, keepdim=True) + 1e-10), q / (q.norm(dim=1, keepdim=True) + 1e-10)
                    total += ((p - q) ** 2) @ HEADS[stage].double().flatten() / (a.shape[2] * a.shape[3])
            stage += 1
    assert stage == 5
    return total


@pytest.mark.parametrize("pooling", ["max", "average"])
def test_the_distance_is_its_definition(metric: Perceptual, pooling: str) -> None:
    x, y = images(seed=0), images(seed=1)
    got = distance(replace(metric, pooling=pooling), x, y)  # type: ignore[arg-type]
    assert got.shape == (2,)
    close(got.double(), by_hand(x, y, average=pooling == "average"), 1e-5)


def test_it_is_symmetric_not_negative_and_zero_on_equal_images(metric: Perceptual) -> None:
    x, y = images(3, seed=0), images(3, seed=1)
    there, back = distance(metric, x, y), distance(metric, y, x)
    assert torch.equal(there, back)
    assert bool((there > 0).all())
    assert distance(metric, x, x).tolist() == [0, 0, 0]


def test_every_row_is_compared_with_its_own_target(metric: Perceptual) -> None:
    x, y = images(3, seed=0), images(3, seed=1)
    close(distance(metric, x, y), torch.cat([distance(metric, x[i : i + 1], y[i : i + 1]) for i in range(3)]), 1e-5)


@pytest.mark.parametrize("what", ["equal", "black", "other"])
def test_gradients_are_finite_also_where_nothing_is_felt(metric: Perceptual, what: str) -> None:
    """Zero at equal images; where all channels of a pixel are silent a root of squares would give NaN."""
    x = (images(1) if what != "black" else -torch.ones(1, 3, 16, 16)).requires_grad_()
    slope = torch.autograd.grad(distance(metric, x, images(1, seed=1) if what == "other" else x.detach()).sum(), x)[0]
    assert bool(torch.isfinite(slope).all())
    assert bool((slope != 0).any()) == (what == "other")


def test_silent_pixels_have_a_finite_gradient(files: tuple[str, str], tmp_path: Path) -> None:
    """A first convolution with a bias of −100 silences everything: distance 0, gradient 0 and no NaN."""
    tensors = torch.load(files[0])
    tensors["features.2.bias"] = torch.full((64,), -100.0)
    torch.save(tensors, tmp_path / "silent.pth")
    silent = Perceptual(trunk=str(tmp_path / "silent.pth"), heads=files[1], size=None)
    x = images(1).requires_grad_()
    slope = torch.autograd.grad(distance(silent, x, images(1, seed=1)).sum(), x)[0]
    assert not bool(torch.isnan(slope).any())


def test_the_gradient_is_the_slope(metric: Perceptual) -> None:
    """In double precision, against central differences along a random direction."""
    x, y, along = (images(1, seed=seed).double() for seed in (0, 1, 2))
    x.requires_grad_()
    slope = (torch.autograd.grad(distance(metric, x, y).sum(), x)[0] * along).sum().item()
    h = 1e-6
    with torch.no_grad():
        want = (distance(metric, x + h * along, y) - distance(metric, x - h * along, y)).item() / (2 * h)
    assert slope == pytest.approx(want, rel=1e-5)


def test_no_gradient_reaches_the_weights_or_the_target(metric: Perceptual, files: tuple[str, str]) -> None:
    x = images(1).requires_grad_()
    distance(metric, x, images(1, seed=1)).sum().backward()
    weights = load_weights(*files, torch.device("cpu"), torch.float32)
    held = [tensor for stage in weights.stages for pair in stage for tensor in pair] + list(weights.heads)
    assert len(held) == 31
    assert not any(tensor.requires_grad for tensor in held)


def test_small_images_are_enlarged_bilinearly(metric: Perceptual) -> None:
    """The shorter side becomes `size`; images that are large enough stay."""
    x, y = images(1, 8, seed=0), images(1, 8, seed=1)
    larger = [nn.functional.interpolate(z, scale_factor=3, mode="bilinear", align_corners=False) for z in (x, y)]
    close(distance(replace(metric, size=24), x, y), distance(metric, *larger), 1e-6)
    assert torch.equal(distance(replace(metric, size=24), *larger), distance(metric, *larger))
    wide = torch.cat((x, x), 3), torch.cat((y, y), 3)
    larger = [nn.functional.interpolate(z, scale_factor=3, mode="bilinear", align_corners=False) for z in wide]
    close(distance(replace(metric, size=24), *wide), distance(metric, *larger), 1e-6)


def test_one_channel_counts_as_three_equal_ones(metric: Perceptual) -> None:
    x, y = images(2, channels=1), images(2, seed=1, channels=1)
    close(distance(metric, x, y), distance(metric, x.repeat(1, 3, 1, 1), y.repeat(1, 3, 1, 1)), 1e-6)


def test_the_scale_of_the_data_is_undone(metric: Perceptual) -> None:
    """Network units are (x − shift)·scale, as in DataSpec."""
    x, y = images(seed=0), images(seed=1)
    scaled = replace(metric, shift=-0.05, scale=0.97)
    close(distance(scaled, (x + 0.05) * 0.97, (y + 0.05) * 0.97), distance(metric, x, y), 1e-4)


def test_features_are_taken_in_single_precision(metric: Perceptual) -> None:
    """Of half-precision states and under autocast."""
    x, y = images(seed=0), images(seed=1)
    want = distance(metric, x.bfloat16().float(), y.bfloat16().float())
    with torch.autocast("cpu", torch.bfloat16):
        got = distance(metric, x.bfloat16(), y.bfloat16())
    assert got.dtype == torch.float32
    assert torch.equal(got, want)


# ------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("shape", [(2, 5), (2, 4, 32, 32)])
def test_samples_that_are_no_images_are_refused(metric: Perceptual, shape: tuple[int, ...]) -> None:
    with pytest.raises(IncompatibleParts, match=r"one or three channels, got .*use SquaredError or PseudoHuber"):
        distance(metric, torch.zeros(shape), torch.zeros(shape))


def test_images_too_small_to_be_pooled_are_refused(metric: Perceptual) -> None:
    with pytest.raises(IncompatibleParts, match="sides of at least 16 pixels, got 8 × 8; set size"):
        distance(metric, images(1, 8), images(1, 8))


def test_missing_files_are_named_and_never_downloaded(metric: Perceptual, tmp_path: Path) -> None:
    with pytest.raises(ShortflowError, match=r"no file .*none.pth; give the path of VGG16 .* never downloaded"):
        distance(replace(metric, trunk=str(tmp_path / "none.pth")), images(1), images(1))


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: path.write_bytes(b"no weights"), "cannot be read .*it must hold the linear heads"),
        (
            lambda path: torch.save({"a": torch.zeros(1)}, path),
            r"should hold lin0.model.1.weight of shape .*has nothing",
        ),
        (lambda path: torch.save([1, 2], path), r"should hold lin0.model.1.weight of shape .*has nothing"),
        (
            lambda path: torch.save({"lin0.model.1.weight": torch.zeros(1, 3, 1, 1)}, path),
            r"should hold lin0.model.1.weight of shape \(1, 64, 1, 1\), but has \(1, 3, 1, 1\)",
        ),
        (
            lambda path: torch.save({f"lin{i}.model.1.weight": -head for i, head in enumerate(HEADS)}, path),
            "negative weights of channels",
        ),
    ],
)
def test_files_of_something_else_are_refused(
    metric: Perceptual, tmp_path: Path, write: Callable[[Path], object], message: str
) -> None:
    write(tmp_path / "heads.pth")
    with pytest.raises(ShortflowError, match=message):
        distance(replace(metric, heads=str(tmp_path / "heads.pth")), images(1), images(1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"trunk": " "}, "trunk is empty; give the path of VGG16"),
        ({"size": 8}, "size must be at least 16, or null, got 8"),
        ({"pooling": "l2"}, "(?s)max.*average"),
        ({"scale": 0.0}, "scale must be positive and finite"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises((ShortflowError, TypeCheckError), match=message):
        Perceptual(**{"trunk": "a.pth", "heads": "b.pth", **settings})  # type: ignore[arg-type]
