"""The engine on two backbones: the embedded one, and a mixture whose velocity is exact."""

import pytest
import torch
from mixture import Mixture

from s2flow.cascade import Cascade, LowFlowCache
from s2flow.methods import method

PROMPTS = ["a red circle moves right on a blue background", "a green square moves left"]


class Bench:
    """Engines and results of one backbone, four steps of which three are HR."""

    def __init__(self, backbone, recipe) -> None:
        self.backbone, self.recipe, self.cache = backbone, recipe, LowFlowCache()

    def engine(self, *overrides, prompts=PROMPTS[:1], seeds=None):
        small = ("steps=4", "t_i=3", "frames=2", "method.preset=paper_parity")
        typed = {word.partition("=")[0] for word in overrides}
        words = [w for w in small if w.partition("=")[0] not in typed]
        r = self.recipe(*words, *overrides)
        return Cascade(self.backbone, r, prompts, seeds or [7] * len(prompts), cache=self.cache)

    def generate(self, *overrides, **given):
        engine = self.engine(*overrides, **given)
        return method(engine.recipe.method).generate(engine)

    def states(self, monkeypatch, *overrides, noise=0.0, **given):
        """(z, sigma) at every HR evaluation; `noise` is added to the HR flow's initial noise."""
        seen, velocity, white = [], self.backbone.velocity, Cascade.noise
        with monkeypatch.context() as patch:
            patch.setattr(Cascade, "noise", lambda *a: white(*a) + noise * (a[2] == "high"))
            engine = self.engine(*overrides, **given)
            size = engine.high_shape[-2:]

            def spy(z, sigma, condition):
                if z.shape[-2:] == size:
                    seen.append((z.clone(), sigma))
                return velocity(z, sigma, condition)

            patch.setattr(self.backbone, "velocity", spy)
            method(engine.recipe.method).generate(engine)
        return seen


@pytest.fixture(scope="module", params=["micro", "mixture"])
def bench(request, recipe):
    """On either backbone."""
    if request.param == "mixture":
        return Bench(Mixture(), recipe)
    return Bench(request.getfixturevalue("micro"), recipe)


@pytest.fixture
def plain_euler(bench):
    """plain_euler(overrides, z): z_0 by Euler steps of the model, from z at t_i remaining steps."""

    def euler(overrides, z):
        engine = bench.engine(*overrides)
        sigma = engine.sigma_high.tolist()
        for n in range(engine.recipe.t_i, 0, -1):
            v = bench.backbone.velocity(z, sigma[n], engine.condition)
            z = z + (sigma[n - 1] - sigma[n]) * v
        return z

    return euler


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield
