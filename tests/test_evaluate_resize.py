"""Resizes: hand-computed pixels, an independent statement, Pillow."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

import inceptions
from shortflow.errors import MetricError
from shortflow.evaluate.resize import RESIZES, resized, tf1_bilinear


def line(*values: float) -> Tensor:
    """An image with one line and one channel, twice: rows do not matter."""
    return torch.tensor([values, values]).expand(1, 1, 2, len(values))


@pytest.mark.parametrize(
    ("given_line", "size", "wanted"),
    [
        ((1, 3), 4, (1, 2, 3, 3)),  # at 0, ½, 1, 1½: the last repeats the edge
        ((0, 10, 20, 30), 2, (0, 20)),  # at 0 and 2: every second pixel is skipped, nothing is averaged
        ((0, 4, 8), 2, (0, 6)),  # at 0 and 1½
        ((7,), 3, (7, 7, 7)),
        ((0, 3, 6, 9, 12), 3, (0, 5, 10)),  # at 0, 5/3, 10/3
    ],
)
def test_pixels_by_hand(given_line: tuple[float, ...], size: int, wanted: tuple[float, ...]) -> None:
    out = tf1_bilinear(line(*map(float, given_line)), size)
    assert out.shape == (1, 1, size, size)
    torch.testing.assert_close(out[0, 0, 0], torch.tensor(wanted, dtype=torch.float32), rtol=0, atol=1e-5)


def test_rows_and_columns_are_not_mixed_up() -> None:
    image = torch.tensor([[0.0, 10.0], [100.0, 110.0]])[None, None]
    wanted = torch.tensor([[0.0, 5, 10, 10], [50, 55, 60, 60], [100, 105, 110, 110], [100, 105, 110, 110]])
    torch.testing.assert_close(tf1_bilinear(image, 4)[0, 0], wanted)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 13), st.integers(1, 13), st.integers(1, 17), st.integers(0, 99))
def test_it_is_the_resize_stated_pixel_by_pixel(h: int, w: int, size: int, seed: int) -> None:
    images = np.random.default_rng(seed).integers(0, 256, (2, 3, h, w), dtype=np.uint8)
    out = tf1_bilinear(torch.from_numpy(images).float(), size)
    np.testing.assert_array_equal(out.numpy(), inceptions.resize(images, size))


@pytest.mark.parametrize("side", [32, 256, pytest.param(512, marks=pytest.mark.slow)])
def test_to_299_pixels(side: int) -> None:
    images = np.random.default_rng(side).integers(0, 256, (1, 1, side, side), dtype=np.uint8)
    np.testing.assert_array_equal(
        tf1_bilinear(torch.from_numpy(images).float(), 299).numpy(), inceptions.resize(images, 299)
    )


def test_its_own_size_is_the_identity() -> None:
    images = torch.rand(2, 3, 299, 299)
    assert torch.equal(tf1_bilinear(images, 299), images)


@pytest.mark.parametrize(("side", "size"), [(64, 40), (40, 299), (256, 224)])
def test_bicubic_antialias_is_pillows_on_floats(side: int, size: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (side, side)).astype(np.float32)
    wanted = np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC))
    out = resized(torch.from_numpy(image)[None, None], "bicubic-antialias", size)[0, 0].numpy()
    np.testing.assert_allclose(out, wanted, rtol=0, atol=0.01)  # levels: PyTorch has its weights in float32


def test_half_pixel_centres_lie_elsewhere() -> None:
    ramp = torch.arange(8.0).expand(1, 1, 8, 8)
    torch.testing.assert_close(resized(ramp, "tf1-bilinear", 4)[0, 0, 0], torch.tensor([0.0, 2, 4, 6]))
    torch.testing.assert_close(resized(ramp, "bilinear", 4)[0, 0, 0], torch.tensor([0.5, 2.5, 4.5, 6.5]))


def test_refusals() -> None:
    images = torch.zeros(1, 3, 8, 8)
    assert set(RESIZES) == {"tf1-bilinear", "bilinear", "bicubic-antialias", "none"}
    with pytest.raises(MetricError, match="no resize called 'cubic'; there are tf1-bilinear, bilinear"):
        resized(images, "cubic", 4)
    with pytest.raises(MetricError, match="give a size"):
        resized(images, "bilinear", None)
    with pytest.raises(MetricError, match="images of 4×4 pixels, got 8×8"):
        resized(images, "none", 4)
    assert resized(images, "none", 8) is images
