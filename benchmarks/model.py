"""The step of many GPUs on paper, a model and not a measurement: python -m benchmarks.model

    T = C + max(0, M − H)        time of a step: computing, and what of the exchange cannot be hidden behind it
    C = rows · c F/(share · peak)                           c F: operations of an ESC step for one image
    M = bytes/link,  bytes = 2 (N − 1)/N · 4P (DDP) or 3 (N − 1)/N · 4P (FSDP2),  P weights in fp32
    H = min(overlap · M, time to hide behind)               DDP: the backward pass; FSDP2: all of C
    efficiency = C/T

Gradients go around a ring of all GPUs (FSDP2: weights twice and gradients once), so the slowest link sets the pace: the
one inside a machine for one machine, else the one between them, which all GPUs of a machine share. Every assumption is
an option. With the options left alone the table goes into docs/many-processes.md.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.report import filled
from benchmarks.tables import table
from shortflow.config import RunConfig
from shortflow.data import DataSpec
from shortflow.files import write_atomic
from shortflow.hub import check
from shortflow.nn.configs import SiTConfig, parameter_count
from shortflow.recipe import Recipe
from shortflow.recipes import esc, esc_plus

__all__ = ["PAGE", "Assumptions", "Exchange", "Network", "counted", "exchange", "step", "text"]

PAGE = Path(__file__).parents[1] / "docs" / "many-processes.md"
BLOCK = "scaling-model"
GPUS = (8, 64, 512)
GIGA = 1e9


@dataclass(frozen=True, kw_only=True)
class Assumptions:
    """What is assumed, in operations and bytes a second.

    Attributes:
        peak: of one GPU (H100 SXM, dense bf16).
        share: of the peak that a step reaches.
        cost: of an ESC step, in F (docs/performance.md); F is a forward pass.
        backward: of those, in the backward pass, beside which DDP exchanges gradients.
        node: GPUs of a machine.
        inside: from one GPU to others of its machine (NVLink).
        between: from one machine to others, for all its GPUs together (400 Gb/s).
        overlap: share of the exchange that runs beside computing, where there is enough of that.
        rows: images of one GPU, where the batch grows with the GPUs.
    """

    peak: float = 989e12
    share: float = 0.40
    cost: float = 4.4
    backward: float = 2.0
    node: int = 8
    inside: float = 450e9
    between: float = 50e9
    overlap: float = 0.8
    rows: int = 64


@dataclass(frozen=True, kw_only=True)
class Network:
    """What counts of a network: its weights, and the operations of F for one image."""

    name: str
    parameters: int
    forward: float
    batch: int


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """A step in N processes: bytes that each sends, seconds to compute and to exchange, and the share of computing."""

    bytes: float
    compute: float
    exchange: float
    efficiency: float


NETWORKS: dict[str, tuple[str, Recipe]] = {"SiT-B/2": ("B", esc()), "SiT-XL/2": ("XL", esc_plus())}


def counted(name: str) -> Network:
    """A published network on ImageNet's latents, with ESC's times, guidance and log-variance; nothing is computed."""
    size, recipe = NETWORKS[name]
    spec = DataSpec(name="latents", shape=(4, 32, 32), classes=tuple(map(str, range(1000))))
    flow = check(RunConfig(recipe=recipe, network=SiTConfig(size=size, patch=2)), spec)
    with torch.device("meta"), torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        x, t, label = torch.empty(1, *spec.shape), torch.empty(1), torch.zeros(1, dtype=torch.long)
        with FlopCounterMode(display=False) as counter:
            flow.predict(x, t, t, label)
    batch = recipe.published.batch if recipe.published else None
    assert batch is not None
    return Network(
        name=name, parameters=parameter_count(flow.network), forward=float(counter.get_total_flops()), batch=batch
    )


def exchange(parameters: int, gpus: int, way: Literal["ddp", "fsdp"]) -> float:
    """Bytes that each of the GPUs sends in a step, around a ring."""
    return {"ddp": 2, "fsdp": 3}[way] * (gpus - 1) / gpus * 4 * parameters


def step(network: Network, gpus: int, rows: float, way: Literal["ddp", "fsdp"], given: Assumptions) -> Exchange:
    """A step of `rows` images on each of the GPUs."""
    sent = exchange(network.parameters, gpus, way)
    link = given.inside if gpus <= given.node else min(given.inside, given.between)
    compute = rows * given.cost * network.forward / (given.share * given.peak)
    beside = compute * (given.backward / given.cost if way == "ddp" else 1.0)
    shown = sent / link - min(given.overlap * sent / link, beside)
    return Exchange(
        bytes=sent, compute=compute, exchange=sent / link, efficiency=compute / (compute + shown) if compute else 0.0
    )


def text(networks: Sequence[Network], given: Assumptions) -> str:
    """The table and what it assumes, as Markdown."""
    rows = [_row(network, gpus, given) for network in networks for gpus in GPUS]
    heads = ("network", ">GPUs", ">DDP sends", ">FSDP2 sends", ">images each", ">compute", ">efficiency, DDP", ">FSDP2")
    heads += (f">at {given.rows} images each, DDP", ">FSDP2")
    sizes = "; ".join(
        f"{each.name}: {each.parameters / 1e6:.0f} million weights, {each.forward / GIGA:.1f}·10⁹ operations a pass "
        f"and image, published batch {each.batch}"
        for each in networks
    )
    notes = (
        f"{sizes}.",
        f"A GPU computes {given.share:.0%} of {given.peak / 1e12:.0f}·10¹² operations a second (H100, bf16); a step "
        f"takes {given.cost:g} F, {given.backward:g} F of them in the backward pass.",
        f"{given.inside / GIGA:.0f} GB/s between the {given.node} GPUs of a machine, {given.between / GIGA:.0f} GB/s "
        f"({given.between * 8 / GIGA:.0f} Gb/s) from a machine to the others; up to {given.overlap:.0%} of the "
        "exchange runs beside computing.",
        "Not in the model: latency, stragglers, reading data, and that a GPU reaches less of its peak with few images.",
    )
    return "\n\n".join([table(heads, rows), "\n".join(f"- {note}" for note in notes), "`python -m benchmarks.model`"])


def _row(network: Network, gpus: int, given: Assumptions) -> tuple[str, ...]:
    rows = network.batch / gpus
    published = [step(network, gpus, rows, way, given) for way in ("ddp", "fsdp")]
    grown = [step(network, gpus, given.rows, way, given) for way in ("ddp", "fsdp")]
    at_batch = (f"{rows:g}", f"{published[0].compute * 1e3:.1f} ms", *(f"{each.efficiency:.0%}" for each in published))
    return (
        network.name,
        str(gpus),
        *(f"{each.bytes / GIGA:.2f} GB, {each.exchange * 1e3:.1f} ms" for each in published),
        *(at_batch if rows >= 1 else ("–",) * 4),
        *(f"{each.efficiency:.0%}" for each in grown),
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    usual = Assumptions()
    for each in fields(Assumptions):
        default = getattr(usual, each.name)
        parser.add_argument(f"--{each.name}", type=type(default), default=default, help=f"default: {default:g}")
    parser.add_argument("--page", type=Path, default=PAGE, help="that has the table")
    options = vars(parser.parse_args(arguments))
    page = options.pop("page")
    given = replace(usual, **options)
    found = text([counted(name) for name in NETWORKS], given)
    print(found)
    if given == usual:
        write_atomic(page, filled(page.read_text(), {BLOCK: found}))


if __name__ == "__main__":
    main()
