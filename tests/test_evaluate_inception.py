"""Inception-v3 of FID: against a statement of its own, its files, and what is refused. All weights are random."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import inceptions
from shortflow.errors import MetricError
from shortflow.evaluate import Extractor, inception, load_inception
from shortflow.evaluate.inception import Inception, download_inception, find_inception
from shortflow.files import sha256_of


@pytest.fixture(scope="module")
def weights() -> inceptions.Weights:
    return inceptions.random_weights()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory, weights: inceptions.Weights) -> Path:
    path = tmp_path_factory.mktemp("inception") / "random.pth"
    torch.save(weights, path)
    return path


def uncounted(weights: inceptions.Weights) -> inceptions.Weights:
    """As older files have them."""
    return {name: value for name, value in weights.items() if not name.endswith("num_batches_tracked")}


@pytest.fixture(scope="module")
def extractor(file: Path) -> Extractor:
    return load_inception(file, published=False)


@pytest.fixture
def no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine that has no weights yet; its cache."""
    monkeypatch.delenv("SHORTFLOW_INCEPTION", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "shortflow" / "inception"


# ---------------------------------------------------------------------------------------------------------- the network


def test_the_layout_is_that_of_the_published_file(weights: inceptions.Weights) -> None:
    """566 tensors of 23,885,486 numbers, which the file of 95,628,359 bytes holds."""
    state = Inception().state_dict()
    assert (len(state), sum(value.numel() for value in state.values())) == (566, 23_885_486)
    assert {n: v.shape for n, v in state.items()} == {n: v.shape for n, v in weights.items()}
    assert inception.FILE.endswith(f"{inception.SHA256[:8]}.pth")
    assert all(url.endswith(f"-2015-12-05-{inception.SHA256[:8]}.pth") for url in inception.URLS)


def test_all_outputs_are_those_of_the_graph(extractor: Extractor, file: Path, weights: inceptions.Weights) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 61, 43), dtype=np.uint8)
    wanted, found = inceptions.activations(weights, images), extractor.run(images)
    for name, shape in {"features": (2, 2048), "logits": (2, 1008), "spatial": (2, 2023)}.items():
        value = getattr(found, name)
        assert value.shape == shape
        assert wanted[name].std() > 0.01  # there is something to compare
        torch.testing.assert_close(value, wanted[name], rtol=1e-5, atol=1e-5)
    with_bias = load_inception(file, published=False, bias=True)
    torch.testing.assert_close(with_bias.run(images[:1]).logits, wanted["biased"][:1], rtol=1e-5, atol=1e-5)
    assert with_bias.record() != extractor.record()


@pytest.mark.parametrize("block", ["Mixed_5b", "Mixed_6b", "Mixed_7b", "Mixed_7c"])
def test_pools_at_the_edges(block: str, weights: inceptions.Weights) -> None:
    """Where the padding would count, or another pool be taken, a constant image tells."""
    network = Inception().eval()
    network.load_state_dict(weights)
    part = network.get_submodule(block)
    channels = part.get_submodule("branch1x1").conv.in_channels
    pooled = part.get_submodule("branch_pool").conv.out_channels
    ramp = torch.arange(6.0)[:, None] * torch.ones(6)
    with torch.no_grad():
        flat = part(torch.ones(1, channels, 6, 6))[0, -pooled:]
        torch.testing.assert_close(flat, flat[:, :1, :1].expand_as(flat), rtol=1e-4, atol=1e-5)
        unit = part.get_submodule("branch_pool")
        moved = ramp + 1 if block == "Mixed_7c" else ramp.clone()
        moved[0], moved[-1] = (1.0, 5.0) if block == "Mixed_7c" else (0.5, 4.5)
        wanted = unit(moved.expand(1, channels, 6, 6))[0]
        torch.testing.assert_close(part(ramp.expand(1, channels, 6, 6))[0, -pooled:], wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_grey_images_are_repeated_and_one_image_does_not_depend_on_the_others(extractor: Extractor) -> None:
    images = np.random.default_rng(1).integers(0, 256, (2, 1, 32, 32), dtype=np.uint8)
    both = extractor.run(np.repeat(images, 3, axis=1))
    torch.testing.assert_close(extractor.run(images[1:]).features, both.features[1:], rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------------------------------------------------ the files


@pytest.mark.slow
def test_one_set_of_weights_is_known_in_any_file(
    extractor: Extractor, weights: inceptions.Weights, tmp_path: Path
) -> None:
    save_file(uncounted(weights), tmp_path / "w.safetensors")
    torch.save(uncounted(weights), tmp_path / "w.pth")
    for name in ("w.safetensors", "w.pth"):
        other = load_inception(tmp_path / name, published=False)
        assert other.record() == extractor.record()
        assert other.origin == {"file": name, "file_sha256": sha256_of(tmp_path / name)}
    torch.save({**weights, "fc.bias": weights["fc.bias"] + 1e-6}, tmp_path / "2.pth")
    different = load_inception(tmp_path / "2.pth", published=False)
    assert different.weights != extractor.weights


@pytest.mark.slow
def test_only_the_published_file_is_taken_unless_told(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        MetricError, match=rf"SHA-256 {sha256_of(file)}, but .* is {inception.SHA256}; .*--other-weights"
    ):
        load_inception(file)
    assert not load_inception(file, published=False).published
    monkeypatch.setattr(inception, "SHA256", sha256_of(file))
    assert load_inception(file).published
    assert not load_inception(file, bias=True).published


def test_where_the_file_is_looked_for(no_weights: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MetricError, match=r"no weights were given\. Fetch https://\S+ \(91 MiB, SHA-256 6726825d"):
        load_inception()
    monkeypatch.setenv("SHORTFLOW_INCEPTION", str(file))
    assert find_inception() == file
    monkeypatch.setenv("SHORTFLOW_INCEPTION", "nowhere.pth")
    assert find_inception(file) == file
    with pytest.raises(MetricError, match=r"there is no file nowhere\.pth"):
        find_inception()


class Payload:
    """An object whose unpickling would execute something."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("executed",)


@pytest.mark.slow
def test_damaged_and_foreign_files(
    weights: inceptions.Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def refused(content: object, message: str) -> None:
        torch.save(content, tmp_path / "w.pth")
        with pytest.raises(MetricError, match=message):
            load_inception(tmp_path / "w.pth", published=False)

    refused({**weights, "evil": Payload()}, "cannot be read as tensors .* never unpickled")
    assert not (tmp_path / "executed").exists()
    refused([1, 2], "holds a list, not a dictionary of tensors")
    refused({**weights, "fc.weight": torch.zeros(1000, 2048)}, "torchvision's Inception-v3 weights, another network")
    refused({k: v for k, v in weights.items() if k != "fc.bias"}, r"fc\.bias is missing; give pt_inception")
    refused({**weights, "AuxLogits.fc.weight": torch.zeros(2)}, "AuxLogits.fc.weight is not in the network")
    refused(
        {**weights, "fc.bias": torch.zeros(7)},
        r"fc\.bias is torch.float32 of shape \(7,\), the network wants \(1008,\)",
    )
    refused({**weights, "fc.bias": torch.full((1008,), torch.nan)}, r"fc\.bias is not finite")
    (tmp_path / "w.safetensors").write_bytes(b"nothing")
    with pytest.raises(MetricError, match="cannot be read as tensors"):
        load_inception(tmp_path / "w.safetensors", published=False)


# ---------------------------------------------------------------------------------------------------------- downloading


def test_a_download_is_checked_before_it_is_kept(
    no_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = tmp_path / "good.pth", tmp_path / "bad.pth"
    good.write_bytes(b"weights")
    bad.write_bytes(b"something else")
    monkeypatch.setattr(inception, "SHA256", sha256_of(good))
    with pytest.raises(MetricError, match=r"could not be fetched: file://\S+ \(sent a file with SHA-256 \w{12}…, not"):
        download_inception(urls=[bad.as_uri()])
    assert list(no_weights.iterdir()) == []
    seen: list[tuple[int, int]] = []
    kept = download_inception(lambda done, total: seen.append((done, total)), urls=[bad.as_uri(), good.as_uri()])
    assert kept == no_weights / inception.FILE
    assert kept.read_bytes() == b"weights"
    assert seen[-1] == (7, 7)
    assert find_inception() == kept
    assert download_inception(urls=[]) == kept  # there already


def test_without_a_network_the_remedy_is_said(no_weights: Path) -> None:
    with pytest.raises(
        MetricError, match=r"could not be fetched: http://127\.0\.0\.1:9/x \(.*refused.*--inception FILE or"
    ):
        download_inception(urls=["http://127.0.0.1:9/x"])


# ------------------------------------------------------------------------------------------------------------ the input


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((1, 3, 8, 8), np.float32), "needs uint8 images .* got float32 .* round and convert"),
        (np.zeros((0, 3, 8, 8), np.uint8), "at least one"),
        (np.zeros((3, 8, 8), np.uint8), r"got uint8 of shape \(3, 8, 8\)"),
        (np.zeros((1, 4, 8, 8), np.uint8), "takes images of 3 channels, got 4"),
        ("image.png", "got str"),
    ],
)
def test_other_input_is_refused(extractor: Extractor, images: object, message: str) -> None:
    with pytest.raises(MetricError, match=message):
        extractor.run(images)  # type: ignore[arg-type]
