"""S2Flow: the cascade with LRG-WinAttn (Eqs. 7-9) and LRI-HiSolver (Eqs. 10-12)."""

from s2flow.cascade import Cascade, Generated
from s2flow.methods import CASCADE_KNOBS

KNOBS = (
    *CASCADE_KNOBS,
    *("sparsity", "density", "windows", "brick_low", "brick_high", "coverage_rows", "attention"),
    *("solver", "order", "stencil", "lr_time", "upsample"),
)


def generate(run: Cascade) -> Generated:
    """LR flow, window plan, hand-off, windowed HR flow with derivatives of the LR flow."""
    low = run.low_flow()  # Eq. 4
    flow = low.flow
    for level in run.levels():  # one, unless `scales` asks for more
        plan = level.plan(low)  # Eqs. 8-9
        z = level.hand_off(low, flow)  # Eq. 5
        solver = level.solver(low)  # Eqs. 10-12
        flow = level.high_flow(z, level.n_from, solver, plan)  # Eqs. 6-7
    return level.finish(flow, low, solver)  # Eq. 13
