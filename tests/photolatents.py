"""Photographs in two classes with a held-out half, one that cannot be read, an autoencoder, and stores of latents."""

from pathlib import Path

import numpy as np
from PIL import Image

from autoencoders import saved
from shortflow import runs
from shortflow.data.encoders import load_autoencoder
from shortflow.data.sources import open_source

__all__ = ["SIDE", "TINY", "photographs"]

SIDE = 16
TINY = (
    "network={kind: SiTConfig, size: tiny, depth: 1, width: 16, heads: 2}",
    "train.batch=8",
    "train.group=4",
    "train.images=16",
    "train.preview_every=0",
    "trackers=[]",
)


def photographs(here: Path) -> Path:
    """`photos` (train, test) with 40 and 24 images, `vae`, and `latents` (train, test) of the images of `photos`."""
    random = np.random.default_rng(0)
    for split, count in (("train", 40), ("test", 24)):
        for k in range(count):
            file = here / f"photos/{split}/{'ab'[k % 2]}/{k:02d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(256, size=(20, 24, 3), dtype=np.uint8)).save(file)
    autoencoder = load_autoencoder(str(saved(here / "vae")))
    for split in ("train", "test"):
        source = open_source(str(here / "photos"), split=split, resolution=SIDE)
        settings = runs.EncodeSettings(batch=8, shard=40, dtype="float32")
        runs.encode(runs.Images(source, autoencoder), autoencoder, here / "latents" / split, settings=settings)
    (here / "photos/train/a/99.png").write_bytes(b"no picture")
    return here
