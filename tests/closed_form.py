"""A rectified flow with a closed form, and the real engine around it.

Data x0 ~ sum_i p_i N(mu_i, tau_i^2 I). With z = (1 - sigma) x0 + sigma eps and, for component i,
V_i = (1 - sigma)^2 tau_i^2 + sigma^2, the probability flow has the exact velocity

    v = E[eps - x0 | z] = sum_i r_i(z) [a_i (z - (1 - sigma) mu_i) - mu_i],
    a_i = (sigma - (1 - sigma) tau_i^2) / V_i,      r_i the posterior share of component i,

smooth on all of [0, 1] as tau_i > 0. Total derivatives along the flow are exact, by forward mode.
"""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from torch.func import jvp

from s2flow import cascade
from s2flow.solver import Euler

MU = torch.tensor([[1.2, -0.4], [-0.9, 0.8], [0.2, -1.3]], dtype=torch.float64)
TAU2 = torch.tensor([0.30, 0.45, 0.36], dtype=torch.float64)
WEIGHT = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)


def velocity(z, sigma):
    """Exact v of the mixture; z (B, 2, T, H, W), every pixel a sample of its own."""
    mu, tau2, p = (x.to(z.dtype) for x in (MU, TAU2, WEIGHT))
    x = z.movedim(1, -1)[..., None, :]  # (B, T, H, W, 1, 2)
    V = (1 - sigma) ** 2 * tau2 + sigma**2
    d = x - (1 - sigma) * mu
    r = (p.log() - V.log() - (d * d).sum(-1) / (2 * V)).softmax(-1)
    slope = (sigma - (1 - sigma) * tau2) / V
    return (r[..., None] * (slope[:, None] * d - mu)).sum(-2).movedim(-1, 1)


def total_derivative(f):
    """d/dsigma of f(z, sigma) along the flow: the partial one plus the Jacobian times v."""

    def derivative(z, sigma):
        return jvp(f, (z, sigma), (velocity(z, sigma), torch.ones_like(sigma)))[1]

    return derivative


V1 = total_derivative(velocity)
V2 = total_derivative(V1)


class Exact(Euler):
    """Derivatives of the flow itself: what Eq. 10 would do if it had them."""

    def __init__(self, order):
        super().__init__()
        self.order = order

    def derivatives(self, n, sigma, z, v, velocity):
        at = torch.tensor(sigma[n], dtype=z.dtype)
        return [f(z, at) for f in (V1, V2)[: self.order - 1]]


@pytest.fixture(scope="session")
def engine(recipe):
    """engine(steps, shift, model): the real Cascade around a closed-form model."""
    base = recipe()
    return lambda steps, shift, model=velocity: engine_around(base, steps, shift, model)


def engine_around(recipe, steps, shift, model=velocity):
    """The HR flow may begin anywhere."""
    backbone = SimpleNamespace(
        device="cpu",
        pipeline=None,
        embeds={},
        lost_words=lambda prompt: (0, ""),
        latent_shape=lambda h, w, t: (2, 1, h, w),
        encode_prompt=lambda prompts, negative, guidance: None,
        velocity=lambda z, sigma, condition: model(z, sigma),
        router=SimpleNamespace(observing=lambda _: cascade.nullcontext()),
    )
    r = dataclasses.replace(recipe, steps=steps, shift=shift, t_i=steps)
    return cascade.Cascade(backbone, r, ["p"], [0])


def start(*shape, dtype=torch.float64, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


Z1 = start(8, 2, 1, 1, 1)  # eight starts, one point each


def reference(z, substeps=400, grid=None):
    """z along the exact flow by classical Runge-Kutta: at 0, or at every node of a grid."""
    nodes = [1.0, 0.0] if grid is None else grid.flip(0).tolist()
    per = max(substeps // (len(nodes) - 1), 2)
    found = [z]
    for a, b in zip(nodes[:-1], nodes[1:], strict=True):
        h = (b - a) / per
        for i in range(per):
            s = a + i * h
            k1 = velocity(z, s)
            k2 = velocity(z + h / 2 * k1, s + h / 2)
            k3 = velocity(z + h / 2 * k2, s + h / 2)
            k4 = velocity(z + h * k3, s + h)
            z = z + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        found.append(z)
    return found[-1] if grid is None else found[::-1]


def exact_path(grid, z=Z1):
    """(z, v) of the exact flow at the nodes of a grid, v[0] missing."""
    zs = reference(z, grid=grid)
    vs = [velocity(x, s) for x, s in zip(zs, grid.tolist(), strict=True)]
    return zs, [None, *vs[1:]]


@pytest.fixture(scope="session")
def truth():
    """z_0 of the exact flow from Z1."""
    return reference(Z1)
