"""S2Flow: the cascade with LRG-WinAttn (Eqs. 7-9) and LRI-HiSolver (Eqs. 10-12)."""

from s2flow.cascade import Cascade, Generated
from s2flow.methods import CASCADE_KNOBS

KNOBS = (
    *CASCADE_KNOBS,
    *("sparsity", "density", "windows", "brick_low", "brick_high", "coverage_rows", "attention"),
    *("solver", "order", "stencil", "lr_time", "upsample"),
)


def generate(run: Cascade) -> Generated:
    """LR flow, plan of windows, hand-off, windowed HR flow with borrowed derivatives."""
    low = run.low_flow()  # Eq. 4
    plan = run.plan(low)  # Eqs. 8-9
    z = run.hand_off(low)  # Eq. 5
    solver = run.solver(low)  # Eqs. 10-12
    high = run.high_flow(z, run.recipe.t_i, solver, plan)  # Eqs. 6-7
    return run.finish(high, low, solver)  # Eq. 13
