"""Scores that VBench, which downscales every frame, lacks: detail, doubling, seams, fine flicker.

Of frames as they were saved, with luminance Y in [0, 1], (T, H, W). None where a score does not apply.

high_frequency_share = E_half / E
    E is the spectral energy of a frame (mean removed, Hann window), E_half that above half its
    Nyquist frequency on either axis; both summed over frames. It needs no LR clip.
high_frequency_gain = 10 log10 (E_> + d) / (U_> + d), in dB
    E_> is the energy above the LR clip's Nyquist frequency on either axis, U_> that of the LR clip
    resized to H x W (bicubic); d = 1e-4 U, with U all energy of the resized clip, keeps the ratio
    finite. 0: nothing that resizing would not give; 3: twice that. None without an LR clip, or if
    it is as large, or flat.
    Both fail: noise, ringing and seams count as detail, and the right amount depends on the scene.
spatial_repetition = mean over frames of the highest peak of r(d), |d| > S/4
    r(d) = sum_p X(p) X(p + d) / sum_p X(p)^2. X is Y, its shorter side S brought to at most 128,
    minus its Gaussian blur of deviation S/8, and 0 outside. One object on a plain ground is near
    0, two copies are 1/2, n in a row 1 - 1/n.
    Fails: a periodic ground (bricks, grass, stripes) repeats as well, so compare equal prompts;
    copies that differ, or stand nearer than S/4, are missed.
tile_seams, window_seams = ln (J_on + q) / (J_off + q), q = 1/1020, a quarter of a grey level
    J(c) = |Y(c-2) - 3 Y(c-1) + 3 Y(c) - Y(c+1)| / 2 is the jump between columns (or rows) c-1 and
    c less what their neighbours continue; J_on its mean where c is a multiple of the period, J_off
    where c is any other multiple of a token's side, because a decoder's own grid is everywhere.
    The period is the stride of the autoencoder's tiles (vae_tile), or the brick that windows are
    made of (brick_high), in pixels. 0: no seams; ln 2: twice the jump. None where nothing is cut,
    the token is not known, or the period is one token, whose seams are the decoder's.
    Fails: blended tiles differ by a ramp, which has no jump; an edge of the scene along a seam
    counts; blocks of the mp4 (16 pixels) are not cancelled if tokens are smaller. On 64 clips of
    micro s2flow does not differ from cascade (-.03 +- .02); bicubic, without windows, is .2 above.
high_frequency_flicker = mean |Z_{k+1} - Z_k| / mean |Z|
    Z = Y minus its Gaussian blur of deviation 1 pixel. 0: frozen; sqrt 2: noise that is new in
    every frame. None for one frame or no detail.
    Fails: detail that moves counts as well, so a clip with little detail but moving edges is high.
black_frames, frozen_frames
    of `s2flow.store.outcome`, here of the file.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from s2flow.errors import UserError
from s2flow.scorers import Clip, Scorer
from s2flow.store.outcome import black_frames, frozen_frames
from s2flow.video import luminance

FLOOR = 1e-4  # d / U
QUARTER_LEVEL = 1 / 1020
REPETITION_SIDE = 128


class HighRes(Scorer):
    """The scores of the module docstring.

    token_pixels: side of a token in pixels, for old clips whose record does not hold it.
    """

    names = (
        *("high_frequency_share", "high_frequency_gain", "spatial_repetition", "tile_seams"),
        *("window_seams", "high_frequency_flicker", "black_frames", "frozen_frames"),
    )

    def __init__(self, token_pixels: int | None = None):
        if token_pixels is not None and not (isinstance(token_pixels, int) and token_pixels > 0):
            raise UserError(
                f"scorer.highres.token_pixels={token_pixels} is no side of a token in pixels; type "
                "the backbone's `multiple`, 8 for micro, or null"
            )
        self.token_pixels = token_pixels

    def score(self, clip: Clip) -> dict[str, float | None]:
        """See the module docstring."""
        y, low = luminance(clip.frames), clip.low
        recipe = clip.record.get("recipe") or {}
        token = clip.record.get("token_pixels") or self.token_pixels
        tile, brick = (recipe.get(k) if token else None for k in ("vae_tile", "brick_high"))
        window = brick and (brick[1] * token, brick[2] * token)
        return {
            "high_frequency_share": high_frequency_share(y),
            "high_frequency_gain": None if low is None else high_frequency_gain(y, luminance(low)),
            "spatial_repetition": spatial_repetition(y),
            "tile_seams": seams(y, (tile[1], tile[1]), token) if tile else None,
            "window_seams": seams(y, window, token) if window else None,
            "high_frequency_flicker": high_frequency_flicker(y),
            "black_frames": black_frames(clip.frames),
            "frozen_frames": frozen_frames(clip.frames),
        }


def high_frequency_share(y: Tensor) -> float | None:
    """(T, H, W) -> in [0, 1]; None for flat frames."""
    above, every = _energy(y, 0.25, 0.25)
    return above / every if every else None


def high_frequency_gain(y: Tensor, low: Tensor) -> float | None:
    """(T, H, W) and (T', h, w) -> dB."""
    (h, w), size = low.shape[1:], y.shape[1:]
    cut = (h / (2 * size[0]), w / (2 * size[1]))
    if min(cut) >= 0.5:
        return None
    resized = F.interpolate(low[:, None], size, mode="bicubic", antialias=True)[:, 0]
    of_low, every = _energy(resized.clamp_(0, 1), *cut)
    of_clip, floor = _energy(y, *cut)[0], FLOOR * every
    return 10 * math.log10((of_clip + floor) / (of_low + floor)) if every else None


def _energy(y: Tensor, cut_down: float, cut_across: float) -> tuple[float, float]:
    """Energy above a frequency in cycles per pixel on either axis, and all; mean over frames."""
    height, width = y.shape[1:]
    window = torch.outer(*(torch.hann_window(n, periodic=False) for n in (height, width)))
    down, across = torch.fft.fftfreq(height).abs(), torch.fft.rfftfreq(width)
    above = (down[:, None] > cut_down) | (across[None] > cut_across)
    twice = torch.where((across == 0) | (across == 0.5), 1.0, 2.0)  # the conjugate half
    high = every = 0.0
    for frame in y:
        if frame.max() - frame.min() >= QUARTER_LEVEL:  # else rounding would be its detail
            spectrum = torch.fft.rfft2((frame - frame.mean()) * window).abs().square() * twice
            high += spectrum[above].sum().item()
            every += spectrum.sum().item()
    return high / len(y), every / len(y)


def spatial_repetition(y: Tensor) -> float | None:
    """(T, H, W) -> in [0, 1]; None for flat frames."""
    short = min(y.shape[1:])
    if short > REPETITION_SIDE:
        size = [max(1, round(n * REPETITION_SIDE / short)) for n in y.shape[1:]]
        y = F.interpolate(y[:, None], size, mode="bilinear", antialias=True)[:, 0]
        short = min(size)
    height, width = y.shape[1:]
    down, across = torch.arange(-height, height)[:, None], torch.arange(-width, width)
    far = down.square() + across.square() > (short / 4) ** 2
    peaks = []
    for x in y.split(1):
        x = x - _blurred(x, short / 8)
        x = x - x.mean()
        if x.abs().max() < QUARTER_LEVEL:
            continue
        spectrum = torch.fft.rfft2(x, s=far.shape).abs().square()
        r = torch.fft.fftshift(torch.fft.irfft2(spectrum, s=far.shape), dim=(1, 2))
        peak = (F.max_pool2d(r, 3, 1, 1) == r) & far
        peaks.append((r[peak].max() / x.square().sum()).clamp(0, 1).item() if peak.any() else 0.0)
    return sum(peaks) / len(peaks) if peaks else None


def seams(y: Tensor, period: tuple[int, int], token: int) -> float | None:
    """(T, H, W), period (down, across) and token in pixels -> ln of a ratio; None: nothing is cut."""
    on, off = [], []
    for side, x in zip(period, (y.transpose(1, 2), y), strict=True):
        if x.shape[-1] < 4:
            continue
        jump = (x[..., :-3] - 3 * x[..., 1:-2] + 3 * x[..., 2:-1] - x[..., 3:]).abs().mean((0, 1))
        c = torch.arange(2, x.shape[-1] - 1)
        phase = c % side
        near = torch.minimum(phase, side - phase)
        others = (c % token == 0) & (near > 2)  # nearer ones contain the same jump
        if side > token and others.any():
            on.append(jump[phase == 0] / 2)
            off.append(jump[others] / 2)
    if not sum(map(len, on)):
        return None
    on, off = (torch.cat(x).mean().item() + QUARTER_LEVEL for x in (on, off))
    return math.log(on / off)


def high_frequency_flicker(y: Tensor) -> float | None:
    """(T, H, W) -> in [0, 2]."""
    change = detail = 0.0
    before = None
    for x in y.split(1):
        z = x - _blurred(x, 1.0)
        detail += z.abs().mean().item() / len(y)
        change += 0.0 if before is None else (z - before).abs().mean().item() / (len(y) - 1)
        before = z
    return change / detail if len(y) > 1 and detail > QUARTER_LEVEL / 10 else None


def _blurred(x: Tensor, deviation: float) -> Tensor:
    """Gaussian blur of (T, H, W), cut at three deviations; the border is repeated outwards."""
    reach = max(1, round(3 * deviation))
    k = torch.arange(-reach, reach + 1) / deviation
    kernel = torch.softmax(-k.square() / 2, 0)[None, None]
    x = F.pad(x[:, None], (reach, reach, reach, reach), mode="replicate")
    return F.conv2d(F.conv2d(x, kernel[:, :, None]), kernel[..., None])[:, 0]
