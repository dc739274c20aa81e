"""RectifiedHR: refreshed noise at the change of resolution, and more guidance after it.

    refresh        x0 predicted by the last LR step -> decode -> bilinear -> encode
                   -> (1 - sigma) x0 + sigma eps with fresh eps
    rectification  the HR flow's guidance is `guidance` times the LR flow's, against the decay of the
                   latent's energy that blurs high resolutions

Constants for Wan 2.1 1.3B as published (arXiv 2503.02537 and its release): guidance 5 at LR and 10
at HR, the change after 30 of 50 steps (20 remain: DEFAULT_T_I_SHARE). The last LR step is n = t_i + 1.

Deviation: two resolutions only, the paper's N = 2 setting for this model; its N is general. Its LR flow
ends at the change. Ours runs to the end (other methods need it), so the recorded LR time is too long.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from s2flow.cascade import Cascade, Generated
from s2flow.methods import RESTART_KNOBS
from s2flow.methods.params import check_range

KNOBS = RESTART_KNOBS
DEFAULT_T_I_SHARE = 20 / 50


@dataclass(frozen=True)
class Params:
    """guidance: factor on the guidance of the HR flow."""

    guidance: float = 2.0

    def __post_init__(self) -> None:
        check_range("guidance", self.guidance, 0, 10)


def generate(run: Cascade) -> Generated:
    """LR flow, refreshed noise, HR flow under more guidance."""
    low, r = run.low_flow(), run.recipe
    with run.clock("handoff"):
        x0 = low.flow.x0(min(r.t_i + 1, r.steps)).to(run.backbone.device)
        z = run.restart(run.backbone.encode(bilinear(run.backbone.decode(x0), *r.high)))
    with run.clock("text"):
        rectified = [r.params.guidance * g for g in r.guidances]
        run.condition = run.backbone.encode_prompt(run.prompts, r.negative_prompt, *rectified)
    return run.finish(run.high_flow(z, r.t_i), low)


def bilinear(video: Tensor, height: int, width: int) -> Tensor:
    """Every frame resized, (B, T, H, W, 3) -> (B, T, height, width, 3)."""
    frames = video.flatten(0, 1).movedim(-1, 1)
    out = F.interpolate(frames, (height, width), mode="bilinear", align_corners=False)
    return out.movedim(1, -1).unflatten(0, video.shape[:2])
