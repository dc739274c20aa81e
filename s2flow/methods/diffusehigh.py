"""DiffuseHigh: restart from the sharpened LR video, whose low wavelet band guides the first steps.

    G = bicubic(decode(z_0 of the LR flow)),   G <- 2 G - blur(G)        3x3, deviation U(0.1, 2)
    ref = encode(G),                           z = (1 - sigma) ref + sigma eps
    first guided_steps:   x0' = idwt(LL of ref, details of x0),   v' = (z - x0') / sigma

with db4 wavelets, level 1, symmetric extension. Own default of t_i: 15 of 50 steps.

Deviation: the blur is drawn once per video, from (prompt, seed); drawn per frame it flickers.
Deviation: bands are exchanged in latent space by default, not in pixels as in the paper, where each
guided step decodes and encodes, which at 2K costs more than the step (space=pixel does it).
Deviation: the step goes on from z with v', as in DDIM with eta = 0; fresh noise after each exchange
would leave the flow that all methods here share.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from s2flow.cascade import Cascade, Corrector, Generated, LowFlow
from s2flow.flow import v_from_x0, x0_from_v
from s2flow.handoff import resize_video
from s2flow.methods import RESTART_KNOBS
from s2flow.methods.filters import dwt, replace_ll, sharpen
from s2flow.methods.params import check_range

KNOBS = RESTART_KNOBS
DEFAULT_T_I_SHARE = 15 / 50
BLUR_RANGE = (0.1, 2.0)  # of the blur's standard deviation, in pixels


@dataclass(frozen=True)
class Params:
    """guided_steps: first HR steps that are guided, 0 for none; space: where bands are exchanged."""

    guided_steps: int = 5
    space: Literal["latent", "pixel"] = "latent"

    def __post_init__(self) -> None:
        check_range("guided_steps", self.guided_steps, 0)

    def ignored(self) -> tuple[str, ...]:
        """Without guided steps no band is exchanged."""
        return () if self.guided_steps else ("space",)

    def within(self, t_i: int) -> "Params":
        """No more steps are guided than there are."""
        return replace(self, guided_steps=min(self.guided_steps, t_i))


def generate(run: Cascade) -> Generated:
    """LR flow to its end, sharpened restart, HR flow whose first steps keep the LR video's LL band."""
    low, params = run.low_flow(), run.recipe.params
    with run.clock("handoff"):
        video = sharpened(run, low)
        reference = run.backbone.encode(video)
        z = run.restart(reference)
    t_i, correctors = run.recipe.t_i, []
    if params.guided_steps:
        pixels = params.space == "pixel"
        replace_band = pixel_bands(run, video) if pixels else latent_bands(reference)
        correctors = [structure(range(t_i, t_i - params.guided_steps, -1), replace_band)]
    return run.finish(run.high_flow(z, t_i, correctors=correctors), low)


def sharpened(run: Cascade, low: LowFlow) -> Tensor:
    """The final LR video at the HR size, sharpened: (B, T, H, W, 3) in [0, 1]."""
    video = resize_video(run.preview(low, "handoff"), *run.recipe.high)
    uniform = torch.special.ndtr(run.noise((1,), "sharpen"))[:, 0]  # from the clip's own noise
    sigma = BLUR_RANGE[0] + (BLUR_RANGE[1] - BLUR_RANGE[0]) * uniform
    for report, s in zip(run.reports, sigma.tolist(), strict=True):
        report["blur"] = round(s, 6)
    return sharpen(video.movedim(-1, 1), sigma).clamp(0, 1).movedim(1, -1)


def latent_bands(reference: Tensor) -> Callable[[Tensor], Tensor]:
    """x0 -> x0 with the LL band of the reference latent, (B, C, T, H, W)."""
    ll = dwt(reference)[0]
    return lambda x0: replace_ll(x0, ll)


def pixel_bands(run: Cascade, video: Tensor) -> Callable[[Tensor], Tensor]:
    """The same in pixels: decode x0, exchange the band with that of the video, encode."""
    ll, backbone = dwt(video.movedim(-1, 1))[0], run.backbone

    def replaced(x0: Tensor) -> Tensor:
        mixed = replace_ll(backbone.decode(x0).movedim(-1, 1), ll)
        return backbone.encode(mixed.clamp(0, 1).movedim(1, -1))

    return replaced


def structure(steps: range, replace_band: Callable[[Tensor], Tensor]) -> Corrector:
    """Corrector that points v at the replaced x0 in these steps; other steps keep their v."""

    def corrector(n: int, sigma: float, z: Tensor, v: Tensor) -> Tensor:
        if n not in steps:
            return v
        return v_from_x0(z, replace_band(x0_from_v(z, v, sigma)), sigma)

    return corrector
