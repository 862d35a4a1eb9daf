"""Kernels that shortflow takes in the place of PyTorch's on a processor, beside them: python -m benchmarks.kernels

Linear maps (`shortflow.products`), GELU (`shortflow.activations`) and attention among few tokens
(`shortflow.fewtokens`), in the sizes of the built-in data sets and of SiT-S/2 and B/4: the pass forward alone, without
gradient, and both passes. The two ways take turns.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import report, tables
from benchmarks.measure import RESULTS, about, ratios, timed, write
from shortflow.activations import gelu
from shortflow.nn.attention import attend
from shortflow.products import linear, stock_products

__all__ = ["main", "measured"]

FILE = RESULTS / "kernels-cpu.json"
SECONDS = 0.01  # of a run, by as many calls as it takes


def _linear(rows: int, inputs: int, outputs: int) -> tuple[Callable[..., Tensor], list[Tensor]]:
    return linear, [torch.randn(rows, inputs), torch.randn(outputs, inputs), torch.randn(outputs)]


def _gelu(rows: int, width: int) -> tuple[Callable[..., Tensor], list[Tensor]]:
    return gelu, [torch.randn(rows, width)]


def _attention(images: int, heads: int, tokens: int, size: int) -> tuple[Callable[..., Tensor], list[Tensor]]:
    """Of queries, keys and contents that lie as a linear map leaves them."""
    made = torch.randn(images, tokens, 3, heads, size)
    return lambda made: attend(*made.permute(2, 0, 3, 1, 4).unbind(0)), [made]


KERNELS: dict[str, tuple[Callable[..., Any], tuple[int, ...]]] = {
    "linear map, digits (384 × 128 → 512)": (_linear, (384, 128, 512)),
    "linear map, S/2 (2,048 × 384 → 1,536)": (_linear, (2048, 384, 1536)),
    "linear map, B/4 (1,024 × 768 → 3,072)": (_linear, (1024, 768, 3072)),
    "GELU, digits (384 × 512)": (_gelu, (384, 512)),
    "GELU, S/2 (2,048 × 1,536)": (_gelu, (2048, 1536)),
    "GELU, B/4 (1,024 × 3,072)": (_gelu, (1024, 3072)),
    "attention, digits (96 images, 4 tokens)": (_attention, (96, 4, 4, 32)),
    "attention, MNIST (96 images, 49 tokens)": (_attention, (96, 4, 49, 32)),
    "attention, B/4 (16 images, 64 tokens)": (_attention, (16, 12, 64, 64)),
}


def measured(name: str, rounds: int) -> dict[str, Any]:
    """Seconds of a call and ratios to PyTorch's, of the pass forward and of both."""
    make, sizes = KERNELS[name]
    kernel, inputs = make(*sizes)
    slope = torch.randn_like(kernel(*inputs))
    grown = [x.clone().requires_grad_() for x in inputs]

    def forward() -> None:
        with torch.no_grad():
            kernel(*inputs)

    def both() -> None:
        torch.autograd.grad(kernel(*grown), grown, slope)

    found = {}
    for passes, run in (("forward", forward), ("both", both)):
        calls = max(1, round(SECONDS / min(timed({"ours": run}, 3, 3)["ours"])))

        def ours(run: Callable[[], None] = run, calls: int = calls) -> None:
            for _ in range(calls):
                run()

        def theirs(run: Callable[[], None] = ours) -> None:
            with stock_products():
                run()

        times = timed({"PyTorch's": theirs, "ours": ours}, rounds)
        found[passes] = {
            way: row | {"seconds": row["seconds"] / calls} for way, row in ratios(times, "PyTorch's").items()
        }
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--threads", type=int, default=(1, 2), nargs="+")
    parser.add_argument("--quick", action="store_true", help="one kernel once, as a test of the command; needs --out")
    parser.add_argument("--out", type=Path, help=f"default: benchmarks/results/{FILE.name}")
    options = parser.parse_args(arguments)
    if options.quick and options.out is None:
        parser.error("--quick measures nothing worth keeping; give --out, so that no results are replaced")
    head, rounds = about("python -m benchmarks.kernels"), 1 if options.quick else options.rounds
    kernels: dict[str, Any] = {name: {} for name in (list(KERNELS)[3:4] if options.quick else KERNELS)}
    before = torch.get_num_threads()
    for threads in options.threads:
        torch.set_num_threads(threads)
        for name, found in kernels.items():
            found[str(threads)] = measured(name, rounds)
    torch.set_num_threads(before)
    record = {"rounds": rounds, "kernels": kernels}
    write(options.out or FILE, record, head)
    print(tables.kernels({**head, **record}))
    if options.out is None:
        report.rewrite()


if __name__ == "__main__":
    main()
