"""A small per-frame autoencoder with the interface of diffusers' video VAEs.

Blocks of 4x4 pixels (48 numbers) are projected on their first 16 principal components; convolutions
refine both directions, down at latent resolution, up at three:

    z = P (b - mean) + E(b),        x = blocks(mean + P^T z) + D(z).

One frame at a time, because temporal compression ghosts moving objects. `latents_mean` and
`latents_std` follow Wan's convention, latent = (raw - mean) / std. Channel k keeps a standard deviation
proportional to std_k^0.5: unit variance in every channel would put texture at the same signal-to-noise
ratio as colour, and a small flow then scatters objects over unrelated patches.
"""

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn


def _conv(n_in: int, n_out: int) -> nn.Conv2d:
    return nn.Conv2d(n_in, n_out, 3, padding=1)


class _Residual(nn.Module):
    """x + conv(silu(conv(silu(x))))."""

    def __init__(self, width: int):
        super().__init__()
        self.first, self.second = _conv(width, width), _conv(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, h, w), the same."""
        return x + self.second(F.silu(self.first(F.silu(x))))


class PatchVAE(ModelMixin, ConfigMixin):
    """Video (B, 3, T, H, W) in [-1, 1] <-> raw latent (B, z_dim, T, H/4, W/4)."""

    @register_to_config
    def __init__(
        self,
        z_dim: int = 16,
        hidden: int = 64,
        scale_factor_spatial: int = 4,
        scale_factor_temporal: int = 1,
        latents_mean: tuple = (0.0,) * 16,
        latents_std: tuple = (1.0,) * 16,
    ):
        super().__init__()
        n = 3 * scale_factor_spatial**2
        self.patch = scale_factor_spatial
        self.mean = nn.Parameter(torch.zeros(n), requires_grad=False)
        self.basis = nn.Parameter(torch.eye(z_dim, n), requires_grad=False)
        self.encoder = nn.Sequential(
            _conv(n, 48), nn.SiLU(), _conv(48, 48), nn.SiLU(), _conv(48, z_dim)
        )
        self.decoder = nn.Sequential(
            _conv(z_dim, hidden),
            _Residual(hidden),
            _Residual(hidden),
            _conv(hidden, 2 * hidden),
            nn.PixelShuffle(2),
            _Residual(hidden // 2),
            _conv(hidden // 2, hidden),
            nn.PixelShuffle(2),
            _Residual(hidden // 4),
            _conv(hidden // 4, 3),
        )
        for refinement in (self.encoder[-1], self.decoder[-1]):  # begin as plain PCA
            nn.init.zeros_(refinement.weight)
            nn.init.zeros_(refinement.bias)

    def encode(self, x: Tensor):
        """Raw latent of a video, as `.latent_dist.mode()`."""
        blocks = F.pixel_unshuffle(_frames(x), self.patch)
        centred = blocks - self.mean[:, None, None]
        z = torch.einsum("kn,bnhw->bkhw", self.basis, centred) + self.encoder(centred)
        z = _video(z, x.shape[2])
        return SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: z))

    def decode(self, z: Tensor, return_dict: bool = True):
        """Video of a raw latent, as `.sample`."""
        frames = _frames(z)
        blocks = torch.einsum("kn,bkhw->bnhw", self.basis, frames) + self.mean[:, None, None]
        x = _video(F.pixel_shuffle(blocks, self.patch) + self.decoder(frames), z.shape[2])
        return SimpleNamespace(sample=x) if return_dict else (x,)

    @torch.no_grad()
    def fit_pca(self, x: Tensor) -> None:
        """Set mean and basis to the principal components of the 4x4 blocks of x (B, 3, T, H, W)."""
        blocks = F.pixel_unshuffle(_frames(x), self.patch).movedim(1, -1).flatten(0, -2)
        self.mean.copy_(blocks.mean(0))
        _, vectors = torch.linalg.eigh(torch.cov((blocks - self.mean).T))
        self.basis.copy_(vectors.flip(1).T[: self.config.z_dim])


def _frames(x: Tensor) -> Tensor:
    return x.movedim(2, 1).flatten(0, 1)


def _video(x: Tensor, frames: int) -> Tensor:
    return x.unflatten(0, (-1, frames)).movedim(1, 2)
