"""MACS, its tuning-free part: pivot replacement in latent space, then Euler.

    x = bicubic(z_0 of the LR flow) -> (1 - sigma) x + sigma eps -> Euler to z_0

No autoencoder on the way: a bicubic latent is a soft one, and many HR steps have to restore it.
Own default: 35 of 50 steps remain. Deviation: the rest of MACS is trained, so it is not here.
"""

from s2flow.cascade import Cascade, Generated
from s2flow.handoff import resize_latent

KNOBS = ("low", "t_i", "rope", "temperature", "shift_high")
OWN = 35 / 50


def generate(run: Cascade) -> Generated:
    """LR flow to its end, bicubic latent, noise of the level with t_i steps remaining, Euler."""
    low = run.low_flow()
    with run.clock("handoff"):
        final = low.flow.z[0].to(run.backbone.device)
        z = run.restart(resize_latent(final, *run.high_shape[-2:], mode="bicubic"))
    return run.finish(run.high_flow(z, run.recipe.t_i), low)
