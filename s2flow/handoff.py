"""Hand-off: the LR flow becomes the start of the HR flow with t_i steps remaining (Eq. 5).

    x0       x0 = z - sigma v -> decode -> bicubic (antialiased) -> encode -> (1-sigma) x0 + sigma eps
    latent   the same, but x0 is resized in latent space (no VAE round trip)
    noisy    z itself is decoded (to [0, 1]), resized and encoded: Eq. 5 literally, for the ablation

Deviation: the noisy z_{t_i} of Eq. 5 is off-distribution for any VAE decoder, and interpolated noise
loses variance (bilinear x2 of unit noise has standard deviation 0.63). The default takes x0 and adds
new noise.

HR noise is white with unit variance in both modes, as in training:

    fresh    drawn from (prompt, seed)
    aligned  eps_hr = w - P(w) + up(eps) / r, with w fresh, P the r x r block mean replicated, up =
             replicate, eps the LR flow's initial noise and r an integer: the block mean of eps_hr is
             eps / r, so that the HR noise equals the LR noise at the resolution of the LR grid

`adain` restores the mean and standard deviation of the LR x0, per clip and channel (AdaIN, Huang and
Belongie 2017): decoding, resizing and encoding shift both a little.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from s2flow.errors import UserError
from s2flow.flow import Trajectory, add_noise


def resize_latent(z: Tensor, height: int, width: int, mode: str = "bilinear") -> Tensor:
    """U of Eq. 12: spatial resize of every latent frame, (B, C, T, h, w) -> (B, C, T, height, width).

    mode: "bilinear", "nearest" or "bicubic".
    """
    B, C, T = z.shape[:3]
    corners = {} if mode == "nearest" else {"align_corners": False}
    frames = z.movedim(2, 1).flatten(0, 1)
    out = F.interpolate(frames, (height, width), mode=mode, **corners)
    return out.unflatten(0, (B, T)).movedim(1, 2)


def resize_video(video: Tensor, height: int, width: int) -> Tensor:
    """Bicubic with antialias of every frame, (B, T, H, W, 3) in [0, 1] -> (B, T, height, width, 3)."""
    frames = video.flatten(0, 1).movedim(-1, 1)
    out = F.interpolate(frames, (height, width), mode="bicubic", antialias=True)
    return out.clamp_(0, 1).movedim(1, -1).unflatten(0, video.shape[:2])


def aligned_noise(white: Tensor, eps_low: Tensor) -> Tensor:
    """White unit noise at HR whose r x r block mean is eps_low / r.

    white: (B, C, T, r h, r w), eps_low: (B, C, T, h, w). Raises UserError unless r is an integer,
    the same on both axes.
    """
    (h, w), (H, W) = eps_low.shape[-2:], white.shape[-2:]
    r = H // h
    if (r * h, r * w) != (H, W):
        raise UserError(
            f"noise=aligned needs one integer scale, got {H / h:g} x {W / w:g}; "
            f"type noise=fresh or an integer multiple of the low size"
        )
    blocks = F.avg_pool3d(white, (1, r, r))
    return white + resize_latent(eps_low / r - blocks, H, W, "nearest")


def matched(x: Tensor, like: Tensor) -> Tensor:
    """AdaIN: x with the mean and standard deviation of `like`, per clip and channel."""
    (std, mean), (new_std, new_mean) = (
        torch.std_mean(y, (2, 3, 4), correction=0, keepdim=True) for y in (x, like)
    )
    return (x - mean) / std.clamp_min(1e-6) * new_std + new_mean


def hand_off(
    low: Trajectory,
    n: int,
    eps: Tensor,
    mode: str,
    decode: Callable[[Tensor], Tensor],
    encode: Callable[[Tensor], Tensor],
    size: tuple[int, int],
    adain: bool = False,
) -> Tensor:
    """HR latent with n steps remaining (Eq. 5), float32, shaped like the HR noise `eps`.

    decode/encode: the backbone's VAE; size: HR (height, width) in pixels.
    """
    if mode == "noisy":
        return encode(resize_video(decode(low.z[n].to(eps)), *size))  # (Eq. 5) literally
    x0 = low.x0(n).to(eps)
    if mode == "latent":
        up = resize_latent(x0, *eps.shape[-2:], mode="bicubic")
    else:
        up = encode(resize_video(decode(x0), *size))
    if adain:
        up = matched(up, x0)
    return add_noise(up, eps, float(low.sigma[n])).to(torch.float32)
