"""Imported weights answer as the networks that they are from, in their conventions, written anew in `published.py`."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import published
from published import OTHER, SMALL, Sizes
from shortflow.data.latentspec import LatentSpec
from shortflow.errors import CheckpointError
from shortflow.flowmap import FlowMap
from shortflow.hub import interop
from shortflow.hub.interop.layout import read_layout
from shortflow.nn import SIZES
from shortflow.paths import Linear
from shortflow.reframe import reframe
from shortflow.sample import PushForward
from steps import close

TWO_SIZES = pytest.mark.parametrize("sizes", [SMALL, OTHER], ids=["small", "other"])
BOTH = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def loaded(
    kind: str, found: dict[str, Tensor], folder: Path, dtype: torch.dtype = torch.float32, **given: Any
) -> FlowMap:
    torch.save(found, folder / "weights.pt")
    return interop.load(kind, folder / "weights.pt", dtype=dtype, **given)


def near(got: Tensor, want: Tensor) -> None:
    """1e-5 in single, 1e-12 in double precision, of outputs of the size of one."""
    assert got.dtype == want.dtype
    assert 0.1 < float(want.abs().max()) < 30
    tolerance = 1e-5 if got.dtype == torch.float32 else 1e-12
    assert float((got - want).abs().max()) <= tolerance * float(want.abs().max())


@TWO_SIZES
@BOTH
@pytest.mark.parametrize(("kind", "head"), [("esc", True), ("esc", False), ("meanflow", False)])
def test_two_times(kind: str, head: bool, sizes: Sizes, dtype: torch.dtype, tmp_path: Path) -> None:
    """u(x, t, t − r, y), the average velocity, at times that count from the data; and ℓ(t)."""
    found = published.weights(sizes, second=True, log_variance=head, dtype=dtype)
    flow = loaded(kind, found, tmp_path, dtype)
    at = published.inputs(sizes, dtype)
    want = published.output(found, at["x"], at["label"], sizes.heads, at["t"], at["t"] - at["r"])
    near(flow.predict(at["x"], at["t"], at["r"], at["label"]), want)
    jump = at["x"] - (at["t"] - at["r"])[:, None, None, None] * want
    near(flow(at["x"], at["t"], at["r"], at["label"]), jump)
    if head:
        close(flow.log_variance(at["t"], at["r"], at["label"]), published.log_variance(found, at["t"]), 1e-5)
    assert (flow.network.logvar_linear is not None) == head  # pyright: ignore[reportAttributeAccessIssue]
    assert (flow.ends, flow.span, flow.null_label) == ("any", (0.0, 1.0), sizes.rows - 1)
    assert flow.guided is not None


@TWO_SIZES
@BOTH
def test_repa_counts_time_from_the_data(sizes: Sizes, dtype: torch.dtype, tmp_path: Path) -> None:
    found = published.weights(sizes, projectors=True, dtype=dtype)
    flow, at = loaded("repa", found, tmp_path, dtype), published.inputs(sizes, dtype)
    want = published.output(found, at["x"], at["label"], sizes.heads, at["t"])
    near(flow.velocity(at["x"], at["t"], at["label"]), want)
    assert (flow.ends, flow.guided) == ("diagonal", None)


@TWO_SIZES
@BOTH
@pytest.mark.parametrize("outputs", [1, 2])
def test_sit_counts_time_from_the_noise(sizes: Sizes, dtype: torch.dtype, outputs: int, tmp_path: Path) -> None:
    """It is told 1 − t and answers with the velocity from noise to data, in the first half of its channels."""
    sizes = Sizes(**{**vars(sizes), "outputs": outputs})
    found = published.weights(sizes, dtype=dtype)
    flow, at = loaded("sit", found, tmp_path, dtype), published.inputs(sizes, dtype)
    whole = published.output(found, at["x"], at["label"], sizes.heads, 1 - at["t"])
    assert whole.shape[1] == outputs * sizes.channels
    near(flow.velocity(at["x"], at["t"], at["label"]), -whole[:, : sizes.channels])


def test_sit_follows_its_own_flow(tmp_path: Path) -> None:
    """Euler's steps from noise to data in its own time, dx/dτ = v(x, τ), are those of the push-forward here."""
    found = published.weights(dtype=torch.float64)
    flow, at = loaded("sit", found, tmp_path, torch.float64), published.inputs(SMALL, torch.float64)
    x = at["x"]
    for i in range(4):
        x = x + published.output(found, x, at["label"], 2, torch.full((3,), i / 4, dtype=x.dtype)) / 4
    times = [1.0, 0.75, 0.5, 0.25, 0.0]
    close(PushForward().run(flow, at["x"][None], times, at["label"]), x, 1e-12)


def levels() -> Tensor:
    """ᾱ_k of DDPM's 1000 steps, β from 1e-4 to 0.02, multiplied up."""
    return torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)


def times_of(indices: list[int]) -> list[float]:
    """The times on the circle x_t = cos x + sin ε at which as much is left of the data."""
    return [float(torch.acos(levels()[k].sqrt()) * 2 / torch.pi) for k in indices]


@TWO_SIZES
@pytest.mark.parametrize("outputs", [1, 2])
def test_dit_predicts_the_noise_at_an_index(sizes: Sizes, outputs: int, tmp_path: Path) -> None:
    sizes = Sizes(**{**vars(sizes), "outputs": outputs})
    found = published.weights(sizes, dtype=torch.float64)
    flow, at = loaded("dit", found, tmp_path, torch.float64), published.inputs(sizes, torch.float64)
    index = [999, 417, 0]
    t = torch.tensor(times_of(index), dtype=torch.float64)
    want = published.output(found, at["x"], at["label"], sizes.heads, torch.tensor(index, dtype=torch.float64))
    noise = flow.predict(at["x"], t, t, at["label"])
    close(noise, want[:, : sizes.channels], 1e-8)
    close(flow.path.noise(at["x"], flow.velocity(at["x"], t, at["label"]), t), noise, 1e-9)
    assert flow.span == (0.0, pytest.approx(times_of([999])[0], abs=1e-12))


def test_dit_network_in_single_precision(tmp_path: Path) -> None:
    found = published.weights()
    flow, at = loaded("dit", found, tmp_path), published.inputs(SMALL, torch.float32)
    index = torch.tensor([999.0, 417.0, 0.0])
    near(flow.network(at["x"], index, None, at["label"]), published.output(found, at["x"], at["label"], 2, index))


def test_dit_takes_ddim_steps(tmp_path: Path) -> None:
    found = published.weights(dtype=torch.float64)
    flow, at = loaded("dit", found, tmp_path, torch.float64), published.inputs(SMALL, torch.float64)
    steps, left = [999, 700, 300, 50], torch.cat([levels(), torch.ones(1, dtype=torch.float64)])
    x = (1 - left[999]).sqrt() * at["x"]
    for k, after in zip(steps, [*steps[1:], -1], strict=True):
        noise = published.output(found, x, at["label"], 2, torch.full((3,), float(k), dtype=x.dtype))
        data = (x - (1 - left[k]).sqrt() * noise) / left[k].sqrt()
        x = left[after].sqrt() * data + (1 - left[after]).sqrt() * noise
    got = PushForward().run(flow, at["x"][None], [*times_of(steps), 0.0], at["label"])
    close(got, x, 1e-8)


# ----------------------------------------------------------------------------------------------------- sizes and names


@TWO_SIZES
def test_sizes_are_read_off_the_tensors(sizes: Sizes, tmp_path: Path) -> None:
    torch.save(published.weights(sizes, second=True, log_variance=True), tmp_path / "w.pt")
    found = interop.read("esc", tmp_path / "w.pt")
    network = found.run.network
    assert network.dimensions == (sizes.depth, sizes.width, sizes.heads)  # pyright: ignore[reportAttributeAccessIssue]
    assert found.spec.shape == (sizes.channels, sizes.side, sizes.side)
    assert (found.spec.num_classes, found.flow.null_label) == (sizes.rows - 1, sizes.rows - 1)
    assert (found.spec.scale, found.spec.shift, found.spec.image, found.spec.kind) == (1.0, 0.0, False, "latents")
    side = 8 * sizes.side
    assert found.spec.latent == LatentSpec(
        encoder="sd-vae-ft-ema",
        sha256=None,
        pixels=(3, side, side),
        shift=(0.0,) * sizes.channels,
        scale=(0.18125,) * sizes.channels,
    )
    assert (len(found.origin["sha256"]), found.origin["kind"]) == (64, "esc")


@pytest.mark.parametrize("name", ["S", "B", "M", "L", "XL"])
def test_published_sizes_have_their_heads(name: str) -> None:
    """Read from shapes alone: the tensors have no memory."""
    size = SIZES[name]
    sizes = Sizes(width=size.width, depth=size.depth, hidden=4 * size.width, side=32, rows=1001)
    tensors = {key: torch.empty(shape, device="meta") for key, shape in shapes(sizes).items() if key != "pos_embed"}
    layout = read_layout(tensors, interop.KINDS["repa"], side=32)
    assert layout.network.dimensions == size
    assert (layout.network.size, layout.network.patch, layout.classes, layout.null) == (name, 2, 1000, True)


def shapes(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a network, from those of one with one block that is narrower."""
    narrow = published.weights(Sizes(width=8, depth=1, heads=1, hidden=40, side=32, rows=1001, frequencies=256))
    scale = {8: sizes.width, 16: 2 * sizes.width, 24: 3 * sizes.width, 48: 6 * sizes.width, 40: sizes.hidden}
    found = {}
    for name, value in narrow.items():
        pixels = name.startswith(("final_layer.linear", "x_embedder"))
        shape = tuple(scale.get(n, n) if not (pixels and n == 16) else n for n in value.shape)
        for i in range(sizes.depth) if name.startswith("blocks.") else range(1):
            found[name.replace("blocks.0", f"blocks.{i}")] = shape
    return found


def test_heads_can_be_given(tmp_path: Path) -> None:
    found = published.weights()
    at = published.inputs(SMALL, torch.float32)
    flow = loaded("repa", found, tmp_path, heads=8)
    near(flow.velocity(at["x"], at["t"], at["label"]), published.output(found, at["x"], at["label"], 8, at["t"]))


@pytest.mark.parametrize("drift", [1e-4, 0.3])
def test_positions_of_their_own_are_kept(drift: float, tmp_path: Path) -> None:
    """An average of weights lets them drift by rounding; others are learned, or resampled."""
    found = published.weights(second=True)
    found["pos_embed"] += drift * torch.randn(found["pos_embed"].shape)
    flow, at = loaded("meanflow", found, tmp_path), published.inputs(SMALL, torch.float32)
    want = published.output(found, at["x"], at["label"], 2, at["t"], at["t"] - at["r"])
    near(flow.predict(at["x"], at["t"], at["r"], at["label"]), want)
    assert "network.pos_embed" in flow.state_dict()


def test_fixed_positions_are_no_part_of_the_weights(tmp_path: Path) -> None:
    assert "network.pos_embed" not in loaded("repa", published.weights(), tmp_path).state_dict()


def test_weights_without_positions_need_a_resolution(tmp_path: Path) -> None:
    found = published.weights()
    at = published.inputs(SMALL, torch.float32)
    want = published.output(found, at["x"], at["label"], 2, at["t"])
    del found["pos_embed"]
    near(loaded("repa", found, tmp_path, resolution=64).velocity(at["x"], at["t"], at["label"]), want)


@pytest.mark.parametrize(
    ("rows", "given", "classes", "null"), [(11, None, 10, 10), (11, 11, 11, None), (11, 10, 10, 10)]
)
def test_the_last_row_is_no_class(rows: int, given: int | None, classes: int, null: int | None, tmp_path: Path) -> None:
    flow = loaded("repa", published.weights(Sizes(rows=rows)), tmp_path, classes=given)
    assert (flow.num_classes, flow.null_label) == (classes, null)


def test_one_row_is_one_class(tmp_path: Path) -> None:
    flow = loaded("esc", published.weights(Sizes(rows=1), second=True), tmp_path)
    assert (flow.num_classes, flow.null_label, flow.guided) == (1, None, None)


def test_early_weights_share_the_embedding_of_times(tmp_path: Path) -> None:
    """Where t − r had the embedding of t, the second embedding is there, drawn and never trained: biases of zero."""
    found = published.weights(second=True)
    for layer in (0, 2):
        found[f"r_embedder.mlp.{layer}.bias"].zero_()
    at = published.inputs(SMALL, torch.float32)
    shared = found | {f"r{name[1:]}": value for name, value in found.items() if name.startswith("t_embedder")}
    want = published.output(shared, at["x"], at["label"], 2, at["t"], at["t"] - at["r"])
    near(loaded("meanflow", found, tmp_path).predict(at["x"], at["t"], at["r"], at["label"]), want)
    assert any("never trained" in note for note in interop.read("meanflow", tmp_path / "weights.pt").origin["notes"])


def test_early_repa_weights_count_their_blocks_in_two_rows(tmp_path: Path) -> None:
    sizes = Sizes(depth=3)
    found = published.weights(sizes)
    at = published.inputs(sizes, torch.float32)
    want = published.output(found, at["x"], at["label"], 2, at["t"])
    early = {name.replace("blocks.2.", "decoder_blocks.0."): value for name, value in found.items()}
    near(loaded("repa", early, tmp_path).velocity(at["x"], at["t"], at["label"]), want)


def test_half_precision_is_read_as_single(tmp_path: Path) -> None:
    found = {name: value.bfloat16() for name, value in published.weights().items()}
    flow = loaded("repa", found, tmp_path)
    assert {value.dtype for value in flow.parameters()} == {torch.float32}
    at = published.inputs(SMALL, torch.float32)
    wide = {name: value.float() for name, value in found.items()}
    near(flow.velocity(at["x"], at["t"], at["label"]), published.output(wide, at["x"], at["label"], 2, at["t"]))


def test_integers_are_no_weights(tmp_path: Path) -> None:
    found = published.weights() | {"blocks.1.attn.proj.bias": torch.zeros(128, dtype=torch.int64)}
    with pytest.raises(
        CheckpointError, match=r"no floating point \(1\):\n  blocks.N.attn.proj.bias: torch.int64 \(N = 1\)"
    ):
        loaded("repa", found, tmp_path)


@pytest.mark.parametrize(
    ("kind", "autoencoder", "scale"),
    [
        ("esc", "sd-vae-ft-ema", 0.18125),
        ("meanflow", "sd-vae-ft-ema", 0.18215),
        ("sit", "sd-vae-ft-ema", 0.18215),
        ("repa", "sd-vae-ft-mse", 0.18215),
        ("dit", "sd-vae-ft-ema", 0.18215),
    ],
)
def test_latents_are_those_of_their_project(kind: str, autoencoder: str, scale: float, tmp_path: Path) -> None:
    torch.save(published.weights(second=interop.KINDS[kind].second), tmp_path / "w.pt")
    for given, want in (({}, scale), ({"latent_scale": 0.5}, 0.5)):
        spec = interop.read(kind, tmp_path / "w.pt", **given).spec
        assert spec.latent is not None
        assert (spec.latent.encoder, set(spec.latent.scale), spec.scale) == (autoencoder, {want}, 1.0)
    spec = interop.read(kind, tmp_path / "w.pt", pixels=True).spec
    assert (spec.latent, spec.scale, spec.kind) == (None, 1.0, "images")


def test_dit_teaches_flows_on_the_straight_line(tmp_path: Path) -> None:
    """At equal noise-to-signal ratio: y = (α + σ) x', v' = ε̂ − (y − σ ε̂)/α."""
    found = published.weights(dtype=torch.float64)
    flow, at = loaded("dit", found, tmp_path, torch.float64), published.inputs(SMALL, torch.float64)
    index = torch.tensor([900.0, 400.0, 20.0], dtype=torch.float64)
    kept = levels()[index.long()].sqrt()[:, None, None, None]
    noise_level = (1 - kept**2).sqrt()
    y = (kept + noise_level) * at["x"]
    noise = published.output(found, y, at["label"], 2, index)
    want = noise - (y - noise_level * noise) / kept
    t = (noise_level / (kept + noise_level)).flatten()
    close(reframe(flow, Linear()).velocity(at["x"], t, at["label"]), want, 1e-7)
