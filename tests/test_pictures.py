from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shortflow.errors import ShortflowError
from shortflow.pictures import GAP, comparison, image_grid, save_png, scatter


def images(n: int, c: int = 1, h: int = 8, w: int = 8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, c, h, w)).astype(np.uint8)


@pytest.mark.parametrize("c", [1, 3])
@pytest.mark.parametrize(("size", "factor"), [(8, 1), (32, 4), (20, 2), (2, 1)])
def test_every_pixel_of_a_grid_is_where_it_belongs(c: int, size: int, factor: int) -> None:
    x = images(5, c, 6, 8)
    sheet = np.asarray(image_grid(x, columns=3, size=size))
    h, w = 6 * factor, 8 * factor
    assert sheet.shape == (2 * (h + GAP) + GAP, 3 * (w + GAP) + GAP, 3)
    drawn = np.zeros(sheet.shape[:2], bool)
    for k in range(5):
        y, left = GAP + (k // 3) * (h + GAP), GAP + (k % 3) * (w + GAP)
        cell = sheet[y : y + h, left : left + w]
        np.testing.assert_array_equal(cell[::factor, ::factor], np.broadcast_to(x[k].transpose(1, 2, 0), (6, 8, 3)))
        np.testing.assert_array_equal(cell, cell[::factor, ::factor].repeat(factor, 0).repeat(factor, 1))
        drawn[y : y + h, left : left + w] = True
    assert (sheet[~drawn] == 255).all()


@pytest.mark.parametrize(("n", "columns"), [(1, 1), (4, 2), (5, 3), (10, 4)])
def test_a_grid_is_about_square_by_default(n: int, columns: int) -> None:
    assert image_grid(images(n), size=8).width == columns * (8 + GAP) + GAP


def test_a_comparison_holds_each_grid_and_is_wide_enough_for_its_words() -> None:
    panels = [(name, images(4)) for name in ("real", "1 step", "a heading much wider than its grid", "4 steps")]
    sheet = comparison(panels, columns=2, title="title", across=3)
    pixels, grid = np.asarray(sheet), np.asarray(image_grid(images(4), 2))
    h, w, _ = grid.shape
    at = [
        (y, x)
        for y in range(pixels.shape[0] - h + 1)
        for x in range(pixels.shape[1] - w + 1)
        if (pixels[y + GAP, x + GAP] == grid[GAP, GAP]).all() and (pixels[y : y + h, x : x + w] == grid).all()
    ]
    rows, columns = sorted({y for y, _ in at}), sorted({x for _, x in at})
    assert len(at) == 4
    assert len(rows) == 2
    assert len(columns) == 3
    # The long heading ends before the sheet does, which its grid alone would not have made wide enough.
    dark = np.flatnonzero((pixels[rows[0] - 20 : rows[0]] < 128).any((0, 2)))
    assert columns[2] + w < dark.max() < pixels.shape[1] - 4


def test_a_long_title_widens_the_picture() -> None:
    narrow = comparison([("a", images(1))], columns=1)
    wide = comparison([("a", images(1))], columns=1, title="a title of many words, wider than one image")
    assert wide.width > 300 > narrow.width
    assert wide.height > narrow.height


def test_scatter_puts_the_first_axis_right_and_the_second_up() -> None:
    picture = scatter(np.array([[2.9, 2.9], [-2.9, 0.1], [9.0, 9.0]]), extent=3.0, size=6)
    dark = np.argwhere(picture[0] < 255)
    np.testing.assert_array_equal(dark, [[0, 5], [2, 0]])
    assert picture.shape == (1, 6, 6)


def test_scatter_is_darker_where_there_are_more_points_and_white_without() -> None:
    points = np.array([[-0.5, 0.5]] * 4 + [[0.5, 0.5]])
    assert scatter(points, extent=1.0, size=2)[0].tolist() == [[0, int(255 * (1 - (1 / 3.7) ** 0.5))], [255, 255]]
    assert (scatter(np.zeros((0, 2))) == 255).all()


@pytest.mark.parametrize("c", [1, 3])
def test_a_png_holds_the_pixels(tmp_path: Path, c: int) -> None:
    x = images(1, c, 5, 7)[0]
    save_png(x, tmp_path / "new" / "x.png")
    with Image.open(tmp_path / "new" / "x.png") as opened:
        assert opened.mode == ("L" if c == 1 else "RGB")
        np.testing.assert_array_equal(np.asarray(opened), x[0] if c == 1 else x.transpose(1, 2, 0))
    grid = image_grid(images(3))
    save_png(grid, tmp_path / "y.png")
    with Image.open(tmp_path / "y.png") as opened:
        np.testing.assert_array_equal(np.asarray(opened), np.asarray(grid))


def test_impossible_pictures_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ShortflowError, match="1 or 3 channels, got 4"):
        image_grid(images(2, 4))
    with pytest.raises(ShortflowError, match="1 or 3 channels, got 2"):
        save_png(images(1, 2)[0], tmp_path / "x.png")
    with pytest.raises(ShortflowError, match="at least one image"):
        image_grid(images(0))
    with pytest.raises(ShortflowError, match="one column"):
        image_grid(images(1), columns=0)
    with pytest.raises(ShortflowError, match="at least one panel"):
        comparison([], columns=2)
