"""`shortflow import`, and what can be done with a model that it has made."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import published
from autoencoders import saved
from published import Sizes
from shortflow import hub, runs
from shortflow.cli import main
from shortflow.data import DataSpec
from shortflow.data.encoders import load_autoencoder
from shortflow.errors import CheckpointError, ConfigError, MetricError
from shortflow.hub import interop
from shortflow.references import check_references

LATENTS = Sizes(width=64, depth=1, heads=1, patch=2, channels=4, side=8, rows=11, hidden=64, frequencies=16)
DIGITS = Sizes(width=64, depth=1, heads=1, patch=4, channels=1, side=8, rows=11, hidden=64, frequencies=16)


def shortflow(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    """(exit code, everything that was printed)."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return int(caught.value.code or 0), out + err


@pytest.fixture
def latents(tmp_path: Path) -> Path:
    """A run directory with imported ESC weights of latents."""
    torch.save({"ema": published.weights(LATENTS, second=True, log_variance=True), "steps": 7}, tmp_path / "0007.pt")
    interop.write(interop.read("esc", tmp_path / "0007.pt"), tmp_path / "esc")
    return tmp_path / "esc"


def digits_of(kind: str, folder: Path, **options: Any) -> Path:
    """A run directory with imported weights of the built-in digits."""
    torch.save(published.weights(DIGITS, **options), folder / f"{kind}.pt")
    interop.write(interop.read(kind, folder / f"{kind}.pt", pixels=True, data="digits"), folder / kind)
    return folder / kind


# -------------------------------------------------------------------------------------------------------------- import


def test_the_command_says_what_it_has_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = published.weights(LATENTS, second=True, log_variance=True)
    torch.save({"ema": found, "model": found, "steps": 1200}, tmp_path / "w.pt")
    out = tmp_path / "esc"
    code, said = shortflow(capsys, "import", tmp_path / "w.pt", "--from", "esc", "--out", out)
    assert code == 0
    lines = said.splitlines()
    assert lines[0] == (
        "esc, averaged weights: a SiT of 1 blocks, width 64 and 1 heads on patches of 2; 10 classes and “no class”; "
        f"latents 4×8×8 of sd-vae-ft-ema, times 0.18125 → {out / 'model.safetensors'}"
    )
    assert lines[1].startswith("note: taken to have guidance in the weights, as published (")
    assert lines[2] == f"Samples: shortflow sample {out} --encoder sd-vae-ft-ema --out samples.png"
    assert [path.name for path in out.iterdir()] == ["model.safetensors"]
    header = hub.read_header(out)
    assert header["data"] | {"classes": []} == {
        "name": "imagenet", "shape": [4, 8, 8], "classes": [], "shift": 0.0, "scale": 1.0, "image": False,
        "latent": {
            "encoder": "sd-vae-ft-ema", "sha256": None, "pixels": [3, 64, 64],
            "shift": [0.0] * 4, "scale": [0.18125] * 4,
        },
    }  # fmt: skip
    assert (header["images"], header["step"]) == (0, 1200)
    assert header["imported"] == {
        "kind": "esc",
        "project": "EDAPINENUT/ExplicitShortCut",
        "file": "w.pt",
        "sha256": hashlib.sha256((tmp_path / "w.pt").read_bytes()).hexdigest(),
        "weights": "ema",
        "notes": [],
    }


def test_options_of_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, ema = (published.weights(DIGITS, second=True, seed=seed) for seed in (1, 2))
    for found in (model, ema):
        del found["pos_embed"]
    torch.save({"ema": ema, "model": model}, tmp_path / "w.pt")
    arguments = [
        "--from",
        "meanflow",
        "--out",
        tmp_path / "run",
        "--model",
        "--heads",
        "4",
        "--classes",
        "11",
        "--pixels",
    ]
    arguments += ["--resolution", "8", "--data", "digits", "--set", "recipe.optimizer.lr=1e-5"]
    code, said = shortflow(capsys, "import", tmp_path / "w.pt", *arguments)
    assert code == 0, said
    loaded = hub.load(tmp_path / "run")
    weights = loaded.flow.network.state_dict()
    assert torch.equal(weights["x_embedder.proj.weight"], model["x_embedder.proj.weight"])
    assert loaded.run.network.dimensions.heads == 4  # pyright: ignore[reportAttributeAccessIssue]
    assert (loaded.spec.num_classes, loaded.flow.null_label, loaded.spec.image) == (11, None, True)
    assert (loaded.spec.name, loaded.run.data.source, loaded.run.recipe.optimizer.lr) == ("digits", "digits", 1e-5)
    assert loaded.flow.guided is None
    assert "note: taken to have guidance" not in said


def test_guidance_that_was_not_trained_can_be_taken_out(tmp_path: Path) -> None:
    torch.save(published.weights(LATENTS, second=True), tmp_path / "w.pt")
    found = interop.read("meanflow", tmp_path / "w.pt", settings=["objective.target.velocity=Conditional"])
    assert found.flow.guided is None


def test_published_settings_follow_the_width(tmp_path: Path) -> None:
    small, large = (interop.KINDS["esc"].recipe(width) for width in (768, 1152))
    assert small.objective.guided != large.objective.guided
    kinds = [interop.KINDS["meanflow"].recipe(width).objective.guided for width in (768, 1024, 1152)]
    assert len(set(kinds)) == 3


def test_a_directory_in_use_is_left_alone(latents: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (latents / "model.safetensors").read_bytes()
    code, said = shortflow(capsys, "import", tmp_path / "0007.pt", "--from", "esc", "--out", latents)
    assert code == 2
    assert f"{latents} is in use already; give another --out" in said
    assert (latents / "model.safetensors").read_bytes() == before
    with pytest.raises(CheckpointError, match="in use already"):
        interop.write(interop.read("esc", tmp_path / "0007.pt"), tmp_path / "0007.pt")


def test_errors_have_no_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = shortflow(capsys, "import", tmp_path / "none.pt", "--from", "esc", "--out", tmp_path / "run")
    assert (code, "Traceback" in said) == (2, False)
    assert "is not there; give a file of weights" in said
    assert not (tmp_path / "run").exists()


def test_the_model_is_the_flow_that_was_read(latents: Path, tmp_path: Path) -> None:
    flow, model = interop.load("esc", tmp_path / "0007.pt"), hub.load(latents, "cpu")
    at = published.inputs(LATENTS, torch.float32)
    args = (at["x"], at["t"], at["r"], at["label"])
    assert torch.equal(flow(*args), model.flow(*args))
    assert model.flow.guided == flow.guided
    assert model.imported is not None
    assert model.imported["kind"] == "esc"


# ---------------------------------------------------------------------------------------- sampling, scoring and showing


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in an empty folder of a machine that has fetched nothing from a hub."""

    def nothing(**asked: Any) -> str:
        raise OSError(f"{asked['repo_id']} is not here")

    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    monkeypatch.setattr("huggingface_hub.snapshot_download", nothing)


@pytest.mark.usefixtures("alone")
def test_latents_are_sampled_in_the_units_of_their_autoencoder(
    latents: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("sample", latents, "--n", 5, "--class", "3")
    code, said = shortflow(capsys, *arguments)
    assert code == 0
    assert "note: latents are not decoded: there is no folder sd-vae-ft-ema" in said
    assert "5 samples, 1 step → samples.npz" in said
    assert not Path("samples.png").exists()
    code, said = shortflow(capsys, *arguments, "--out", "latents.npy")
    assert code == 0
    assert "note: latents are not decoded" in said
    assert "5 samples → latents.npy" in said
    found, model = np.load("samples.npz"), hub.load(latents)
    assert (str(found["encoder"]), str(found["encoder_sha256"])) == ("sd-vae-ft-ema", "")
    assert (found["scale"].tolist(), found["shift"].tolist()) == ([0.18125] * 4, [0.0] * 4)
    x = next(iter(runs.draw(model.flow, DataSpec(name="units", shape=(4, 8, 8), image=False), 5, classes=[3])))
    for z, labels in (
        (found["latents"], found["labels"]),
        (np.load("latents.npy"), np.load("latents-labels.npy")),
    ):
        assert (z.shape, z.dtype, labels.tolist()) == ((5, 4, 8, 8), np.float32, [3] * 5)
        np.testing.assert_allclose(z, x.pixels / 0.18125, rtol=1e-6)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    ("arguments", "file"),
    [(("--out", "a.png"), "a.npz"), (("--single",), "samples.npz"), (("--interpolate", "--n", "8"), "samples.npz")],
)
def test_latents_are_no_pictures(
    arguments: tuple[str, ...], file: str, latents: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = shortflow(capsys, "sample", latents, *arguments)
    assert code == 0
    assert "note: latents are not decoded" in said
    assert [path.name for path in Path().iterdir()] == [file]


@pytest.mark.usefixtures("alone")
def test_latents_are_decoded_where_their_autoencoder_is(latents: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In a folder of its name, or in the one that is given; of its sum nothing is known, which is said and recorded."""
    for folder, option in (("sd-vae-ft-ema", ()), ("elsewhere", ("--encoder", "elsewhere"))):
        saved(Path(folder), factor=8)
        arguments = ("--n", 2, "--seed", 1, "--out", f"{folder}.npy", *option)
        code, said = shortflow(capsys, "sample", latents, *arguments)
        *notes, last = said.splitlines()
        assert (code, last) == (0, f"2 samples → {folder}.npy")
        unsure = folder == "elsewhere"
        assert [note.split(",")[0] for note in notes] == (
            ["note: not verified: whether elsewhere is sd-vae-ft-ema"] if unsure else []
        )
        assert (json.loads(Path(f"{folder}.json").read_text()).get("autoencoder_is") == "not verified") == unsure
    found, model = np.load("elsewhere.npy"), hub.load(latents)
    assert (found.shape, found.dtype) == ((2, 3, 64, 64), np.uint8)
    np.testing.assert_array_equal(found, np.load("sd-vae-ft-ema.npy"))
    z = next(iter(runs.draw(model.flow, model.spec, 2, seed=1))).pixels
    np.testing.assert_array_equal(found, load_autoencoder("elsewhere").decode(z))
    saved(Path("smaller"))
    code, said = shortflow(capsys, "sample", latents, "--encoder", "smaller")
    assert code == 2
    assert "smaller decodes latents of 4 channels to 4 times their side" in said


@pytest.mark.usefixtures("alone")
def test_another_known_autoencoder_is_refused(latents: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its shapes are the same, and images of ft-mse's decoder for ft-ema's latents are slightly wrong."""
    other = saved(Path("models--stabilityai--sd-vae-ft-mse/snapshots/31f2"), factor=8)
    code, said = shortflow(capsys, "sample", latents, "--encoder", other)
    assert code == 2
    assert f"{other} is another autoencoder than sd-vae-ft-ema, which the model was trained with" in said
    model = hub.load(latents)
    with pytest.raises(ConfigError, match="is another autoencoder than sd-vae-ft-ema"):
        runs.drawn_images(model, (1,), 2, autoencoder=load_autoencoder(str(other)))
    with pytest.raises(ConfigError, match=r"data\.encoder: .* is another autoencoder"):
        runs.decoding(model.spec, str(other))
    for folder, recorded in (("elsewhere", "not verified"), ("sd-vae-ft-ema", "name")):
        decoder = load_autoencoder(str(saved(Path(folder), factor=8)))
        record = runs.Drawing(autoencoder=decoder).record(model)
        assert record["autoencoder"] == {"name": folder, "sha256": decoder.sha256, "verified": recorded}


def test_latents_are_not_scored(latents: Path, tmp_path: Path) -> None:
    with pytest.raises(MetricError, match="this model makes latents, and images are scored"):
        runs.score(hub.load(latents), (1,), n=10)
    with pytest.raises(MetricError, match="this model makes latents; give the autoencoder that decodes them"):
        runs.drawn_images(hub.load(latents), (1,), 10)
    with pytest.raises(ConfigError, match="this model makes latents; write an array"):
        runs.save_folder(hub.load(latents), 2, tmp_path / "folder")


def test_guidance_in_the_weights_is_not_doubled(latents: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = shortflow(capsys, "sample", latents, "--guidance", "2")
    assert code == 2
    assert "guid" in said


def test_what_show_says(latents: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = shortflow(capsys, "show", latents)
    assert code == 0
    assert "imported from 0007.pt (esc, averaged weights)" in said
    assert "step 7" in said
    assert f"SHA-256 {hashlib.sha256((tmp_path / '0007.pt').read_bytes()).hexdigest()}" in said
    assert "imagenet, 4×8×8, latents of sd-vae-ft-ema, times 0.18125; 10 classes" in said
    assert "images seen" not in said
    assert "\nnetwork:\n  kind: SiTConfig\n" in said
    assert "\nrecipe:\n  name: esc\n" in said


def test_pixels_are_sampled_and_scored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = digits_of("sit", tmp_path)
    code, said = shortflow(capsys, "sample", run, "--n", 4, "--steps", 2, "--out", tmp_path / "s.png")
    assert code == 0, said
    assert (tmp_path / "s.png").is_file()
    code, said = shortflow(capsys, "evaluate", run, "--n", 12, "--steps", 2)
    assert code == 0, said
    assert json.loads((run / "evaluation.json").read_text())["rows"]["2 steps"]["n"] == 12


# ------------------------------------------------------------------------------------------------------------ training


@pytest.mark.parametrize("recipe", ["meanflow", "flow-matching"])
@pytest.mark.parametrize("kind", ["sit", "repa"])
def test_a_run_starts_from_imported_weights(
    recipe: str, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their network and weights: with a learning rate of (almost) zero the velocity stays what it was."""
    source = digits_of(kind, tmp_path)
    settings = [f"--set={each}" for each in ("images=32", "batch=32", "preview_every=0", "optimizer.lr=1e-12")]
    arguments = [recipe, "--data", "digits", "--init-from", source, "--out", tmp_path / "run", *settings]
    code, said = shortflow(capsys, "train", *arguments)
    assert code == 0, said
    old, new = hub.load(source, "cpu"), hub.load(tmp_path / "run", "cpu")
    assert (new.imported, new.run.network) == (None, old.run.network)
    at = published.inputs(DIGITS, torch.float32)
    label = torch.tensor([1, 0, 9])
    want = old.flow.velocity(at["x"], at["t"], label)
    assert float(want.abs().max()) > 0.1
    torch.testing.assert_close(new.flow.velocity(at["x"], at["t"], label), want, rtol=1e-4, atol=1e-4)


def test_a_diffusion_is_no_start_but_a_teacher(tmp_path: Path) -> None:
    source = str(digits_of("dit", tmp_path))
    with pytest.raises(ConfigError, match=r"the old model lives on Cosine.*distil it \(--teacher\)"):
        runs.configure("meanflow", "digits", init_from=source)
    run, _ = runs.configure("sct-distilled", "digits", teacher=source, settings=["images=32", "batch=32"])
    assert run.teacher == source


def test_another_latent_scale_is_refused(latents: Path) -> None:
    """0.18125 for 0.18215, a slip of digits that published weights have: no number of a run shows it."""
    model = hub.load(latents)
    run = runs.configure("meanflow", "digits")[0]
    run = replace(run, network=model.run.network, init_from=str(latents))
    assert model.spec.latent is not None
    spec = replace(
        model.spec,
        name="mine",
        classes=tuple("abcdefghij"),
        latent=replace(model.spec.latent, encoder="./vaes/sd-vae-ft-ema", sha256="ab" * 32, scale=(0.18215,) * 4),
    )
    with pytest.raises(ConfigError) as caught:
        check_references(run, spec)
    assert f"the scale of init_from {latents} is 0.18125, that of mine is 0.18215. Model and latents must agree" in str(
        caught.value
    )
    assert "--scale 0.18125 --shift 0.0, which writes no latent anew" in str(caught.value)


def test_latents_that_are_normalised_by_channel(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A mean and a deviation for each channel, as IMM, iMF and TVM have them (methods 3.0), go all the way."""
    mean, std = (0.86488, -0.27787343, 0.21616915, 0.3738409), (4.85503674, 5.31922414, 3.93725398, 3.9870003)
    torch.save(published.weights(LATENTS, second=True), tmp_path / "w.pt")
    given = ("--latent-scale", ",".join(repr(1 / s) for s in std), "--latent-shift", ",".join(map(repr, mean)))
    arguments = ("import", tmp_path / "w.pt", "--from", "meanflow", "--encoder", "./vaes/sd-vae-ft-mse", *given)
    code, said = shortflow(capsys, *arguments, "--out", tmp_path / "run")
    assert code == 0, said
    shown = "minus [0.86488, -0.277873, 0.216169, 0.373841], times [0.205972, 0.187997, 0.253984, 0.250815]"
    assert f"latents 4×8×8 of ./vaes/sd-vae-ft-mse, {shown}" in said
    assert f"latents of ./vaes/sd-vae-ft-mse, {shown};" in shortflow(capsys, "show", tmp_path / "run")[1]

    model = hub.load(tmp_path / "run", "cpu")
    x = torch.randn(3, 4, 8, 8)
    z = x.numpy() * np.array(std)[:, None, None] + np.array(mean)[:, None, None]
    np.testing.assert_allclose(model.spec.decode(x), z, rtol=1e-5, atol=1e-5)

    vae = saved(tmp_path / "vae", factor=8)
    code, said = shortflow(capsys, "sample", tmp_path / "run", "--n", 2, "--encoder", vae, "--out", tmp_path / "s.npy")
    assert code == 0, said
    raw = next(iter(runs.draw(model.flow, model.spec, 2))).pixels
    np.testing.assert_array_equal(np.load(tmp_path / "s.npy"), load_autoencoder(str(vae)).decode(raw))

    # Latents in the same units are a start for it; in the units of one number they are not.
    run = replace(runs.configure("meanflow", "digits")[0], network=model.run.network, init_from=str(tmp_path / "run"))
    here = replace(model.spec, name="mine")
    check_references(run, here)
    assert here.latent is not None
    for other, word in (({"scale": (0.18215,) * 4}, "scale"), ({"shift": (0.0,) * 4}, "shift")):
        with pytest.raises(ConfigError, match=f"the {word} of init_from .* is .*, that of mine is") as caught:
            check_references(run, replace(here, latent=replace(here.latent, **other)))
        assert f"--shift {','.join(map(repr, mean))}" in str(caught.value)


def test_classes_of_imported_weights_have_a_number_only(latents: Path) -> None:
    model = hub.load(latents)
    run = replace(
        runs.configure("esc", "digits")[0], network=model.run.network, init_from=str(latents), recipe=model.run.recipe
    )
    named = replace(model.spec, name="mine", classes=tuple("abcdefghij"))
    check_references(run, named)
    with pytest.raises(ConfigError, match="start from a model of data like these"):
        check_references(run, replace(named, classes=tuple("abc")))


def test_damage_to_an_imported_model_is_found(latents: Path) -> None:
    file = latents / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match="is damaged"):
        hub.load(latents)


def test_positions_of_their_own_go_through_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = published.weights(DIGITS)
    found["pos_embed"] += 0.1
    torch.save(found, tmp_path / "w.pt")
    interop.write(interop.read("repa", tmp_path / "w.pt", pixels=True, data="digits"), tmp_path / "old")
    settings = [f"--set={each}" for each in ("images=64", "batch=32", "preview_every=0", "save_every=1")]
    arguments = ["esc", "--data", "digits", "--init-from", tmp_path / "old", "--out", tmp_path / "new", *settings]
    assert shortflow(capsys, "train", *arguments)[0] == 0
    weights = hub.load(tmp_path / "new", "cpu").flow.network.state_dict()
    assert torch.equal(weights["pos_embed"], found["pos_embed"][0])
