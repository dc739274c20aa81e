"""Window policies by name: a plan known before the HR flow, or one that decides inside it.

A new online policy is one file here with `replacer`, `work` and `report` (`plan.Windows`), a line in
`decide`, and `conf/windows/<name>.yaml`.
"""

from typing import TYPE_CHECKING

from torch import Tensor

from s2flow.grid import Box, brick_grid
from s2flow.plan import Plan, Windows, candidates_of, make_plan, whole_grid
from s2flow.policies.moba import Moba
from s2flow.policies.oracle import Oracle
from s2flow.policies.svg import Svg
from s2flow.windows import fraction_of_volume

if TYPE_CHECKING:
    from s2flow.recipe.identity import Recipe


def decide(
    r: "Recipe", coverage: Tensor, low_bricks: Box, low_tokens: Box, tokens: Box, t_i: int
) -> Windows:
    """The windows of the last t_i steps, given the LR flow's coverage.

    coverage: (N+1, layers, B, heads, g_t, g_h, g_w).

    low_bricks: bricks of the LR grid, low_tokens and tokens: the LR and HR grids.
    """
    policy, high = r.windows, (tokens, r.brick_high)
    f = 1.0 if r.whole_grid else fraction_of_volume(r.sparsity, r.density)
    if policy.name == "moba" and f < 1:
        return Moba(policy, f, *high, t_i)
    if policy.name not in ("oracle", "svg") or f >= 1:
        return make_plan(policy, f, coverage, low_bricks, *high, t_i, low_tokens)
    empty = Plan(whole_grid(coverage.shape[:-3], brick_grid(*high)), *high)
    online = (policy, empty, candidates_of(policy, f, low_bricks, *high), r.coverage_rows, t_i)
    if policy.name == "svg":
        return Svg(*online)
    return Oracle(*online, make_plan(policy, f, coverage, low_bricks, *high, t_i))
