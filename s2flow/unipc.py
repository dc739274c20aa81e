"""UniPC of order 2 for rectified flow: what diffusers' Wan pipelines step with (Zhao et al. 2023).

A rectified flow that heads for a fixed clean latent X is solved exactly by one Euler step,

    z_t = z_s + (sigma_t - sigma_s) (z_s - X) / sigma_s,      v = (z - x0) / sigma,

and UniPC chooses X from the x0 at hand, as a polynomial in lambda = log((1 - sigma) / sigma). With m
the newest x0 at node s, m_p the one before, h = lambda_t - lambda_s, r = (lambda_p - lambda_s) / h:

    predict   X = m + (m_p - m) / (2 r)                       order 2; X = m with no history, and last
    correct   X = m + a (m_p - m) / r + b (m_t - m)           once m_t, the x0 at the predicted z_t, is
                                                              known; X = m + (m_t - m) / 2 after order 1

with a + b = 1 / (1 - e^-h) - 1 / h and r a + b = the second moment in `corrector_weights`. The
correction costs no model call: m_t is needed for the next prediction anyway. The state recorded at a
node is the predicted one, where the model was asked.

Equal to diffusers' `UniPCMultistepScheduler` (bh2, flow prediction) on the same sigmas (tested). lambda
is infinite at sigma = 1; like there, it is taken at 1 - 1e-6 as float32 stores it.
"""

import math

from torch import Tensor

from s2flow.flow import x0_from_v
from s2flow.solver import Euler

NEAREST_TO_NOISE = 1 - 17 * 2.0**-24  # 1 - 1e-6 in float32


def log_snr(sigma: float) -> float:
    """lambda = log((1 - sigma) / sigma), half the log signal-to-noise ratio; finite at sigma = 1."""
    sigma = min(sigma, NEAREST_TO_NOISE)
    return math.log((1 - sigma) / sigma)


def corrector_weights(h: float, r: float) -> tuple[float, float]:
    """(a, b) of the corrector of order 2, exact for x0 quadratic in lambda; h > 0, r < 0."""
    shrink = math.expm1(-h)
    first = -1 / h - 1 / shrink
    second = 2 * ((shrink / h + 1) / h - 0.5) / shrink
    a = (first - second) / (1 - r)
    return a, first - a


class UniPC(Euler):
    """See the module. First and last prediction are of order 1; one model call a step."""

    def __init__(self) -> None:
        super().__init__()
        self.past: list[tuple[int, Tensor]] = []  # (node, x0), the newest first, at most two
        self.z: Tensor | None = None  # corrected state at the newest of them
        self.order = 0  # of the prediction made from there

    def step(self, n, sigma, z, v, field):
        """Correct the state at n by what the model now says there, then predict z_{n-1}."""
        x0 = x0_from_v(z, v, sigma[n])
        if self.past:
            z = self._correct(n, sigma, x0)
        self.past, self.z = [(n, x0), *self.past[:1]], z
        self.order = min(2, n, len(self.past))
        aim = x0
        if self.order == 2:
            p, before = self.past[1]
            aim = x0 + (before - x0) / (2 * _ratio(sigma, p, n, n - 1))
        return _towards(aim, z, sigma[n], sigma[n - 1])

    def _correct(self, n: int, sigma: list[float], x0: Tensor) -> Tensor:
        """The state at n again, from the one before, now that x0 at n is known."""
        s, newest = self.past[0]
        aim = newest + (x0 - newest) / 2
        if self.order == 2:
            p, before = self.past[1]
            r = _ratio(sigma, p, s, n)
            a, b = corrector_weights(log_snr(sigma[n]) - log_snr(sigma[s]), r)
            aim = newest + (a / r) * (before - newest) + b * (x0 - newest)
        return _towards(aim, self.z, sigma[s], sigma[n])


def _ratio(sigma: list[float], p: int, s: int, t: int) -> float:
    """r = (lambda_p - lambda_s) / (lambda_t - lambda_s)."""
    a, b, c = (log_snr(sigma[m]) for m in (p, s, t))
    return (a - b) / (c - b)


def _towards(aim: Tensor, z: Tensor, sigma: float, after: float) -> Tensor:
    """One Euler step towards a clean latent, exact if it is where the flow ends."""
    return z + (after - sigma) * (z - aim) / sigma
