"""The reference solution: the HR flow from one state, integrated finely enough to call it exact.

Every step of the grid is cut in `cut`, and each part is one step of Ralston's third-order rule,

    k1 = v(z, sigma),  k2 = v(z + h/2 k1, sigma + h/2),  k3 = v(z + 3h/4 k2, sigma + 3h/4)
    z <- z + h/9 (2 k1 + 3 k2 + 4 k3),

three model calls. Unlike Heun or the classical Runge-Kutta it never asks the model at sigma = 0, so
that the last step is no exception. It shares no code with the solvers that it judges. How far it can
be trusted is seen by halving `cut`.
"""

import torch
from torch import Tensor

from s2flow.cascade import Cascade


def reference_flow(run: Cascade, z: Tensor, n_from: int, cut: int = 4) -> Tensor:
    """z_0 of the HR flow with full attention from n_from steps remaining, shaped like z.

    run: the engine, for its model, prompts, HR noise grid, positions and temperature.
    """

    def v(z: Tensor, sigma: float) -> Tensor:
        return run.backbone.velocity(z, sigma, run.condition)

    grid = run.sigma_high
    with run.high_attention():
        for n in range(n_from, 0, -1):
            nodes = torch.linspace(float(grid[n]), float(grid[n - 1]), cut + 1, dtype=grid.dtype)
            h = float(nodes[1] - nodes[0])
            for s in nodes.tolist()[:-1]:
                k1 = v(z, s)
                k2 = v(z + h / 2 * k1, s + h / 2)
                k3 = v(z + 3 * h / 4 * k2, s + 3 * h / 4)
                z = z + h / 9 * (2 * k1 + 3 * k2 + 4 * k3)
    return z


def relative_errors(z: Tensor, truth: Tensor) -> Tensor:
    """|z - truth| / |truth| of each clip."""
    return (z - truth).flatten(1).norm(dim=1) / truth.flatten(1).norm(dim=1)
