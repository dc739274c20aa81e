"""Cascade: LR flow, hand-off, HR flow with full attention and Euler steps (Eqs. 4-6)."""

from s2flow.cascade import Cascade, Generated
from s2flow.methods import CASCADE_KNOBS

KNOBS = CASCADE_KNOBS


def generate(run: Cascade) -> Generated:
    """The paper's baseline cascade, without sparse attention and without higher orders."""
    low = run.low_flow()
    flow = low.flow
    for level in run.levels():
        flow = level.high_flow(level.hand_off(low, flow), level.n_from)
    return run.finish(flow, low)
