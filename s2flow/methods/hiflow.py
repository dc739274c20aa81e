"""HiFlow: an HR flow that follows the LR flow's predictions, in direction and in acceleration.

Starts like DiffuseHigh (sharpened LR video, encoded, noised). At every step n, with i = t_i - n and
ref = bicubic x0 of the LR flow at this sigma, two correctors, in this order:

    direction      x0' = x0 + alpha_i (LP(ref) - LP(x0)),  v' = (z - x0') / sigma,  LP: Butterworth
    acceleration   v' += beta_i [(v'_prev + v_ref - v_ref,prev) - v'],  v_ref = (z - ref) / sigma

the second from the second step on; alpha_i = alpha (1 - i / t_i), beta_i = beta (1 - i / t_i).
v'_prev is the velocity of the previous step. LP is linear, so the direction is computed as
v' = v - alpha_i LP(ref - x0) / sigma: one transform.

preset=own: DEFAULT_T_I_SHARE is not set, so t_i is as under paper_parity (its release: 16 of 30 at 2K).
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from s2flow.cascade import Cascade, Corrector, Generated, LowFlow
from s2flow.flow import v_from_x0, x0_from_v
from s2flow.handoff import resize_latent
from s2flow.methods import RESTART_KNOBS
from s2flow.methods.diffusehigh import sharpened
from s2flow.methods.filters import low_pass
from s2flow.methods.params import check_range

KNOBS = RESTART_KNOBS

Reference = Callable[[int], Tensor]


@dataclass(frozen=True)
class Params:
    """alpha, beta: strength of direction and acceleration at first; cutoff: of LP, in Nyquist."""

    alpha: float = 1.0
    beta: float = 0.5
    cutoff: float = 0.2

    def __post_init__(self) -> None:
        check_range("alpha", self.alpha, 0, 1)
        check_range("beta", self.beta, 0, 1)
        check_range("cutoff", self.cutoff, 0.001, 1.5)  # the corner of the spectrum is at 2^0.5

    def ignored(self) -> tuple[str, ...]:
        """Without direction there is no filter."""
        return () if self.alpha else ("cutoff",)


def generate(run: Cascade) -> Generated:
    """LR flow to its end, sharpened restart, HR flow aligned with the LR one at every step."""
    low, t_i = run.low_flow(), run.recipe.t_i
    with run.clock("handoff"):
        z = run.restart(run.backbone.encode(sharpened(run, low)))
    correctors = alignment(upsampled(run, low), t_i, run.recipe.params)
    return run.finish(run.high_flow(z, t_i, correctors=correctors), low)


def upsampled(run: Cascade, low: LowFlow) -> Reference:
    """n -> bicubic x0 of the LR flow at that step, (B, C, T, H, W)."""
    size, device = run.high_shape[-2:], run.backbone.device
    return lambda n: resize_latent(low.flow.x0(n).to(device), *size, mode="bicubic")


def alignment(reference: Reference, t_i: int, params: Params) -> list[Corrector]:
    """The two correctors of a flow of t_i steps, new for every flow: acceleration keeps state."""
    previous: dict[str, Tensor] = {}

    def direction(n: int, sigma: float, z: Tensor, v: Tensor) -> Tensor:
        alpha = params.alpha * n / t_i  # 1 - i / t_i = n / t_i
        return v - alpha * low_pass(reference(n) - x0_from_v(z, v, sigma), params.cutoff) / sigma

    def acceleration(n: int, sigma: float, z: Tensor, v: Tensor) -> Tensor:
        beta, v_ref = params.beta * n / t_i, v_from_x0(z, reference(n), sigma)
        if previous:
            v = v + beta * (previous["v"] + v_ref - previous["v_ref"] - v)
        previous.update(v=v, v_ref=v_ref)
        return v

    both = ((direction, params.alpha), (acceleration, params.beta))
    return [corrector for corrector, strength in both if strength]
