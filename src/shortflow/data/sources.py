"""Images of any source, one by one: by name, or wherever they lie (`shortflow.data.formats`).

What `shortflow train` decodes at once, `shortflow encode` reads piece by piece: the same images in the same order.
"""

from pathlib import Path

from shortflow.data import builtin
from shortflow.data.decoded import Corrupt, check_failures, squared
from shortflow.data.formats import Arrays, Source, found_at, open_path
from shortflow.data.images import Crop, check_square
from shortflow.errors import DataError

__all__ = ["Source", "open_source"]


def open_source(
    source: str,
    split: str = "train",
    resolution: int | None = None,
    *,
    crop: Crop = "centre",
    image: str | None = None,
    label: str | None = None,
    corrupt: Corrupt = "refuse",
    root: Path | None = None,
) -> Source:
    """The images of a named set, or of a path, a pattern or the hub (see `shortflow.data.formats`).

    Args:
        split: of those that have splits.
        resolution: side of the squares in pixels. None: the side that all images share (`squared`).
        crop: how images become squares, see `shortflow.data.images.square`.
        image, label: fields or columns of shards and tables; the label "none" leaves labels out.
        corrupt: of images that are known to be unreadable, or whose size has to be read and cannot be; `Source.read`
            raises for damaged ones.
        root: where named data lie, see `shortflow.data.load`.

    Raises:
        DataError: if there are no such images.
    """
    if source not in builtin.names():
        if not found_at(source):
            raise builtin.unknown(source)
        found = open_path(source, split, resolution=resolution, crop=crop, image=image, label=label)
        check_failures(found, found.unreadable(), corrupt)
        return squared(found, corrupt=corrupt)
    check_square(resolution, crop)
    dataset = builtin.load(source, split, image=image, label=label, root=root)
    if not dataset.is_image:
        raise DataError(f"{source}: points have no latents; give images")
    return squared(
        Arrays(
            where=source,
            name=source,
            split=split,
            labels=dataset.labels,
            classes=dataset.classes,
            resolution=resolution,
            crop=crop,
            samples=dataset.samples,  # type: ignore[arg-type]
        )
    )
