"""LRI-HiSolver: Taylor steps whose higher derivatives come from the LR flow (Eqs. 10-12).

    z_{n-1} = z_n + sum_{k=1..K} dsigma^k / k! v^{(k-1)},     dsigma = sigma_{n-1} - sigma_n    (Eq. 10)

v^{(0)} comes from the HR model; v^{(1)}, v^{(2)}, ... are total derivatives along the flow. The solvers
differ in their source:

    Euler    none (K = 1)
    LRI      finite differences of LR velocities, spatially upsampled by U (Eqs. 11-12, the paper's)
    AB2, AB3 earlier HR steps: backward differences, Adams-Bashforth of order 2 and 3
    LRICv    earlier HR steps, corrected with the LR flow as a control variate
    Heun     a second evaluation of the HR model, the expensive reference

`s2flow.unipc` takes no Taylor step. A solver belongs to one flow: every hand-off makes a new one.

Deviation: Eq. 11 assumes an even grid, and shifted schedules are not even (neighbouring steps differ
by 5-24 %). `difference_weights` gives the weights for the actual nodes, equal to Eq. 11 when they
are even; the paper's plain central difference stays selectable (`stencil="central"`).
Deviation: v^{(k)} taken from an Euler path carries that path's first-order error, so K = 3 with LR
derivatives is globally of order 2; order 3 needs exact derivatives.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from s2flow.flow import Trajectory, equal_snr_sigma

Upsample = Callable[[Tensor], Tensor]
Field = Callable[[Tensor, int], Tensor]  # (z, n) -> corrected velocity at sigma[n]


def taylor_step(z: Tensor, dsigma: float, derivatives: list[Tensor]) -> Tensor:
    """Eq. 10: z + sum_k dsigma^k / k! derivatives[k-1], with derivatives = [v, v', v'', ...]."""
    for k, d in enumerate(derivatives, start=1):
        z = z + dsigma**k / math.factorial(k) * d
    return z


def difference_weights(nodes: list[float], at: float, order: int) -> list[float]:
    """Weights w with sum_j w_j f(nodes_j) = f^(order)(at) for all polynomials of degree < len(nodes).

    Solved in float64 on nodes scaled to unit spread. Raises ValueError with too few nodes.
    """
    if len(nodes) <= order:
        raise ValueError(f"derivative {order} needs {order + 1} nodes, got {len(nodes)}")
    spread = max(abs(x - at) for x in nodes)
    x = (torch.tensor(nodes, dtype=torch.float64) - at) / spread
    powers = torch.stack([x**j for j in range(len(nodes))])
    target = torch.zeros(len(nodes), dtype=torch.float64)
    target[order] = math.factorial(order)
    return (torch.linalg.solve(powers, target) / spread**order).tolist()


def stencil_nodes(n: int, steps: int, size: int) -> list[int]:
    """`size` neighbouring step indices around n, from high to low, moved inward into [1, steps]."""
    size = min(size, steps)
    low = min(max(n - size // 2, 1), steps - size + 1)
    return list(range(low + size - 1, low - 1, -1))


def lr_derivatives(
    low: Trajectory, n: int, order: int, stencil: str = "grid", quantity: str = "v"
) -> list[Tensor]:
    """[v', ..., v^(order-1)] of the LR flow at node n, not upsampled (Eq. 11).

    `stencil="grid"` weighs the actual nodes, at least three; `"central"` is the paper's
    (v_{n-1} - v_{n+1}) / (2 dsigma) for v', with grid weights where a neighbour is missing.
    `quantity="x0"` differentiates the predicted clean latent instead.
    """
    if order < 2:
        return []
    nodes = stencil_nodes(n, low.steps, max(3, order))
    sigma = low.sigma.tolist()
    value = low.x0 if quantity == "x0" else low.v.__getitem__
    out = []
    for k in range(1, min(order, len(nodes))):
        weights = difference_weights([sigma[m] for m in nodes], sigma[n], k)
        weights = dict(zip(nodes, weights, strict=True))
        if k == 1 and stencil == "central" and 1 < n < low.steps:
            weight = 1 / (2 * (sigma[n - 1] - sigma[n]))
            weights = {n + 1: -weight, n - 1: weight}  # (Eq. 11) previous and next step
        out.append(sum(w * value(m) for m, w in weights.items() if w))
    return out


def lr_derivative_at_equal_snr(low: Trajectory, sigma: float, scale: float) -> Tensor:
    """The LR flow's estimate of the HR v' at equal signal-to-noise ratio, not upsampled.

    x0_hr(sigma) ~ U x0_lr(sigma') with sigma' = sigma / (r - (r-1) sigma), and along any flow
    v' = -(1/sigma) dx0/dsigma, hence v'_hr ~ -(1/sigma) U(dx0_lr/dsigma') r / (r - (r-1) sigma)^2.
    dx0_lr/dsigma' is interpolated linearly between the nodes around sigma'.
    """
    inner = equal_snr_sigma(sigma, scale)
    grid = low.sigma.tolist()
    m = next(j for j in range(1, low.steps + 1) if grid[j] >= inner - 1e-12)
    a, b = max(m - 1, 1), m
    mix = 0.0 if a == b else (inner - grid[a]) / (grid[b] - grid[a])
    d_a, d_b = (lr_derivatives(low, j, 2, quantity="x0")[0] for j in (a, b))
    slope = scale / (scale - (scale - 1) * sigma) ** 2
    return -(slope / sigma) * torch.lerp(d_a, d_b, min(max(mix, 0.0), 1.0))


class Euler:
    """First order: no derivatives (Eq. 2). Other solvers override `derivatives`, or `step`.

    report: values per step and clip, for the record.
    """

    def __init__(self) -> None:
        self.report: dict[str, dict[int, list[float]]] = {}

    def derivatives(
        self, n: int, sigma: list[float], z: Tensor, v: Tensor, field: Field
    ) -> list[Tensor]:
        """[v', v'', ...] at node n, given the state and velocity there."""
        return []

    def step(self, n: int, sigma: list[float], z: Tensor, v: Tensor, field: Field) -> Tensor:
        """z_{n-1}, given the state and velocity at node n (Eq. 10)."""
        higher = self.derivatives(n, sigma, z, v, field)
        return taylor_step(z, sigma[n - 1] - sigma[n], [v, *higher])


class LRI(Euler):
    """Derivatives of the LR flow, upsampled: v^(k) = U(d^k v_lr / dsigma^k) (Eq. 12)."""

    def __init__(
        self,
        low: Trajectory,
        upsample: Upsample,
        order: int = 2,
        stencil: str = "grid",
        lr_time: str = "sigma",
        scale: float = 2.0,
    ) -> None:
        super().__init__()
        self.low, self.upsample, self.order = low, upsample, order
        self.stencil, self.lr_time, self.scale = stencil, lr_time, scale

    def derivatives(self, n, sigma, z, v, field):
        """See the class."""
        at_lr = lr_derivatives(self.low, n, self.order, self.stencil)
        if self.lr_time == "snr" and at_lr:
            at_lr[0] = lr_derivative_at_equal_snr(self.low, sigma[n], self.scale)
        return [self.upsample(d) for d in at_lr]  # (Eq. 12)


class AB2(Euler):
    """Adams-Bashforth 2 as a Taylor step: v' = backward difference of the HR velocities.

    The first step is Euler.
    """

    def __init__(self) -> None:
        super().__init__()
        self.past: tuple[int, Tensor] | None = None

    def derivatives(self, n, sigma, z, v, field):
        """See the class."""
        past, self.past = self.past, (n, v)
        return [] if past is None else [(v - past[1]) / (sigma[n] - sigma[past[0]])]


class AB3(AB2):
    """Adams-Bashforth 3 as a Taylor step: v', v'' of the parabola through three HR velocities.

    The weights are those of the actual nodes. First step Euler, second AB2. That Euler step leaves
    half a squared step of error, so after a hand-off the global order is 2, with a small constant;
    it is 3 if exact velocities before the first step are known.
    """

    def __init__(self) -> None:
        super().__init__()
        self.older: tuple[int, Tensor] | None = None

    def derivatives(self, n, sigma, z, v, field):
        """See the class."""
        older, self.older = self.older, self.past
        first = super().derivatives(n, sigma, z, v, field)
        if older is None:
            return first
        history = [(n, v), self.older, older]
        nodes = [sigma[m] for m, _ in history]
        weights = [difference_weights(nodes, sigma[n], k) for k in (1, 2)]
        return [sum(a * x for a, (_, x) in zip(w, history, strict=True)) for w in weights]


class LRICv(AB2):
    """HR history plus a fitted share of the LR flow's central difference.

    v' ~ D_hr^- + lambda U(D_lr - D_lr^-), with D^- backward and D central differences. lambda is
    fitted, per clip, at node n+1, where the HR central difference is now known:
    lambda = clip(<D_hr - D_hr^-, U(D_lr - D_lr^-)> / |U(D_lr - D_lr^-)|^2, 0, 1).
    An uninformative LR flow gives lambda = 0, which is AB2. First step Euler, second lambda = 0.
    """

    def __init__(self, low: Trajectory, upsample: Upsample) -> None:
        super().__init__()
        self.low, self.upsample = low, upsample
        self.last: tuple[Tensor, Tensor] | None = None  # D_hr^- and U(D_lr - D_lr^-) at n+1
        self.last_step = 0.0

    def derivatives(self, n, sigma, z, v, field):
        """See the class."""
        previous, backward = self.past, super().derivatives(n, sigma, z, v, field)
        if not backward:
            return []
        (d_minus,), (m, _), sigma_low = backward, previous, self.low.sigma.tolist()
        lr_minus = (self.low.v[n] - self.low.v[m]) / (sigma_low[n] - sigma_low[m])
        correction = self.upsample(lr_derivatives(self.low, n, 2)[0] - lr_minus)
        lam = torch.zeros(len(z), 1, 1, 1, 1, device=z.device)
        if self.last is not None:
            old_minus, old_correction = self.last
            # central difference at n+1 from its two one-sided differences, for uneven steps
            h_past, h_next = self.last_step, sigma_low[m] - sigma_low[n]
            central = (h_next * old_minus + h_past * d_minus) / (h_past + h_next)
            length = _dot(old_correction, old_correction).clamp_min(1e-30)
            lam = (_dot(central - old_minus, old_correction) / length).clamp(0, 1).to(z.dtype)
        self.last, self.last_step = (d_minus, correction), sigma_low[m] - sigma_low[n]
        self.report.setdefault("lambda", {})[n] = lam.flatten().tolist()
        return [d_minus + lam * correction]


class Heun(Euler):
    """v' from a second model evaluation at the end of the step; two forwards a step."""

    def derivatives(self, n, sigma, z, v, field):
        """See the class. The last step is Euler: the model is never evaluated at sigma = 0."""
        if n == 1:
            return []
        dsigma = sigma[n - 1] - sigma[n]
        return [(field(z + dsigma * v, n - 1) - v) / dsigma]


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product per clip, (B, 1, 1, 1, 1) in float64."""
    return (a.double() * b.double()).sum((1, 2, 3, 4), keepdim=True)


def derivative_cosines(high: Trajectory, lri: LRI, t_i: int) -> dict[str, dict[int, list[float]]]:
    """Cosine between each estimate of v' and the HR flow's central difference, per step and clip.

    `lri`: U(dv_lr/dsigma) as this solver computes it; `history`: the HR backward difference (AB2). A
    direct check of Eq. 12 in steps t_i-1 ... 2, where the central difference exists.
    """
    cosines: dict[str, dict[int, list[float]]] = {"lri": {}, "history": {}}
    sigma = high.sigma.tolist()
    for n in range(t_i - 1, 1, -1):
        nodes = (n + 1, n, n - 1)
        weights = difference_weights([sigma[m] for m in nodes], sigma[n], 1)
        estimate = lri.derivatives(n, sigma, high.z[n], high.v[n], None)[0]
        v = [high.v[m].to(estimate.device) for m in nodes]
        central = sum(w * x for w, x in zip(weights, v, strict=True))
        backward = (v[1] - v[0]) / (sigma[n] - sigma[n + 1])
        for name, d in (("lri", estimate), ("history", backward)):
            length = (_dot(d, d) * _dot(central, central)).sqrt().clamp_min(1e-30)
            cosines[name][n] = (_dot(d, central) / length).flatten().tolist()
    return cosines
