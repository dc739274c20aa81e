"""Spatial filters of the compared methods, 2-D on every frame and channel of (B, C, T, H, W).

    low_pass   Butterworth: gain 1 / (1 + (rho / cutoff)^(2 order)) on the 2-D real FFT        (HiFlow)
    dwt, idwt  one level of db4 wavelets, symmetric extension: LL and three detail bands  (DiffuseHigh)
    blur       Gaussian of 3 x 3 pixels, one deviation per clip
    sharpen    G <- 2 G - blur(G)                                                         (DiffuseHigh)

Frequencies: rho^2 = rho_h^2 + rho_w^2, each axis in units of its own Nyquist frequency, half a cycle
per latent pixel: the cutoff is one wavelength (10 pixels at rho = 0.2) in all directions of any frame.

A wavelet band of n samples has (n + 7) // 2 coefficients, so bands at the border are redundant:
analysis after the synthesis of *changed* bands returns those whose 8 taps lie inside the frame.

All of them are linear and keep dtype and device. PyWavelets works on the CPU: about 1 s in each
direction for a 2K latent of 117 frames, where a step of the model takes a minute.
"""

import pywt
import torch
import torch.nn.functional as F
from torch import Tensor

WAVELET, MODE = "db4", "symmetric"

Bands = tuple[Tensor, Tensor, Tensor]


def butterworth(height: int, width: int, cutoff: float, order: int = 4) -> Tensor:
    """Gain by frequency, (height, width // 2 + 1) float32, in the layout of `torch.fft.rfft2`.

    cutoff: rho with gain 1/2, in units of Nyquist; order: half the exponent.
    """
    rho_h = 2 * torch.fft.fftfreq(height, dtype=torch.float64)
    rho_w = 2 * torch.fft.rfftfreq(width, dtype=torch.float64)
    rho = (rho_h[:, None] ** 2 + rho_w**2).sqrt()
    return (1 / (1 + (rho / cutoff) ** (2 * order))).to(torch.float32)


def low_pass(x: Tensor, cutoff: float = 0.2, order: int = 4) -> Tensor:
    """The low frequencies of (..., H, W), float32; the frame is taken as periodic."""
    size = x.shape[-2:]
    gain = butterworth(*size, cutoff, order).to(x.device)
    return torch.fft.irfft2(torch.fft.rfft2(x) * gain, s=size)


def dwt(x: Tensor) -> tuple[Tensor, Bands]:
    """(LL, (LH, HL, HH)) of (..., H, W), each (..., (H + 7) // 2, (W + 7) // 2)."""
    ll, details = pywt.dwt2(x.detach().cpu().numpy(), WAVELET, MODE)
    return torch.from_numpy(ll).to(x), tuple(torch.from_numpy(d).to(x) for d in details)


def idwt(ll: Tensor, details: Bands, size: tuple[int, int]) -> Tensor:
    """The inverse of `dwt`, (..., *size); odd sides lose the sample that makes them even."""
    bands = [b.detach().cpu().numpy() for b in details]
    x = pywt.idwt2((ll.detach().cpu().numpy(), tuple(bands)), WAVELET, MODE)
    return torch.from_numpy(x).to(ll)[..., : size[0], : size[1]]


def replace_ll(x: Tensor, ll: Tensor) -> Tensor:
    """x with another LL band and its own details."""
    return idwt(ll, dwt(x)[1], tuple(x.shape[-2:]))


def blur(x: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian of 3 x 3 pixels on (B, C, T, H, W), mirrored at the border; sigma: (B,) in pixels."""
    near = torch.exp(-0.5 / sigma.to(x) ** 2).view(-1, 1, 1, 1, 1)  # relative to the centre
    total = 1 + 2 * near
    padded = F.pad(x, (1, 1, 1, 1, 0, 0), mode="reflect")
    rows = (padded[..., 1:-1, :] + near * (padded[..., :-2, :] + padded[..., 2:, :])) / total
    return (rows[..., 1:-1] + near * (rows[..., :-2] + rows[..., 2:])) / total


def sharpen(x: Tensor, sigma: Tensor) -> Tensor:
    """Unsharp mask, 2 x - blur(x): details count twice, constants are kept."""
    return 2 * x - blur(x, sigma)
