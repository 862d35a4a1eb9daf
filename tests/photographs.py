"""Archives of photographs for tests: real ones where `SHORTFLOW_DATA` has them, or else noise."""

import os
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

SAMPLES = Path(os.environ.get("SHORTFLOW_DATA", "nowhere")) / "imagenet-samples-256/imagenet_samples_256.zip"


def archive(path: Path, classes: int = 5, each: int = 4, labels: bool = True) -> Path:
    """A zip file of views of one photograph a class; in class folders, or all in one folder."""
    contents = _real(classes) or _noise(classes)
    with zipfile.ZipFile(path, "w") as file:
        for name, content in contents.items():
            for view in range(each):
                entry = f"{name}/{view}" if labels else f"{name}-{view}"
                if view == 0:
                    file.writestr(f"{entry}.jpg", content)
                    continue
                pixels, buffer = np.asarray(Image.open(BytesIO(content))), BytesIO()
                Image.fromarray(np.roll(pixels, 40 * view, axis=1)).save(buffer, "JPEG")
                file.writestr(f"{entry}.jpg", buffer.getvalue())
    return path


def _real(classes: int) -> dict[str, bytes]:
    if not SAMPLES.is_file():
        return {}
    with zipfile.ZipFile(SAMPLES) as file:
        names = sorted(name for name in file.namelist() if name.endswith(".jpg"))[:classes]
        return {name.split("/")[0]: file.read(name) for name in names}


def _noise(classes: int) -> dict[str, bytes]:
    random, found = np.random.default_rng(0), {}
    for k in range(classes):
        buffer = BytesIO()
        Image.fromarray(random.integers(256, size=(40, 48, 3), dtype=np.uint8)).save(buffer, "JPEG")
        found[f"class {k}"] = buffer.getvalue()
    return found
