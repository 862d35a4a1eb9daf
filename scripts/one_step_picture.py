"""The picture of the README, what one step is and why it has to be learned: python scripts/one_step_picture.py

Trains flow matching and ESC on the same points in the plane (a minute each), and follows the same noise through both:
flow matching in 128 steps, flow matching in one, ESC in one.
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection

from shortflow import hub, runs
from shortflow.data import load
from shortflow.evaluate.points import energy_distance
from shortflow.flowmap import FlowMap
from shortflow.sample import noise

PAPER, INK, PALE, BLUE, ORANGE = "#ffffff", "#1f2328", "#c3c8ce", "#2f6fb2", "#d1661f"
CLOUD, FOLLOWED = 6000, 36
SEED = 3
SETTINGS = ("train.preview_every=0", "train.images=5_120_000")


def trained(recipe: str, data: str, out: Path) -> FlowMap:
    """The run in `out`, trained first where there is none."""
    if not (out / "model.safetensors").exists():
        run, dataset = runs.configure(recipe, data, settings=SETTINGS)
        for _ in runs.training(run, dataset, out, resume="auto"):
            pass
    return hub.load(out).flow


@torch.no_grad()
def followed(flow: FlowMap, eps: torch.Tensor, steps: int) -> torch.Tensor:
    """The states (steps + 1, n, 2) of a walk in `steps` steps: jumps, or Euler steps where only these are trained."""
    states = [eps]
    for k in range(steps):
        t, r = 1 - k / steps, 1 - (k + 1) / steps
        states.append(flow(states[-1], torch.full((len(eps),), t), torch.full((len(eps),), r), None))
    return torch.stack(states)


def panel(axes: Axes, title: str, states: torch.Tensor, words: str, colour: str) -> None:
    """Noise, the ways of some of it, and where all of it ends."""
    cloud, ways = states[-1], states[:, :FOLLOWED]
    axes.scatter(*cloud.T, s=1.2, color=PALE, linewidths=0, zorder=1)
    axes.add_collection(LineCollection(list(ways.permute(1, 0, 2).numpy()), colors=colour, linewidths=0.9, alpha=0.75))
    axes.scatter(*ways[0].T, s=13, facecolors=PAPER, edgecolors=colour, linewidths=0.9, zorder=3)
    axes.scatter(*ways[-1].T, s=15, color=colour, linewidths=0, zorder=4)
    axes.set(xlim=(-2.9, 2.9), ylim=(-2.9, 2.9), xticks=[], yticks=[], aspect="equal")
    axes.set_title(title, loc="left", fontsize=13, color=INK, fontweight="bold", pad=8)
    axes.text(0, -0.045, words, transform=axes.transAxes, va="top", fontsize=10.5, color=INK)
    for side in axes.spines.values():
        side.set_color(PALE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="pinwheel", help="unconditional points")
    parser.add_argument("--runs", type=Path, default=Path("out/picture"), help="where the two runs are, or go")
    parser.add_argument("--to", type=Path, default=Path(__file__).parents[1] / "docs/images/one-step.png")
    options = parser.parse_args()
    plain = trained("flow-matching", options.data, options.runs / "flow-matching")
    short = trained("esc", options.data, options.runs / "esc")
    real = torch.as_tensor(load(options.data, "test").samples[:CLOUD])
    eps = noise(SEED, 0, CLOUD, (2,))[0]
    rows = [
        ("Flow matching, 128 steps", followed(plain, eps, 128), BLUE, "follows the curved flow"),
        ("Flow matching, 1 step", followed(plain, eps, 1), BLUE, "lands on averages"),
        ("Shortcut (ESC), 1 step", followed(short, eps, 1), ORANGE, "knows where the flow ends"),
    ]
    figure, panels = plt.subplots(1, 3, figsize=(12.6, 4.75), facecolor=PAPER)
    for axes, (title, states, colour, words) in zip(panels, rows, strict=True):
        distance = float(energy_distance(states[-1], real))
        passes = "1 pass" if len(states) == 2 else f"{len(states) - 1} passes"
        panel(
            axes, title, states, f"{passes} of the network, {words}\nenergy distance to the data {distance:.4f}", colour
        )
        print(f"{title}: {passes}, energy distance {distance:.4f}")
    figure.subplots_adjust(left=0.01, right=0.99, top=0.92, bottom=0.13, wspace=0.04)
    options.to.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.to, dpi=130)


if __name__ == "__main__":
    main()
