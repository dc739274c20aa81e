"""How near a clip is to the same prompt and seed in another run (say, full attention).

With clip a and reference b, both (T, H, W, 3) in [0, 1]:

    psnr           = -10 log10 mean (a - b)^2                      in dB, at most 100 (see below)
    ssim           = mean of (2 m_a m_b + c1)(2 s_ab + c2) / ((m_a^2 + m_b^2 + c1)(s_a + s_b + c2))
    relative_error = |a - b| / |b|                                 root of the sums of squares

SSIM follows Wang et al. 2004: means m, variances s and covariance s_ab under an 11 x 11 Gaussian
of deviation 1.5, c1 = 0.01^2, c2 = 0.03^2, only where the window fits; per frame and colour
channel, then averaged. PSNR is cut at 100 dB because JSON has no infinity: 100 means identical.

Where it fails: it is distance, not quality. The reference is off-distribution itself when it runs
beyond its training resolution, and a clip that repairs it is punished for doing so; a shift by
one pixel costs more than a blur. Both clips went through a lossy mp4, which bounds PSNR from
above.
"""

import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from s2flow.errors import UserError
from s2flow.scorers import Clip
from s2flow.video import read_video

PSNR_OF_IDENTICAL = 100.0


class Fidelity:
    """{"psnr", "ssim", "relative_error"} against run `reference`, an id in the same runs folder.

    Raises UserError if that run has no such clip, or one of another size.
    """

    names = ("psnr", "ssim", "relative_error")

    def __init__(self, reference: str):
        self.reference = reference

    def __call__(self, clip: Clip) -> dict[str, float | None]:
        """See the class."""
        given = clip.record.get("prompt")
        path = find_clip(clip.runs_dir, self.reference, clip.prompt, clip.seed, given)
        other = read_video(path)
        if other.shape != clip.video.shape:
            raise UserError(
                f"fidelity compares clips of one size: this one is {_size(clip.video)}, that of "
                f"run {self.reference} is {_size(other)}: name a reference of the same resolution"
            )
        return {
            "psnr": psnr(clip.video, other),
            "ssim": ssim(clip.video, other),
            "relative_error": relative_error(clip.video, other),
        }


def find_clip(
    runs_dir: Path, run_id: str, prompt: str, seed: int, given: str | None = None
) -> Path:
    """The mp4 of a prompt and seed in a run; the UserError says what to type.

    given: what the model was given in place of the prompt, if that was another text.
    """
    from s2flow.store import clip_key

    run = Path(runs_dir) / run_id
    named = (prompt, seed) if given in (None, prompt) else (given, seed, prompt)
    record = run / "records" / f"{clip_key(*named)}.json"
    # The record of a failed clip names no video.
    video = json.loads(record.read_text()).get("video") if record.exists() else None
    if not video or not (run / video).exists():
        raise UserError(
            f"reference run {run_id} has no clip of prompt {prompt!r}, seed {seed}: generate it "
            "with `python run.py ...` first, its run id stands in the end-of-run table"
        )
    return run / video


def _size(video: Tensor) -> str:
    frames, height, width = video.shape[:3]
    return f"{frames} frames of {height}x{width}"


def psnr(a: Tensor, b: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of signals in [0, 1], over the whole clip."""
    error = (a.double() - b.double()).square().mean().item()
    if error == 0:
        return PSNR_OF_IDENTICAL
    return min(-10 * math.log10(error), PSNR_OF_IDENTICAL)


def relative_error(a: Tensor, b: Tensor) -> float | None:
    """|a - b| / |b|; None for a black reference, which has no scale."""
    scale = b.double().norm().item()
    return (a.double() - b.double()).norm().item() / scale if scale else None


def ssim(a: Tensor, b: Tensor) -> float | None:
    """Structural similarity in [-1, 1]; None for frames under 11 pixels, where no window fits."""
    if min(a.shape[1:3]) < 11:
        return None
    k = torch.arange(11, dtype=torch.float32, device=a.device) - 5
    window = torch.exp(-k.square() / (2 * 1.5**2))
    window = (window / window.sum()).expand(3, 1, 1, 11)

    def smooth(x: Tensor) -> Tensor:  # the Gaussian is separable
        rows = F.conv2d(x, window, groups=3)
        return F.conv2d(rows, window.transpose(-1, -2), groups=3)

    def of_frame(x: Tensor, y: Tensor) -> float:
        x, y = x.movedim(-1, 0)[None].float(), y.movedim(-1, 0)[None].float()
        mx, my = smooth(x), smooth(y)
        vx, vy = smooth(x * x) - mx * mx, smooth(y * y) - my * my
        vxy = smooth(x * y) - mx * my
        c1, c2 = 0.01**2, 0.03**2
        top = (2 * mx * my + c1) * (2 * vxy + c2)
        return (top / ((mx * mx + my * my + c1) * (vx + vy + c2))).mean().item()

    # Frame by frame: a long HR clip would need gigabytes at once.
    values = [of_frame(x, y) for x, y in zip(a, b, strict=True)]
    return sum(values) / len(values)
