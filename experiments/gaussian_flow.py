"""A pair of flows with a closed form: images, and the same images at half the resolution.

HR data are a Gaussian mixture of images, x0 ~ sum_i p_i N(mu_i, S), with spectra that fall as a power
of the spatial frequency; LR data are their block means, x0_lr = P x0, which is the mixture
sum_i p_i N(P mu_i, P S P^T). Both have exact velocities: in the eigenbasis of S, with eigenvalues l_j
and V_j = (1 - sigma)^2 l_j + sigma^2,

    v = sum_i r_i(z) [(sigma - (1 - sigma) l_j) / V_j (z - (1 - sigma) mu_i)_j - mu_ij],

r_i the posterior share of component i. Nothing is learned, LR and HR agree perfectly on what an
image is, and the power of the spectrum says how much of an image the LR flow can know.
`GaussianCascade` is the real engine around this pair, with an autoencoder that does nothing.
"""

from contextlib import nullcontext
from types import SimpleNamespace

import torch
from torch import Tensor

from s2flow.cascade import Cascade, LowFlow
from s2flow.recipe.identity import Recipe

SIDE, SCALE, COMPONENTS = 24, 2, 8  # pixels of an HR image, r, prototypes
WITHIN = 0.3  # share of the variance inside a component


class Mixture:
    """Gaussian mixture with one covariance; images (B, 1, 1, side, side) in float64.

    means: (M, D), covariance: (D, D); equal weights.
    """

    def __init__(self, means: Tensor, covariance: Tensor) -> None:
        spectrum, self.basis = torch.linalg.eigh(covariance)
        self.means, self.covariance, self.spectrum = means, covariance, spectrum.clamp_min(0)
        self.coordinates = means @ self.basis

    def velocity(self, z: Tensor, sigma: float) -> Tensor:
        """E[eps - x0 | z], exact; sigma in (0, 1]."""
        y = z.flatten(1) @ self.basis
        V = (1 - sigma) ** 2 * self.spectrum + sigma**2
        d = y[:, None] - (1 - sigma) * self.coordinates  # (B, M, D)
        share = (-(d * d / V).sum(-1) / 2).softmax(-1)
        slope = (sigma - (1 - sigma) * self.spectrum) / V
        v = (share[..., None] * (slope * d - self.coordinates)).sum(1)
        return (v @ self.basis.T).view(z.shape)

    def block_means(self, r: int) -> "Mixture":
        """The mixture of the r x r block means."""
        side = round(self.means.shape[1] ** 0.5)
        axis = torch.eye(side // r, dtype=torch.float64).repeat_interleave(r, dim=1) / r
        P = torch.kron(axis, axis)
        return Mixture(self.means @ P.T, P @ self.covariance @ P.T)


def images(power: float, side: int = SIDE, seed: int = 0) -> Mixture:
    """Unit-variance images with spectrum (1 + (k / 2)^2)^(-power / 2), k in half waves a side."""
    k = torch.arange(side, dtype=torch.float64)
    dct = torch.cos(torch.pi * (k[None] + 0.5) * k[:, None] / side)
    dct = dct / dct.norm(dim=1, keepdim=True)
    spectrum = (1 + (k[:, None] ** 2 + k[None] ** 2) / 4) ** (-power / 2)
    spectrum = (spectrum / spectrum.mean()).flatten()  # unit variance per pixel
    basis = torch.kron(dct, dct)
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randn(COMPONENTS, side * side, generator=generator, dtype=torch.float64)
    means = (draws * ((1 - WITHIN) * spectrum).sqrt()) @ basis
    return Mixture(means, (basis.T * (WITHIN * spectrum)) @ basis)


class GaussianCascade(Cascade):
    """The engine around a mixture and its block means; the hand-off resizes x0 as it is."""

    def __init__(self, power: float, recipe: Recipe, clips: int) -> None:
        self.fine = images(power)
        self.coarse = self.fine.block_means(SCALE)
        backbone = SimpleNamespace(
            device="cpu",
            pipeline=None,
            embeds={},
            lost_words=lambda prompt: (0, ""),
            latent_shape=lambda h, w, t: (
                1,
                1,
                *[SIDE if h != recipe.low[0] else SIDE // SCALE] * 2,
            ),
            encode_prompt=lambda *words: None,
            decode=None,
            encode=None,
            velocity=lambda z, sigma, condition: self.field(z).velocity(z, sigma),
            router=SimpleNamespace(observing=lambda _: nullcontext()),
        )
        prompts = [f"image {i}" for i in range(clips)]
        super().__init__(backbone, recipe, prompts, list(range(clips)))

    def field(self, z: Tensor) -> Mixture:
        """The mixture that images of this size belong to."""
        return self.fine if z.shape[-1] == SIDE else self.coarse

    def noise(self, shape: tuple[int, ...], purpose: str) -> Tensor:
        """In float64, so that only solvers err."""
        return super().noise(shape, purpose).double()

    def low_flow(self) -> LowFlow:
        """The LR flow by Euler, as everywhere; there is no attention to watch."""
        z = self.noise(self.low_shape, "low")
        return LowFlow(self.high_flow(z, self.recipe.steps), torch.zeros(0), (1, 1, 1))

    def hand_off(self, low: LowFlow) -> Tensor:
        """As everywhere, then in float64."""
        return super().hand_off(low).double()
