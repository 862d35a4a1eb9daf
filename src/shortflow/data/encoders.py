"""Autoencoders of images: pixels ⇄ latents. The one door to diffusers, which is imported only where a model needs it.

An autoencoder is a folder with `config.json` (its class and settings) and `diffusion_pytorch_model*.safetensors`, as
diffusers saves it, or the name of one on the Hugging Face hub. Any class with `encode` and `decode` for images will do:
AutoencoderKL, AsymmetricAutoencoderKL, AutoencoderDC, AutoencoderTiny, or one of your own (`register_autoencoder`). No
pickled file is ever opened.

Its identity is a SHA-256 of config and tensors: of the JSON of the config's entries (but those that begin with an
underscore, which say where a copy came from, and those that are null), then of name, type, shape and bytes of every
tensor in the order of their names. Copies agree; other weights, or the same ones at another precision, do not.
"""

import contextlib
import hashlib
import importlib
import importlib.util
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from shortflow.data.latentspec import KNOWN, LatentSpec
from shortflow.errors import DataError, ShortflowError

__all__ = ["NAMES", "Autoencoder", "by_channel", "load_autoencoder", "register_autoencoder"]

NAMES = {name: f"stabilityai/{name}" for name in KNOWN}
"""Short names of repositories on the hub: the autoencoders that published one-step results on ImageNet use."""

_CONFIG, _STEM = "config.json", "diffusion_pytorch_model"
_WEIGHTS = f"{_STEM}.safetensors"  # or, in parts, {_STEM}-00001-of-00002.safetensors and so on with an index
_LARGEST_CONFIG = 2**20  # bytes
_OWN: dict[str, type[nn.Module]] = {}

Class = TypeVar("Class", bound=type[nn.Module])


def register_autoencoder(cls: Class) -> Class:
    """Make a class of yours known by its name, for folders whose config.json has that `_class_name`; a decorator.

    It is called with the entries of config.json as keywords (but those with an underscore), has `encode(x)`, which
    returns `latent_dist` with `mean` and `std`, or `latent`, and `decode(z)`, which returns `sample`; x in [−1, 1].
    """
    _OWN[cls.__name__] = cls
    return cls


@dataclass(frozen=True, kw_only=True, eq=False)
class Autoencoder:
    """An image autoencoder. It decodes z as its encoder gives it: scale and shift are applied by `LatentSpec` only.

    Attributes:
        module: the network, in evaluation mode, without gradients.
        name: what it was called: a name, or a path.
        sha256: its identity (see the module).
        channels: of its images and of its latents.
        factor: pixels a side for each latent a side.
        gaussian: whether latents have a spread; else their standard deviation is zero.
        shift, scale: what its config says, a number for each channel of the latents.
    """

    module: nn.Module
    name: str
    sha256: str
    channels: tuple[int, int]
    factor: int
    gaussian: bool
    shift: tuple[float, ...]
    scale: tuple[float, ...]

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    def check(self, resolution: int) -> None:
        """Raise `DataError` unless images of this side can be encoded."""
        if resolution < 1 or resolution % self.factor:
            below = max(1, resolution // self.factor) * self.factor
            raise DataError(
                f"{self.name} makes one latent of {self.factor}×{self.factor} pixels, which do not divide images of "
                f"side {resolution}; take {below} or {below + self.factor}"
            )

    def spec(
        self, resolution: int, scale: Sequence[float] | None = None, shift: Sequence[float] | None = None
    ) -> LatentSpec:
        """The specification of its latents. Scale and shift, one number or one a channel, replace the config's."""
        return LatentSpec(
            encoder=self.name,
            sha256=self.sha256,
            pixels=(self.channels[0], resolution, resolution),
            shift=self.shift if shift is None else by_channel(shift, self.channels[1], "shift"),
            scale=self.scale if scale is None else by_channel(scale, self.channels[1], "scale"),
        )

    @torch.no_grad()
    def encode(self, images: UInt8[np.ndarray, "n c h w"]) -> tuple[Float32[Tensor, "n k i j"], ...]:
        """Mean and standard deviation of the latents of each image, on the device; the mean alone if not `gaussian`."""
        x = torch.from_numpy(images).to(self.device).float() / 127.5 - 1
        mean, std = _latents(self.module.encode(x), self.name)  # pyright: ignore[reportCallIssue]
        return (mean.float(), std.float()) if std is not None else (mean.float(),)

    @torch.no_grad()
    def decode(self, z: Float32[np.ndarray, "n k i j"], batch: int = 32) -> UInt8[np.ndarray, "n c h w"]:
        """The images of latents, a batch at a time; NaN becomes 0, as in `DataSpec.decode`."""
        found = []
        for part in torch.from_numpy(z).split(batch):
            x = self.module.decode(part.to(self.device))  # pyright: ignore[reportCallIssue]
            x = x.sample if hasattr(x, "sample") else x[0]
            levels = ((x.float() + 1) * 127.5).nan_to_num(nan=0.0).round().clamp(0, 255)
            found.append(levels.to(torch.uint8).cpu().numpy())
        return np.concatenate(found)


def load_autoencoder(
    name: str,
    device: str | torch.device = "cpu",
    *,
    download: bool = True,
    say: Callable[[str], None] = lambda text: None,
) -> Autoencoder:
    """The autoencoder in a folder, or of that name: one of `NAMES`, or OWNER/REPOSITORY[/FOLDER] on the hub.

    Args:
        download: fetch it from the hub where it is not in the hub's cache on this disk; else it has to be there.
        say: told before the hub is reached.

    Raises:
        DataError: says what is missing or damaged, and what to do.
    """
    folder = _folder(name, download, say)
    config, files = _config(folder), _files(folder)
    if not files:
        raise DataError(
            f"{folder}: no {_WEIGHTS}; weights in other formats (.bin, .ckpt) can execute code when they are opened "
            "and are refused: open them where you trust them, and save them with save_pretrained(FOLDER)"
        )
    sha256 = _identity(config, files)
    try:
        module = _module(folder, config, files)
    except ShortflowError:
        raise
    except Exception as error:  # whatever a class of someone else's makes of a config and weights
        raise DataError(
            f"{folder}: {config['_class_name']} cannot be made of its config and weights "
            f"({_first_line(error)}); fetch the folder again, or install the version of diffusers that saved it"
        ) from error
    module.eval().requires_grad_(False).to(device)
    return _described(module, name, sha256, config)


# ----------------------------------------------------------------------------------------------------------- finding it


def _folder(name: str, download: bool, say: Callable[[str], None]) -> Path:
    """Where the autoencoder lies on this disk."""
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    repository = NAMES.get(name, name)
    parts = repository.split("/")
    fine = all(re.fullmatch(r"\w[\w.-]*", part) for part in parts) and 2 <= len(parts) <= 3
    if name not in NAMES and (path.exists() or not fine or name.startswith(("./", "../"))):
        raise DataError(
            f"there is no autoencoder at {name!r}: expected a folder with {_CONFIG} and {_WEIGHTS}, one of "
            f"{', '.join(NAMES)}, or OWNER/REPOSITORY on the Hugging Face hub"
        )
    hub: Any = importlib.import_module("huggingface_hub")
    inside = "/".join(parts[2:])
    wanted = (_CONFIG, _WEIGHTS, f"{_STEM}-*.safetensors", f"{_WEIGHTS}.index.json")
    patterns = [f"{inside}/{each}".lstrip("/") for each in wanted]
    fetch = {"repo_id": "/".join(parts[:2]), "allow_patterns": patterns}
    with contextlib.suppress(Exception):  # it is not in the cache, or only a part of it
        found = Path(hub.snapshot_download(**fetch, local_files_only=True)) / inside
        if (found / _CONFIG).is_file() and _files(found):
            return found
    nowhere = f"there is no folder {name}, and the autoencoder {repository} is not in the cache of the hub on this disk"
    by_hand = f"fetch it where there is a network (hf download {fetch['repo_id']}), and give the folder that it is in"
    if not download:
        raise DataError(f"{nowhere}; nothing is fetched unasked: {by_hand}")
    say(f"fetching the autoencoder {repository} from the Hugging Face hub")
    try:
        found = Path(hub.snapshot_download(**fetch)) / inside
    except Exception as error:  # whatever network, hub or cache raise: the remedy is the same
        raise DataError(f"{nowhere}, and the hub did not give it ({_first_line(error)}); {by_hand}") from error
    if not (found / _CONFIG).is_file():
        raise DataError(f"the repository {repository} has no {_CONFIG}; is it an autoencoder that diffusers has saved?")
    return found


def _config(folder: Path) -> dict[str, Any]:
    path = folder / _CONFIG
    try:
        if path.stat().st_size > _LARGEST_CONFIG:
            raise ValueError(f"it has {path.stat().st_size} bytes")
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{folder}: no {_CONFIG}; give the folder of an autoencoder of diffusers") from error
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read ({error}); fetch the folder again") from error
    if not isinstance(config, dict) or not isinstance(config.get("_class_name"), str):
        raise DataError(f"{path} names no class (_class_name); give the folder of an autoencoder of diffusers")
    return config


def _files(folder: Path) -> list[Path]:
    """The files of the weights; copies in lower precision that lie beside them are left out."""
    whole = folder / _WEIGHTS
    return [whole] if whole.is_file() else sorted(folder.glob(f"{_STEM}-*-of-*.safetensors"))


def _identity(config: Mapping[str, Any], files: Sequence[Path]) -> str:
    kept = {
        key: value
        for key, value in config.items()
        if value is not None and (not key.startswith("_") or key == "_class_name")
    }
    digest = hashlib.sha256(json.dumps(kept, sort_keys=True).encode())
    try:
        with contextlib.ExitStack() as stack:
            opened = [stack.enter_context(safe_open(str(path), "pt")) for path in files]
            place = {key: file for file in opened for key in file.keys()}  # noqa: SIM118
            for key in sorted(place):
                tensor = place[key].get_tensor(key)
                digest.update(json.dumps([key, str(tensor.dtype), list(tensor.shape)]).encode())
                digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    except (SafetensorError, OSError) as error:
        raise DataError(f"{files[0].parent}: the weights are damaged ({error}); fetch the folder again") from error
    return digest.hexdigest()


# ------------------------------------------------------------------------------------------------------------ making it


def _module(folder: Path, config: Mapping[str, Any], files: Sequence[Path]) -> nn.Module:
    name = config["_class_name"]
    own = _OWN.get(name)
    if own is not None:
        module = own(**{key: value for key, value in config.items() if not key.startswith("_")})
        tensors: dict[str, Tensor] = {}
        for path in files:
            tensors |= load_file(str(path))
        module.load_state_dict(tensors)
        return module.float()
    if importlib.util.find_spec("diffusers") is None:
        raise DataError(
            f"{folder} is a {name} of the package diffusers, which is not installed: pip install 'shortflow[latents]'"
        )
    diffusers: Any = importlib.import_module("diffusers")
    cls = getattr(diffusers, name, None) if re.fullmatch(r"[A-Z]\w*", name) else None
    if not (isinstance(cls, type) and issubclass(cls, nn.Module) and hasattr(cls, "encode") and hasattr(cls, "decode")):
        raise DataError(f"{folder}: {name} is no autoencoder of diffusers {diffusers.__version__} (encode and decode)")
    with _quietly(diffusers):
        return cls.from_pretrained(  # pyright: ignore[reportAttributeAccessIssue]
            str(folder), use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False
        ).float()


@contextlib.contextmanager
def _quietly(diffusers: Any) -> Iterator[None]:
    """Without the bar that diffusers shows for one file."""
    shown = diffusers.utils.logging.is_progress_bar_enabled()
    diffusers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            diffusers.utils.logging.enable_progress_bar()


def _described(module: nn.Module, name: str, sha256: str, config: Mapping[str, Any]) -> Autoencoder:
    """The autoencoder with what a small grey image shows about it."""
    known = {**config, **dict(getattr(module, "config", {}))}
    pixels, side = int(known.get("in_channels", 3)), 64
    device = next(module.parameters()).device
    try:
        with torch.no_grad():
            mean, std = _latents(module.encode(torch.zeros(1, pixels, side, side, device=device)), name)  # pyright: ignore[reportCallIssue]
            if mean.ndim != 4 or mean.shape[2] != mean.shape[3] or mean.shape[2] == 0 or side % mean.shape[2]:
                raise DataError(f"latents of shape {tuple(mean.shape[1:])} for images of {side}×{side}")
            back = module.decode(mean)  # pyright: ignore[reportCallIssue]
            back = back.sample if hasattr(back, "sample") else back[0]
            if tuple(back.shape) != (1, pixels, side, side):
                raise DataError(f"images of shape {tuple(back.shape[1:])} for latents of images of {side}×{side}")
    except Exception as error:
        raise DataError(
            f"{name}: {config['_class_name']} does not encode and decode images of {pixels} channels "
            f"({_first_line(error)}); autoencoders of videos, sounds or of images at given sizes cannot be used"
        ) from error
    channels = mean.shape[1]
    scale, shift = _units(known, channels, name)
    return Autoencoder(
        module=module,
        name=name,
        sha256=sha256,
        channels=(pixels, channels),
        factor=side // mean.shape[2],
        gaussian=std is not None,
        scale=scale,
        shift=shift,
    )


def _latents(answer: Any, name: str) -> tuple[Tensor, Tensor | None]:
    """Mean and standard deviation of what `encode` has answered."""
    law = getattr(answer, "latent_dist", None)
    if law is not None:
        return law.mean, law.std
    for attribute in ("latent", "latents"):
        if isinstance(getattr(answer, attribute, None), Tensor):
            return getattr(answer, attribute), None
    raise DataError(f"{name}: encode gives a {type(answer).__name__} with neither latent_dist nor latent")


def _units(config: Mapping[str, Any], channels: int, name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(scale, shift) by channel, with which diffusers uses the latents: (z − shift)·scaling_factor, and where there are
    latents_mean and latents_std, (z − latents_mean)·scaling_factor/latents_std."""
    factor = config.get("scaling_factor")
    std, mean, offset = (config.get(key) for key in ("latents_std", "latents_mean", "shift_factor"))
    if offset and mean is not None:
        raise DataError(f"{name}: the config has both shift_factor and latents_mean; give --shift and --scale")
    whole = 1.0 if factor is None else float(factor)
    stds = by_channel(std, channels, f"{name}: latents_std") if std is not None else (1.0,) * channels
    means = (
        by_channel(mean, channels, f"{name}: latents_mean") if mean is not None else (float(offset or 0),) * channels
    )
    if not all(math.isfinite(value) and value > 0 for value in (*stds, whole)):
        raise DataError(f"{name}: scaling_factor {whole} and latents_std {stds} must be positive")
    return tuple(whole / value for value in stds), means


def by_channel(values: Any, channels: int, what: str) -> tuple[float, ...]:
    """One number, or one for each channel, as one for each channel.

    Raises:
        DataError: if there are others.
    """
    found = [values] if isinstance(values, int | float) else list(values)
    try:
        numbers = tuple(float(value) for value in found)
    except (TypeError, ValueError) as error:
        raise DataError(f"{what}: expected numbers, got {values!r:.80}") from error
    if len(numbers) not in (1, channels):
        raise DataError(f"{what}: expected one number or {channels}, one for each channel, got {len(numbers)}")
    return numbers * channels if len(numbers) == 1 else numbers


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
