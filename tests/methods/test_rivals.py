"""What all compared methods share: one LR run, one sigma, one start, any batch."""

import math

import pytest
import torch

from s2flow.methods import diffusehigh, macs, rectifiedhr

GUIDED = ["macs", "diffusehigh", "hiflow", "rectifiedhr"]
WITH_HR = ["native", "cascade", "s2flow", *GUIDED]


@pytest.mark.parametrize("name", WITH_HR)
def test_sigma_of_the_hand_off_is_the_one_the_model_is_told(bench, monkeypatch, name):
    """Read off the state: one more unit of noise moves it by sigma."""
    if name == "s2flow" and bench.backbone.name == "mixture":
        pytest.skip("windows need attention")
    words = (f"method={name}", "order=1")
    (z, sigma), *rest = bench.states(monkeypatch, *words)
    moved, _ = bench.states(monkeypatch, *words, noise=1.0)[0]
    assert torch.allclose(moved - z, torch.tensor(sigma, dtype=z.dtype), atol=1e-5)
    engine = bench.engine(*words)
    n = 4 if name == "native" else 3
    assert [sigma, *(s for _, s in rest)] == engine.sigma_high.tolist()[n:0:-1]


@pytest.mark.parametrize("name", GUIDED)
def test_the_lr_flow_is_shared(bench, name):
    bench.generate("method=cascade")
    assert bench.generate(f"method={name}").reports[0]["low_flow_reused"] is True


@pytest.mark.parametrize(
    "words",
    [(f"method={name}",) for name in GUIDED] + [("method=diffusehigh", "method.space=pixel")],
)
def test_a_clip_is_the_same_in_any_batch(bench, words):
    prompts, seeds = ["a red circle", "a green square moves left", "a red circle"], [7, 8, 9]
    # twice the guidance, twice the rounding
    limit = 2e-5 if "method=rectifiedhr" in words else 1e-5
    together = bench.generate(*words, prompts=prompts, seeds=seeds)
    for i in (0, 2):
        alone = bench.generate(*words, prompts=prompts[i : i + 1], seeds=seeds[i : i + 1])
        error = (together.latent[i] - alone.latent[0]).norm() / alone.latent.norm()
        assert float(error) < limit
        assert together.reports[i].get("blur") == alone.reports[0].get("blur")


def test_noise_of_the_restart_is_white_with_unit_variance(bench, monkeypatch):
    frames = 8
    words = ("method=macs", f"frames={frames}")
    (z, sigma), *_ = bench.states(monkeypatch, *words)
    engine = bench.engine(*words)
    final = engine.low_flow().flow.z[0]
    clean = macs.resize_latent(final, *z.shape[-2:], mode="bicubic")
    eps = (z - (1 - sigma) * clean) / sigma
    assert torch.allclose(eps, engine.noise(engine.high_shape, "high"), atol=1e-4)
    n = eps.numel()
    assert abs(float(eps.mean())) < 5 / math.sqrt(n)
    assert abs(float(eps.var()) - 1) < 5 * math.sqrt(2 / n)
    for lag in ((0, 1), (1, 0), (1, 1), (2, 0), (0, 2)):
        a = eps[..., : eps.shape[-2] - lag[0], : eps.shape[-1] - lag[1]]
        b = eps[..., lag[0] :, lag[1] :]
        assert abs(float((a * b).mean())) < 5 / math.sqrt(a.numel()), lag
    for dim in (1, 2):
        a, b = eps.narrow(dim, 0, eps.shape[dim] - 1), eps.narrow(dim, 1, eps.shape[dim] - 1)
        assert abs(float((a * b).mean())) < 5 / math.sqrt(a.numel())


def test_macs_is_its_restart_and_euler(bench, monkeypatch, plain_euler):
    z = bench.states(monkeypatch, "method=macs")[0][0]
    out = bench.generate("method=macs").latent
    assert torch.allclose(out, plain_euler(("method=macs",), z), atol=1e-5)


def test_rectifiedhr_refreshes_the_last_prediction_and_guides_the_hr_flow_only(bench, monkeypatch):
    words = ("method=rectifiedhr", "t_i=2")
    (z, sigma), *_ = bench.states(monkeypatch, *words)
    engine = bench.engine(*words)
    backbone = bench.backbone
    x0 = backbone.decode(engine.low_flow().flow.x0(3))  # the last LR step before n = 2
    clean = backbone.encode(rectifiedhr.bilinear(x0, *engine.recipe.high))
    expected = (1 - sigma) * clean + sigma * engine.noise(engine.high_shape, "high")
    assert torch.allclose(z, expected, atol=1e-5)

    asked, encode = [], backbone.encode_prompt
    monkeypatch.setattr(
        backbone, "encode_prompt", lambda p, n, g, *more: asked.append(g) or encode(p, n, g, *more)
    )
    bench.generate(*words, "guidance=3", "method.guidance=1.5")
    assert asked == [3, 4.5]
    if backbone.name == "micro":  # and it reaches the pixels, in the HR flow alone
        more, none = (bench.generate(*words, f"method.guidance={g}") for g in (2, 1))
        assert torch.equal(more.low_video, none.low_video)
        assert not torch.allclose(more.latent, none.latent, atol=1e-2)


def test_one_blur_per_clip_from_its_prompt_and_seed(bench):
    prompts, seeds = ["b", "a", "a", "a"], [0, 0, 1, 0]
    engine = bench.engine("method=diffusehigh", prompts=prompts, seeds=seeds)
    diffusehigh.sharpened(engine, engine.low_flow())
    found = [r["blur"] for r in engine.reports]
    assert found[1] == found[3] and len(set(found)) == 3
    assert all(0.1 <= s <= 2 for s in found)


def test_blurs_are_uniform(bench):
    engine = bench.engine("method=diffusehigh", prompts=["a"] * 400, seeds=list(range(400)))
    u = torch.special.ndtr(engine.noise((1,), "sharpen")).flatten().sort().values
    off = float((u - (torch.arange(400) + 0.5) / 400).abs().max())
    assert off < 1.63 / 20  # 1 % of Kolmogorov
