"""Native: the backbone at high resolution from pure noise, with full attention.

On a published checkpoint this is the stock pipeline's clip: its scheduler takes the steps, on its own
noise levels (Wan ships with UniPC, HunyuanVideo with Euler). The embedded backbone takes N Euler
steps. With `rope=interpolate` positions stay within the LR range: a
cheap and strong baseline.
"""

import copy
import inspect
from typing import Any

import numpy as np
import torch
from torch import Tensor

from s2flow.cascade import Cascade, Generated
from s2flow.solver import Euler

KNOBS = ("rope", "temperature", "scheduler")


def generate(run: Cascade) -> Generated:
    """The unmodified model beyond its training resolution."""
    z = run.noise(run.high_shape, "high")
    if run.recipe.scheduler is None:
        return run.finish(run.high_flow(z, run.recipe.steps))
    stock = Scheduled(run.backbone.pipeline, run.recipe.steps, run.backbone.device)
    run.sigma_high = stock.levels
    return run.finish(run.high_flow(z, len(stock.levels) - 1, stock))


class Scheduled(Euler):
    """Steps of a diffusers pipeline's scheduler, as its own call takes them; levels: (N + 1,) sigma."""

    def __init__(self, pipeline: Any, steps: int, device: str) -> None:
        super().__init__()
        self.scheduler = copy.deepcopy(pipeline.scheduler)
        if "sigmas" in inspect.signature(type(pipeline).__call__).parameters:  # HunyuanVideo
            self.scheduler.set_timesteps(
                sigmas=np.linspace(1.0, 0.0, steps + 1)[:-1], device=device
            )
        else:
            self.scheduler.set_timesteps(steps, device=device)
        told = self.scheduler.timesteps.double().cpu() / 1000
        self.levels = torch.cat([told, told.new_zeros(1)]).flip(0)

    def step(self, n: int, sigma: list[float], z: Tensor, v: Tensor, field: Any) -> Tensor:
        """z with n - 1 steps remaining."""
        t = self.scheduler.timesteps[len(sigma) - 1 - n]
        return self.scheduler.step(v, t, z, return_dict=False)[0]
