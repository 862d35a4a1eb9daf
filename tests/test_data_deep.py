"""16 bits a channel in colour: every pixel is u/257, rounded, whatever the file, as of grey images."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deepfiles import jpeg2000_16, png16, tiff16
from shortflow.data import images
from shortflow.data.decoded import load_folder
from shortflow.data.images import read_image
from shortflow.errors import DataError


def levels(channels: int, height: int = 48, width: int = 36) -> np.ndarray:
    """All kinds of them, with those beside a change of u/257 and of u >> 8."""
    found = np.random.default_rng(0).integers(65536, size=(height, width, channels))
    found[0, :8] = np.array([0, 128, 129, 255, 256, 385, 65407, 65535])[:, None]
    return found


def rounded(u: np.ndarray) -> np.ndarray:
    return np.rint(u / 257).astype(np.uint8)


COLOURS: list[Any] = [
    pytest.param("a.png", png16, {}, id="png"),
    pytest.param("a.tif", tiff16, {"order": "<"}, id="tiff-little"),
    pytest.param("a.tif", tiff16, {"order": ">"}, id="tiff-big"),
    pytest.param("a.tif", tiff16, {"order": "<", "packed": True}, id="tiff-little-deflated"),
    pytest.param("a.tif", tiff16, {"order": ">", "packed": True}, id="tiff-big-deflated"),
]


@pytest.mark.parametrize(("name", "write", "options"), COLOURS)
def test_colours_are_scaled_and_not_cut(tmp_path: Path, name: str, write: Any, options: dict[str, Any]) -> None:
    u = levels(3)
    (tmp_path / name).write_bytes(write(u, **options))
    np.testing.assert_array_equal(read_image(tmp_path / name), rounded(u))
    assert (rounded(u) != u >> 8).mean() > 0.2  # a quarter of them, which a cut would get wrong


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_alpha_of_16_bits_lays_colours_on_white(tmp_path: Path, name: str) -> None:
    u = levels(4)
    u[0, 0], u[0, 1] = (1000, 2000, 3000, 0), (1000, 2000, 3000, 65535)
    (tmp_path / name).write_bytes(png16(u) if name == "a.png" else tiff16(u, extra=2))
    alpha = u[..., 3:] / 65535
    expected = np.rint(u[..., :3] * alpha + 65535 * (1 - alpha))
    np.testing.assert_array_equal(read_image(tmp_path / name), rounded(expected))


def test_alpha_that_is_multiplied_in_already(tmp_path: Path) -> None:
    u = levels(4)
    u[..., :3] = u[..., :3] * u[..., 3:] // 65535
    (tmp_path / "a.tif").write_bytes(tiff16(u, extra=1))
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), rounded(u[..., :3] + 65535 - u[..., 3:]))


def test_grey_with_alpha_stays_grey(tmp_path: Path) -> None:
    u = levels(2)
    (tmp_path / "a.png").write_bytes(png16(u))
    alpha = u[..., 1] / 65535
    np.testing.assert_array_equal(
        read_image(tmp_path / "a.png"), rounded(np.rint(u[..., 0] * alpha + 65535 * (1 - alpha)))
    )


def test_a_fourth_channel_without_meaning_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(tiff16(levels(4), extra=0))
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), rounded(levels(4)[..., :3]))


def test_inks_are_scaled_before_they_become_colours(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(tiff16(levels(4), photometric=5))
    expected = Image.fromarray(rounded(levels(4)), "CMYK").convert("RGB")
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), np.asarray(expected))


def test_a_colour_that_is_declared_clear_is_white_and_its_neighbours_are_not(tmp_path: Path) -> None:
    u = levels(3)
    u[2, 2], u[2, 3] = (5000, 6000, 7000), (5000, 6000, 7001)
    (tmp_path / "a.png").write_bytes(png16(u, clear=(5000, 6000, 7000)))
    expected = rounded(u)
    expected[2, 2] = 255
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), expected)


def test_they_are_turned_and_cropped_as_all_images_are(tmp_path: Path) -> None:
    u = levels(3)
    (tmp_path / "a.png").write_bytes(png16(u, orientation=6))
    turned = rounded(u)[::-1].transpose(1, 0, 2)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), turned)
    expected = images.square(Image.fromarray(np.ascontiguousarray(turned)), 9)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", 9), np.asarray(expected))


def test_separate_planes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(tiff16(levels(3), planar=2))
    with pytest.raises(DataError, match=r"a\.tif \(16-bit channels in separate planes are not read; save the file"):
        load_folder(tmp_path, resolution=8)


def test_colours_of_jpeg_2000_are_refused_and_its_grey_is_read(tmp_path: Path) -> None:
    """Its decoder makes 8 bits of (u + 128) >> 8, in which white is black; one that does not could be let read them."""
    u = levels(3)
    content = jpeg2000_16(u)
    (tmp_path / "a.jp2").write_bytes(content)
    with Image.open(tmp_path / "a.jp2") as image:
        np.testing.assert_array_equal(np.asarray(image), ((u + 128) >> 8) % 256)
    for bits, deep in ((16, content), (12, content.replace(b"\x0f\x01\x01", b"\x0b\x01\x01"))):
        (tmp_path / "a.jp2").write_bytes(deep)
        with pytest.raises(DataError, match=rf"a\.jp2 \({bits}-bit colours of JPEG 2000 are not read, .* PNG or TIFF"):
            load_folder(tmp_path, resolution=8)
    Image.fromarray(u[..., 0].astype(np.uint16)).save(tmp_path / "a.jp2", irreversible=False)
    np.testing.assert_array_equal(read_image(tmp_path / "a.jp2"), rounded(u[..., 0]))
    for mode in ("L", "LA", "RGB", "RGBA"):  # of 8 bits
        plain = Image.fromarray((u[..., 0] % 256).astype(np.uint8)).convert(mode)
        plain.save(tmp_path / "a.jp2", irreversible=False)
        colours = np.asarray(plain.convert(mode[0] if mode[0] == "L" else "RGB"))
        np.testing.assert_array_equal(read_image(tmp_path / "a.jp2"), colours)


# Large photographs --------------------------------------------------------------------------------------------------


def test_panoramas_are_read_without_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    """Pillow would warn of more pixels than its limit, and refuse twice as many; here both limits are made small."""
    Image.new("RGB", (80, 40), (1, 2, 3)).save(tmp_path / "a.png")
    for limit in (2000, 1000):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        assert load_folder(tmp_path, resolution=8).samples[0, :, 0, 0].tolist() == [1, 2, 3]
        assert limit == Image.MAX_IMAGE_PIXELS  # that of the process is what it was
    assert not recwarn.list


def test_images_above_the_limit_are_refused_in_plain_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "LARGEST", 3_000_000)
    Image.new("1", (4000, 1000)).save(tmp_path / "a.png")
    for resolution in (None, 8):
        with pytest.raises(
            DataError, match=r"a.png \(4000×1000 are 4 megapixels, more than the 3 that are decoded; scale"
        ):
            load_folder(tmp_path, resolution=resolution)
