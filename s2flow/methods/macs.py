"""MACS, its tuning-free part: pivot replacement in latent space, then Euler.

    x = bicubic(z_0 of the LR flow) -> (1 - sigma) x + sigma eps -> Euler to z_0

Without the autoencoder the bicubic latent is soft, and many HR steps have to restore it. Own default
of t_i: 35 of 50 steps. Deviation: the rest of MACS is trained, so it is not implemented.
"""

from s2flow.cascade import Cascade, Generated
from s2flow.handoff import resize_latent
from s2flow.methods import RESTART_KNOBS

KNOBS = RESTART_KNOBS
DEFAULT_T_I_SHARE = 35 / 50


def generate(run: Cascade) -> Generated:
    """LR flow to its end, bicubic latent, noise of the level with t_i steps remaining, Euler."""
    low = run.low_flow()
    with run.clock("handoff"):
        final = low.flow.z[0].to(run.backbone.device)
        z = run.restart(resize_latent(final, *run.high_shape[-2:], mode="bicubic"))
    return run.finish(run.high_flow(z, run.recipe.t_i), low)
