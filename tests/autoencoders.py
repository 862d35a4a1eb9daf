"""A small autoencoder with the interface of diffusers' ones, saved as they are: config.json and a safetensors file."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from shortflow.data.encoders import register_autoencoder

CONFIG = {
    "_class_name": "SmallAutoencoder",
    "_diffusers_version": "0.42.1",
    "in_channels": 3,
    "latent_channels": 4,
    "factor": 4,
    "scaling_factor": 0.5,
}


@register_autoencoder
class SmallAutoencoder(nn.Module):
    """One convolution each way. The mirror of a latent is not the latent of the mirror: the kernels have a left."""

    def __init__(self, **config: Any) -> None:
        super().__init__()
        self.config = config
        channels, latents, side = config["in_channels"], config["latent_channels"], config["factor"]
        self.gaussian = config.get("gaussian", True)
        self.encoder = nn.Conv2d(channels, latents * (1 + self.gaussian), side, side)
        self.decoder = nn.ConvTranspose2d(latents, channels, side, side)

    def encode(self, x: Tensor) -> Any:
        if not self.gaussian:
            return SimpleNamespace(latent=self.encoder(x))
        mean, log_variance = self.encoder(x).chunk(2, dim=1)
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=mean, std=torch.exp(0.5 * log_variance - 2)))

    def decode(self, z: Tensor) -> Any:
        return SimpleNamespace(sample=self.decoder(z))


def saved(folder: Path, seed: int = 0, **config: Any) -> Path:
    """The folder of an autoencoder with weights of that seed."""
    settings = {**CONFIG, **config}
    module = SmallAutoencoder(**{name: value for name, value in settings.items() if not name.startswith("_")})
    generator = torch.Generator().manual_seed(seed)
    weights = {name: 0.3 * torch.randn(w.shape, generator=generator) for name, w in module.state_dict().items()}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(settings))
    save_file(weights, str(folder / "diffusion_pytorch_model.safetensors"))
    return folder
