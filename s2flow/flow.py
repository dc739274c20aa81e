"""Rectified flow: noise levels, conversions between v, x0 and eps, and recorded trajectories.

A state at noise level sigma in [0, 1] mixes video latent and noise (the diffusers convention):

    z = (1 - sigma) x0 + sigma eps,      v = dz/dsigma = eps - x0        (Eqs. 1, 3)
    x0 = z - sigma v,                    eps = z + (1 - sigma) v

Deviation: the paper uses two time conventions at once (in Eq. 3 z_0 is noise, in Eqs. 2 and 4-6
z_{t_N} is noise). Here sigma = 1 is noise everywhere, and n counts the steps that *remain*:
sigma[N] = 1 ... sigma[0] = 0, so that `t_i = 30` of 50 means 30 steps at the high resolution.

Latents are (B, C, T, H, W) in float32: bfloat16 would round second-order terms (2e-5 of v) away.
"""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor


def sigma_grid(steps: int, shift: float) -> Tensor:
    """Noise levels by steps remaining: (steps + 1,) float64, sigma[0] = 0 ... sigma[steps] = 1.

    s uniform in [0, 1], sigma = k s / (1 + (k - 1) s) with the backbone's shift k.
    """
    s = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    return shift * s / (1 + (shift - 1) * s)


def x0_from_v(z: Tensor, v: Tensor, sigma: float) -> Tensor:
    """Predicted clean latent, x0 = z - sigma v."""
    return z - sigma * v


def v_from_x0(z: Tensor, x0: Tensor, sigma: float) -> Tensor:
    """Velocity that points from x0 to z, v = (z - x0) / sigma."""
    return (z - x0) / sigma


def add_noise(x0: Tensor, eps: Tensor, sigma: float) -> Tensor:
    """State at noise level sigma, z = (1 - sigma) x0 + sigma eps."""
    return (1 - sigma) * x0 + sigma * eps


def equal_snr_sigma(sigma: float, scale: float) -> float:
    """LR noise level with the signal-to-noise ratio of an HR latent at `sigma`.

    Averaging r x r white noise divides its standard deviation by r, so the block mean of an HR latent
    at sigma is, up to scale, an LR latent at sigma' = sigma / (r - (r - 1) sigma).
    """
    return sigma / (scale - (scale - 1) * sigma)


def noise(shape: tuple[int, ...], prompt: str, seed: int, purpose: str) -> Tensor:
    """White Gaussian noise, float32 on the CPU, that depends on (prompt, seed, purpose) alone."""
    digest = hashlib.sha256(f"{purpose}\0{seed}\0{prompt}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    return torch.randn(shape, generator=generator)


@dataclass(frozen=True)
class Trajectory:
    """One flow, recorded: z[n] for n = 0..N and v[n] for n = 1..N (steps remaining).

    sigma: (N+1,) float64; z and v: lists of (B, C, T, H, W) float32 on the CPU. v[0] is None, because
    Euler never evaluates sigma = 0. A trajectory that starts at a hand-off has None above it.
    """

    sigma: Tensor
    z: list[Tensor | None]
    v: list[Tensor | None]

    @property
    def steps(self) -> int:
        """N, the number of steps of the whole grid."""
        return len(self.sigma) - 1

    def at(self, sigma: Tensor) -> "Trajectory":
        """This complete trajectory, interpolated at the nodes of another grid over [0, 1], (N'+1,).

        z is linear between nodes (the Euler path itself), and so is v, constant below v[1].
        """
        grid = self.sigma.tolist()
        zs, vs = [], []
        for s in sigma.tolist():
            b = min(max(int(torch.searchsorted(self.sigma, s)), 1), self.steps)
            a = b - 1
            mix = (s - grid[a]) / (grid[b] - grid[a])
            zs.append(torch.lerp(self.z[a], self.z[b], mix))
            vs.append(torch.lerp(self.v[max(a, 1)], self.v[b], mix))
        return Trajectory(sigma, zs, [None, *vs[1:]])

    def x0(self, n: int) -> Tensor:
        """Predicted clean latent with n steps remaining."""
        return x0_from_v(self.z[n], self.v[n], float(self.sigma[n]))
