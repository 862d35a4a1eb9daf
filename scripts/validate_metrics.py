"""Print what the image metrics say of real images that were damaged in known ways.

    python scripts/validate_metrics.py digits [mnist fashion-mnist cifar10] [--count 10000]

Every row starts from held-out real images; class means come from the reference. The order of the rows is what the
metrics are trusted for: see docs/evaluation.md. Real images but digits are looked up under SHORTFLOW_DATA.
"""

import argparse
from collections.abc import Iterator

import torch
from torch import Tensor

from shortflow.data import load
from shortflow.evaluate import Reference, evaluate_images, load_classifier, markdown_table, real_row, table


def to_pixels(values: Tensor) -> Tensor:
    return values.round().clamp(0, 255).to(torch.uint8)


def blur(images: Tensor, sigma: float) -> Tensor:
    """A Gaussian blur of `sigma` pixels, edges repeated."""
    radius = max(1, round(3 * sigma))
    kernel = torch.exp(-(torch.arange(-radius, radius + 1).float() ** 2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    n, c, h, w = images.shape
    planes = torch.nn.functional.pad(images.reshape(n * c, 1, h, w).float(), [radius] * 4, mode="replicate")
    rows = torch.nn.functional.conv2d(planes, kernel.reshape(1, 1, 1, -1))
    return to_pixels(torch.nn.functional.conv2d(rows, kernel.reshape(1, 1, -1, 1)).reshape(images.shape))


def conditions(x: Tensor, y: Tensor, means: Tensor) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(name, images, labels) of each damage to held-out images x with classes y; `means` holds a mean a class."""
    n, generator = len(x), torch.Generator().manual_seed(0)
    noise = torch.randn(x.shape, generator=generator) * 255
    yield "noise .05", to_pixels(x + 0.05 * noise), y
    yield "noise .1", to_pixels(x + 0.1 * noise), y
    yield "noise .3", to_pixels(x + 0.3 * noise), y
    yield "blur .5 px", blur(x, 0.5), y
    yield "blur 1 px", blur(x, 1.0), y
    few = torch.cat([torch.nonzero(y == label)[:10, 0] for label in range(10)])
    few = few.repeat(-(-n // len(few)))[:n]
    yield "10 images a class, repeated", x[few], y[few]
    yield "5 of 10 classes", x[y < 5], y[y < 5]
    yield "class means", to_pixels(means)[y], y
    yield "shuffled labels", x, y[torch.randperm(n, generator=generator)]
    yield "uniform noise", torch.randint(0, 256, x.shape, generator=generator, dtype=torch.uint8), y


def rows(name: str, count: int) -> dict[str, dict]:
    train, test = load(name, "train"), load(name, "test")
    x, y = torch.from_numpy(test.samples)[:count], torch.from_numpy(test.labels)[:count]
    images, labels = torch.from_numpy(train.samples), torch.from_numpy(train.labels)
    means = torch.stack([images[labels == label].double().mean(dim=0) for label in range(10)])
    classifier = load_classifier(name)
    reference = Reference.of(images, labels, held_out=x, held_out_labels=y, classifier=classifier)
    records = {"real (held out)": real_row(reference=reference, classifier=classifier)}
    for condition, damaged, told in conditions(x, y, means):
        records[condition] = evaluate_images(damaged, told, reference=reference, classifier=classifier)
    return records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", metavar="NAME")
    parser.add_argument("--count", type=int, default=10_000, help="held-out images used (default: 10000)")
    parser.add_argument("--markdown", action="store_true")
    arguments = parser.parse_args()
    for name in arguments.names:
        records = rows(name, arguments.count)
        print(f"{name}, classifier {load_classifier(name).sha256[:12]}")
        print((markdown_table if arguments.markdown else table)(records))
        print("class FD: " + ", ".join(f"{row} {r['class_fd']:.2f}" for row, r in records.items() if r["class_fd"]))


if __name__ == "__main__":
    main()
