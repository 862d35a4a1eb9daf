"""A folder of images as a `Dataset`: uint8 (n, c, h, w), c = 1 if all of them are grey and 3 otherwise.

The layout is the meaning: images side by side are unconditional, one sub-folder a class is conditional (classes in
sorted order), and sub-folders named train, test, val or validation are splits, each in one of the two layouts.
Every image is turned upright (EXIF), laid on white where transparent, brought to 8 bits, and cropped to a square.

Up to 64 MiB of pixels are decoded into memory. More are decoded once, into a file of `cache_folder()` that is mapped
into memory, so that a folder larger than memory can be used, and starts at once the next time. The file belongs to the
names, sizes and times of the images: where one of them changes, all are decoded anew, and the old file is removed.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BufferedIOBase
from pathlib import Path
from typing import IO, TypeVar, cast

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from shortflow.arrays import npy_header, open_array
from shortflow.data.dataset import Dataset
from shortflow.errors import DataError
from shortflow.files import atomic_path
from shortflow.typing import Report

__all__ = ["EXTENSIONS", "cache_folder", "center_crop", "listed", "load_folder", "read_image", "resize"]

T = TypeVar("T")
Pixels = UInt8[np.ndarray, "h w"] | UInt8[np.ndarray, "h w 3"]

EXTENSIONS = frozenset(
    {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pnm", ".jp2"}
)
_SPLITS = ("train", "test", "val", "validation")
_SHOWN = 5
_IN_MEMORY = 2**26  # bytes of pixels
_AT_ONCE = 512  # images that are decoded before the first of them is handed on
_FORMAT = 1  # of the decoded pixels: a number that changes with the meaning of what is above


def load_folder(
    folder: Path, split: str = "train", *, resolution: int | None = None, report: Report | None = None
) -> Dataset:
    """The images of `folder`, decoded by a pool of threads into memory, or into a memory-mapped file (see the module).

    Args:
        folder: see the module for the layouts.
        split: which split to take, where the folder has splits; "all" is all of them. A folder without splits is
            "train" and "all" at the same time.
        resolution: side in pixels, reached by `center_crop`. None: as they are, which needs squares of one size.
        report: called with (images decoded, images in all) on the way.

    Raises:
        DataError: names the folder or up to five files at fault, and the remedy; or the file that there is no space
            for.
    """
    if resolution is not None and resolution < 1:
        raise DataError(f"resolution must be at least 1 pixel, got {resolution}")
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "there is no such folder"
        raise DataError(f"{folder}: {what}; give the path of a folder of images")
    paths, names, classes = listed(folder, split)
    index = {name: k for k, name in enumerate(classes)}
    return Dataset(
        name=folder.resolve().name,
        samples=_pixels(folder, paths, split, resolution, report),
        labels=np.array([index[name] for name in names], dtype=np.int64) if classes else None,
        classes=classes,
        split=split,
    )


def listed(folder: Path, split: str) -> tuple[list[Path], list[str], tuple[str, ...]]:
    """The images of `folder`, the class of each, and all classes (none of both if it is flat), in a fixed order.

    Raises:
        DataError: as `load_folder`.
    """
    parts = _split_folders(folder, split)
    scans = [_scan(part) for part in parts]
    if len({classes for _, _, classes in scans}) > 1:
        raise DataError(f"{folder}: {', '.join(p.name for p in parts)} do not have the same classes; load one of them")
    paths = [path for files, _, _ in scans for path in files]
    return paths, [name for _, names, _ in scans for name in names], scans[0][2]


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/shortflow`, by default `~/.cache/shortflow`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "shortflow"


def center_crop(image: Image.Image, resolution: int) -> Image.Image:
    """The central square of `image`, scaled to `resolution` pixels.

    Halved by box filter while the short side is at least twice the resolution, then bicubic, then cropped: the
    preprocessing of Dhariwal & Nichol (2021), which published ImageNet results share.
    """
    while min(image.size) >= 2 * resolution:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = resolution / min(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    if size != image.size:
        image = image.resize(size, Image.Resampling.BICUBIC)
    left, top = (image.width - resolution) // 2, (image.height - resolution) // 2
    return image.crop((left, top, left + resolution, top + resolution))


def resize(samples: UInt8[np.ndarray, "n c h w"], resolution: int) -> UInt8[np.ndarray, "n c r r"]:
    """`center_crop` of every image of an array with one or three channels.

    Raises:
        DataError: if the resolution is below one pixel.
    """
    if resolution < 1:
        raise DataError(f"resolution must be at least 1 pixel, got {resolution}")
    if samples.shape[2:] == (resolution, resolution):
        return samples
    layers = samples[:, 0] if samples.shape[1] == 1 else samples.transpose(0, 2, 3, 1)
    return _stack([np.asarray(center_crop(Image.fromarray(layer), resolution)) for layer in layers])


def _hidden(path: Path) -> bool:
    return path.name.startswith(".") or path.name.lower() in ("thumbs.db", "desktop.ini", "__macosx")


def _entries(folder: Path) -> tuple[list[Path], list[Path]]:
    """Visible files and sub-folders of a folder, each sorted by name."""
    entries = sorted((p for p in folder.iterdir() if not _hidden(p)), key=lambda p: p.name)
    return [p for p in entries if not p.is_dir()], [p for p in entries if p.is_dir()]


def _split_folders(folder: Path, split: str) -> list[Path]:
    """The folders to read for `split`: those of the splits, or the folder itself if it has none."""
    files, folders = _entries(folder)
    if folders and not files and all(p.name in _SPLITS for p in folders):
        if split == "all":
            return folders
        if split not in {p.name for p in folders}:
            raise DataError(f"{folder}: no split {split!r}; there are {', '.join(p.name for p in folders)} and all")
        return [folder / split]
    if split not in ("train", "all"):
        raise DataError(
            f"{folder}: no split {split!r}, because the folder is not divided; "
            f"move the images to {folder / 'train'} and {folder / split}, or ask for 'train'"
        )
    return [folder]


def _scan(folder: Path) -> tuple[list[Path], list[str], tuple[str, ...]]:
    """(files, class of each file, classes) of a flat folder (no classes) or of a folder of class folders."""
    files, folders = _entries(folder)
    _check_extensions(folder, files)
    if not folders:
        if not files:
            raise DataError(f"{folder}: no image in it; images are {', '.join(sorted(EXTENSIONS))}")
        return files, [], ()
    if files:
        raise DataError(
            f"{folder}: {len(files)} images ({files[0].name}, …) lie beside {len(folders)} sub-folders "
            f"({folders[0].name}, …); keep all images at the top (unconditional) or all in sub-folders (classes)"
        )
    paths: list[Path] = []
    names: list[str] = []
    for sub in folders:
        inside, deeper = _entries(sub)
        if deeper:
            raise DataError(f"{deeper[0]}: a folder inside a class folder; put the images directly into {sub}")
        _check_extensions(sub, inside)
        if not inside:
            raise DataError(f"{sub}: a class without an image; add images or remove the folder")
        paths += inside
        names += [sub.name] * len(inside)
    check_classes(str(folder), [sub.name for sub in folders])
    return paths, names, tuple(sub.name for sub in folders)


def check_classes(where: str, classes: Sequence[str]) -> None:
    """Raise `DataError` if two classes differ in capital letters only: one of them is a slip, or will be on a disk that
    makes no difference."""
    known: dict[str, str] = {}
    for name in classes:
        other = known.setdefault(name.casefold(), name)
        if other != name:
            raise DataError(
                f"{where}: the classes {other} and {name} differ in capital letters only; put their images into one "
                "folder, or rename one"
            )


def _check_extensions(folder: Path, files: list[Path]) -> None:
    strange = [p for p in files if p.suffix.lower() not in EXTENSIONS]
    if strange:
        raise DataError(
            f"{folder}: {len(strange)} files are not images: {_some([p.name for p in strange])}; "
            f"move them away, or convert them to one of {', '.join(sorted(EXTENSIONS))}"
        )


def _check_sizes(folder: Path, paths: list[Path]) -> int:
    """The side that all images share, squares of one size, read from the headers so that nothing is decoded in vain."""

    def size(path: Path) -> tuple[int, int]:
        with Image.open(path) as image:
            return image.size

    first, sizes = paths[0], list(_decode(folder, paths, size))
    for path, (width, height) in zip(paths, sizes, strict=True):
        if width != height:
            raise DataError(f"{path}: {width}×{height} is not a square; give a resolution to crop and scale to")
        if (width, height) != sizes[0]:
            raise DataError(
                f"{path}: {width}×{height}, but {first.name} is {sizes[0][0]}×{sizes[0][1]}; "
                "give a resolution to crop and scale to"
            )
    return sizes[0][0]


def _pixels(
    folder: Path, paths: list[Path], split: str, resolution: int | None, report: Report | None
) -> UInt8[np.ndarray, "n c h w"]:
    """The images, in memory or memory-mapped."""
    where = f"{folder.resolve()} {split} {resolution} {_FORMAT}"
    key = hashlib.sha256(where.encode())
    for path in paths:
        stat = path.stat()
        key.update(f"{path.relative_to(folder)} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    place = hashlib.sha256(where.encode()).hexdigest()[:16]
    kept = cache_folder() / "folders" / f"{place}-{key.hexdigest()[:16]}.npy"
    if kept.is_file():
        try:
            return open_array(kept)
        except DataError:
            pass  # a damaged copy is written anew below
    side = resolution or _check_sizes(folder, paths)

    def decode() -> Iterator[Pixels]:
        return _decode(folder, paths, lambda path: read_image(path, resolution), report)

    if len(paths) * 3 * side**2 <= _IN_MEMORY:
        return _stack(list(decode()))
    try:
        _write(kept, decode, len(paths), side)
        for old in kept.parent.glob(f"{place}-*.npy"):
            if old != kept:
                old.unlink(missing_ok=True)
    except OSError as error:
        size = len(paths) * 3 * side**2 / 2**30
        raise DataError(
            f"{folder}: the decoded images, {size:.1f} GiB, cannot be written to {kept.parent} ({error.strerror}); "
            "make space there, or set XDG_CACHE_HOME to a folder that has it"
        ) from error
    return open_array(kept)


def _write(path: Path, decode: Callable[[], Iterator[Pixels]], n: int, side: int) -> None:
    """Write the n images as an array, whole or not at all."""
    try:
        _write_with(1, path, decode(), n, side)
    except _Coloured:  # as a rule the first image says so
        _write_with(3, path, decode(), n, side)


def _write_with(channels: int, path: Path, images: Iterator[Pixels], n: int, side: int) -> None:
    """Raises `_Coloured` at the first image that needs three channels where there is one."""
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        file.write(npy_header(np.uint8, (n, channels, side, side)))
        for image in images:
            if image.ndim == 3 and channels == 1:
                raise _Coloured
            planes = image if image.ndim == 2 else image.transpose(2, 0, 1)
            file.write(np.broadcast_to(planes, (channels, side, side)).tobytes())


class _Coloured(Exception):
    """One channel is not enough."""


def _decode(folder: Path, paths: list[Path], read: Callable[[Path], T], report: Report | None = None) -> Iterator[T]:
    """`read` of every path, in order; all failures are reported together, at the end."""
    failures: dict[Path, Exception] = {}

    def attempt(path: Path) -> list[T]:
        try:
            return [read(path)]
        except Exception as error:  # Pillow's decoders raise almost anything on a damaged file
            failures[path] = error
            return []

    with ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1)) as pool:
        for start in range(0, len(paths), _AT_ONCE):
            for values in pool.map(attempt, paths[start : start + _AT_ONCE]):
                yield from values
            if report is not None:
                report(min(start + _AT_ONCE, len(paths)), len(paths))
    if failures:
        reasons = [f"{path.relative_to(folder)} ({failures[path]})" for path in sorted(failures)]
        raise DataError(
            f"{folder}: {len(failures)} of {len(paths)} images cannot be read: {_some(reasons)}; "
            "replace or remove these files"
        )


def read_image(file: Path | BufferedIOBase, resolution: int | None = None) -> Pixels:
    """The image in a file, upright, opaque and in 8 bits: grey (h, w) or RGB (h, w, 3), after `center_crop`.

    Raises almost anything where it is damaged.
    """
    with Image.open(cast(IO[bytes], file)) as opened:
        image = _flatten(opened)
    return np.asarray(image if resolution is None else center_crop(image, resolution))


def _flatten(image: Image.Image) -> Image.Image:
    """An upright, opaque 8-bit image of mode L (grey) or RGB."""
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ValueError("32-bit float pixels have no known white; convert the file to 8 or 16 bits")
    if image.mode.startswith("I"):
        return _from_16_bit(image)
    if image.mode in ("La", "RGBa"):
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    grey = image.mode in ("1", "L", "LA")
    palette = image.mode in ("P", "PA")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
    if palette:
        # A grey picture is often stored with a palette; what counts is what is seen.
        pixels = np.asarray(image)
        grey = bool((pixels == pixels[..., :1]).all())
    # Equal channels become exactly that level: the weights of Pillow's luma add up to one.
    return image.convert("L") if grey else image


def _from_16_bit(image: Image.Image) -> Image.Image:
    levels = np.asarray(image).astype(np.int64)
    if levels.min() < 0 or levels.max() > 65535:
        raise ValueError(f"32-bit pixels {levels.min()}…{levels.max()} have no known white; convert to 8 or 16 bits")
    levels[levels == image.info.get("transparency", -1)] = 65535
    return Image.fromarray(np.rint(levels / 257).astype(np.uint8))


def _stack(images: Sequence[Pixels]) -> UInt8[np.ndarray, "n c h w"]:
    """Grey (h, w) and RGB (h, w, 3) images in one array; grey ones are repeated if any is RGB."""
    channels = 3 if any(image.ndim == 3 for image in images) else 1
    out = np.empty((len(images), channels, *images[0].shape[:2]), dtype=np.uint8)
    for row, image in zip(out, images, strict=True):
        row[:] = image if image.ndim == 2 else image.transpose(2, 0, 1)
    return out


def _some(items: list[str]) -> str:
    return ", ".join(items[:_SHOWN]) + (f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else "")
