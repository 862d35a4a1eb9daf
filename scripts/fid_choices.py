"""Print what each choice of an FID pipeline changes, on real images: resize, files, rounding, N, sums, order.

    python scripts/fid_choices.py [resize files numbers] [--images 40] [--inception FILE]

`resize` and `files` see photographs (imagenet-samples-256) and CIFAR-10 under SHORTFLOW_DATA through Inception-v3;
without --inception it has random weights, so the figures say how far a choice moves features, and none is an FID.
`numbers` takes the features of the shipped CIFAR-10 classifier of thousands of images. See docs/evaluation.md.
"""

import argparse
import io
import os
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.linalg import sqrtm
from torch import Tensor, nn

from shortflow.data import load
from shortflow.data.stored import open_images
from shortflow.evaluate import (
    Extractor,
    Inception,
    Moments,
    SplitScores,
    frechet_distance,
    load_classifier,
    load_inception,
    neighbour_scores,
)

Pixels = np.ndarray


def extractor_of(path: Path | None) -> Extractor:
    """Inception with the weights of a file, or with random ones that keep activations in size."""
    if path is not None:
        return load_inception(path)
    torch.manual_seed(0)
    network = Inception().requires_grad_(False).eval()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return Extractor(
        name="random Inception-v3",
        weights="0" * 64,
        dimension=2048,
        network=network,
        size=299,
        resize="tf1-bilinear",
        mean=(128.0,),
        std=(128.0,),
    )


def photographs(count: int) -> dict[str, Pixels]:
    """2·count images of each kind, in a random order."""
    root = Path(os.environ["SHORTFLOW_DATA"]) / "imagenet-samples-256"
    stored = open_images(next(root.glob("*.zip"), root))
    chosen = np.random.default_rng(0).permutation(stored.count)[: 2 * count]
    images = np.concatenate([next(iter(stored.read(k, k + 1))) for k in chosen])
    cifar = load("cifar10", "test").samples
    return {
        "photographs, 256": images,
        "CIFAR-10, 32": cifar[np.random.default_rng(0).permutation(10_000)[: 2 * count]],
    }


def through_pillow(images: Pixels) -> Pixels:
    """Resized to 299 as 8-bit pictures: bilinear with a filter, rounded and clamped."""
    pictures = [
        Image.fromarray(image.transpose(1, 2, 0)).resize((299, 299), Image.Resampling.BILINEAR) for image in images
    ]
    return np.stack([np.asarray(picture).transpose(2, 0, 1) for picture in pictures])


def jpeg(quality: int) -> Callable[[Pixels], Pixels]:
    def compressed(image: Pixels) -> Pixels:
        file = io.BytesIO()
        Image.fromarray(image.transpose(1, 2, 0)).save(file, "JPEG", quality=quality)
        return np.asarray(Image.open(file)).transpose(2, 0, 1)

    return lambda images: np.stack([compressed(image) for image in images])


def truncated(images: Pixels) -> Pixels:
    """The pixels of continuous images, cut instead of rounded: u with u − ½ ≤ x < u + ½ becomes ⌊x⌋."""
    x = images + np.random.default_rng(1).uniform(-0.5, 0.5, images.shape)
    return np.clip(np.floor(x), 0, 255).astype(np.uint8)


def print_changes(
    extractor: Extractor, count: int, changes: dict[str, Callable[[Pixels], tuple[Extractor, Pixels]]]
) -> None:
    """Of each change: how far it moves features, and the distance of images to themselves, in per cent of others'."""
    print(f"\n{extractor.name}, {count} images\n\n| images | choice | features move by | distance to itself |")
    print("| --- | --- | ---: | ---: |")
    for kind, images in photographs(count).items():
        base, other = (extractor.run(half).features for half in (images[:count], images[count:]))
        scale = frechet_distance(Moments.of(base), Moments.of(other))
        for name, change in changes.items():
            features = (seen := change(images[:count]))[0].run(seen[1]).features
            moved = float((features - base).norm() / (base - base.mean(0)).norm())
            distance = frechet_distance(Moments.of(features), Moments.of(base))
            print(f"| {kind} | {name} | {moved:.1%} | {distance / scale:.2%} |", flush=True)


def print_resizes(extractor: Extractor, count: int) -> None:
    def by(name: str) -> Callable[[Pixels], tuple[Extractor, Pixels]]:
        return lambda images: (replace(extractor, resize=name), images)

    print_changes(
        extractor,
        count,
        {
            "half-pixel bilinear (pytorch-fid)": by("bilinear"),
            "bicubic with a filter, floats (clean-fid)": by("bicubic-antialias"),
            "x/127.5 − 1 for (x − 128)/128 (pytorch-fid)": lambda images: (
                replace(extractor, mean=(127.5,), std=(127.5,)),
                images,
            ),
            "Pillow's bilinear, rounded to 8 bits": lambda images: (extractor, through_pillow(images)),
        },
    )


def print_files(extractor: Extractor, count: int) -> None:
    changes = {"JPEG, quality 95": jpeg(95), "JPEG, quality 75": jpeg(75), "cut to 8 bits, not rounded": truncated}
    print_changes(
        extractor, count, {name: lambda images, f=change: (extractor, f(images)) for name, change in changes.items()}
    )


def print_numbers() -> None:
    """Choices that need many images, in the 64 features of the CIFAR-10 classifier."""
    classifier = load_classifier("cifar10")
    train, test = load("cifar10", "train"), load("cifar10", "test")
    features, logits = classifier.run(test.samples)
    known, reference = classifier.features(train.samples), classifier.moments
    print(f"\nclassifier cifar10 ({classifier.sha256[:12]}), real images against {reference.count:,} others\n")
    print("| N | Fréchet distance | · N |\n| ---: | ---: | ---: |")
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(0))
    for n in (100, 250, 500, 1000, 2500, 5000, 10_000):
        parts = features[order].split(n)[:20]
        value = sum(frechet_distance(Moments.of(part), reference) for part in parts) / len(parts)
        print(f"| {n:,} | {value:.3f} | {value * n:.0f} |")
    print("\n| choice | ours | otherwise |\n| --- | ---: | ---: |")
    _print_sums(features, reference)
    ours, again = (
        float(SplitScores.of(z, torch.arange(len(z)), len(z)).value()[0])
        for z in (logits[order], logits[test.labels.argsort()])
    )
    print(f"| classifier score: images in random order, sorted by class | {ours:.3f} | {again:.3f} |")
    a, b = features[order][:2000], known[order][:2000]
    for k in (3, 5):
        scores = neighbour_scores(a, b, k=k)
        print(f"| precision and recall, 2,000 images a side, k = {k} | {scores.precision:.3f}, {scores.recall:.3f} | |")
    pairs = [neighbour_scores(features[order][:n], b, k=3).recall for n in (2000, 10_000)]
    print(f"| recall, k = 3, 2,000 references: of 2,000 images, of 10,000 | {pairs[0]:.3f} | {pairs[1]:.3f} |")


def _print_sums(features: Tensor, reference: Moments) -> None:
    """The covariance as a difference of float32 sums, of features as they are and far from zero; matrix roots."""
    for shift in (0.0, 1000.0):
        x = features + shift
        mean = x.mean(0)
        cov = (x.T @ x - len(x) * torch.outer(mean, mean)).double() / (len(x) - 1)
        naive = Moments(count=len(x), mean=mean.double() - shift, scatter=cov * (len(x) - 1))
        exact = Moments.of(features)
        name = f"float32 sums of products, mean moved by {shift:g}"
        print(f"| {name} | {frechet_distance(exact, reference):.4f} | {frechet_distance(naive, reference):.4f} |")
    few = Moments.of(features[:40])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is singular
        root = sqrtm((few.cov @ reference.cov).numpy())
    value = (few.mean - reference.mean).square().sum() + few.trace + reference.trace - 2 * np.trace(root).real
    ours = frechet_distance(few, reference)
    print(f"| 40 images (singular): eigenvalues, matrix root | {ours:.6f} | {float(value):.6f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", metavar="WHAT", help="resize, files, numbers; by default all")
    parser.add_argument("--images", type=int, default=40, help="images of each kind (default: 40)")
    parser.add_argument("--inception", type=Path, help="the published weights, if you have them")
    arguments = parser.parse_args()
    chosen = arguments.what or ["resize", "files", "numbers"]
    if "resize" in chosen:
        print_resizes(extractor_of(arguments.inception), arguments.images)
    if "files" in chosen:
        print_files(extractor_of(arguments.inception), arguments.images)
    if "numbers" in chosen:
        print_numbers()


if __name__ == "__main__":
    main()
