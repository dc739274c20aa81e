"""Cascade: LR flow, hand-off, HR flow with full attention and Euler steps (Eqs. 4-6)."""

from s2flow.cascade import Cascade, Generated
from s2flow.methods import CASCADE_KNOBS

KNOBS = CASCADE_KNOBS


def generate(run: Cascade) -> Generated:
    """The paper's baseline cascade, without sparse attention and without higher orders."""
    low = run.low_flow()
    z = run.hand_off(low)
    high = run.high_flow(z, run.recipe.t_i)
    return run.finish(high, low)
