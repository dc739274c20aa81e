"""Training of the embedded flow: what it shows, that it resumes to the step, that a signal ends it."""

import json
import random
import signal
import sys
from collections import Counter
from dataclasses import replace

import pytest
import torch

from s2flow.embedded import backbone as tiny
from s2flow.embedded import world
from s2flow.embedded.model import SIZES, build_flow
from s2flow.embedded.render import coverage
from s2flow.embedded.text import build_tokenizer
from s2flow.embedded.vae import PatchVAE
from s2flow.training import flow, views
from s2flow.training.__main__ import main
from s2flow.training.flow import Training
from s2flow.training.views import View, clips

MICRO = SIZES["micro"]
WEIGHTS = tiny.WEIGHTS / "micro"


@pytest.fixture
def trained(monkeypatch):
    """A network small enough to train in a test: steps(n, state=None) -> Training."""
    monkeypatch.setitem(flow.SIZES, "micro", replace(MICRO, layers=1, batch=2))
    vae = PatchVAE.from_pretrained(WEIGHTS / "vae").float().requires_grad_(False)

    def steps(count: int, path=None) -> Training:
        training = Training.start("micro", None, "test", "cpu")
        if path is not None:
            training.load(path)
        for _ in range(count):
            training.take_step(8, vae, build_tokenizer(), False)
        return training

    return steps


def test_a_run_that_was_stopped_ends_with_the_weights_of_one_that_was_not(trained, tmp_path):
    whole = trained(4)
    trained(2).save(tmp_path / "flow.pt")
    resumed = trained(2, tmp_path / "flow.pt")
    assert resumed.step == 4 and resumed.runs == [r | {"minutes": 0.0} for r in whole.runs]
    for key, value in whole.average.items():
        assert torch.equal(value, resumed.average[key]), key
    for key, value in whole.flow.state_dict().items():
        assert torch.equal(value, resumed.flow.state_dict()[key]), key


def test_a_signal_saves_the_state_and_the_weights(monkeypatch, tmp_path):
    step = Training.take_step
    monkeypatch.setattr(
        Training, "take_step", lambda *a: signal.raise_signal(signal.SIGTERM) or step(*a)
    )
    words = f"flow micro --steps 9 --state {tmp_path} --init {WEIGHTS} --sheet-minutes 0"
    threads = f"--threads {torch.get_num_threads()}"
    monkeypatch.setattr(sys, "argv", ["training", *words.split(), *threads.split()])
    main()
    card = json.loads((tmp_path / "weights" / "card.json").read_text())
    assert card["runs"][-1]["command"] == f"python -m s2flow.training {words} {threads}"
    assert card["runs"][-1]["init"] == card["runs"][-2]["weights"]
    again = Training.start("micro", WEIGHTS, "test", "cpu")
    again.load(tmp_path / "flow.pt")
    assert again.step == card["runs"][-1]["steps"] == 1
    assert tiny.load("micro", "cpu", tmp_path / "weights").world is tiny.WORLDS["micro"]


def test_training_starts_from_exported_weights():
    vae = PatchVAE.from_pretrained(WEIGHTS / "vae").float()
    x, texts = clips(MICRO, View("plain", views.LR, 1.0), 24, random.Random(5))
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        z = flow.normalised_latent(vae, x)
        sigma, eps = flow.noise_levels(24, 1.5, draw), torch.randn(z.shape, generator=draw)
        good, fresh = build_flow(MICRO), build_flow(MICRO)
        runs = flow.load_weights(WEIGHTS, good)
        good, fresh = (
            flow.flow_loss(f, build_tokenizer(), z, texts, sigma, eps, False)
            for f in (good, fresh)
        )
    assert runs == json.loads((WEIGHTS / "card.json").read_text())["runs"]
    assert good < 0.8 < 1.2 < fresh


def test_every_decile_of_noise_is_practised_and_so_are_its_ends():
    draw = torch.Generator().manual_seed(0)
    sigma = torch.cat([flow.noise_levels(32, 1.5, draw) for _ in range(400)])
    share = torch.histc(sigma, 10, 0, 1) / len(sigma)
    assert share.min() > 0.04
    assert sigma.min() < 0.005 and sigma.max() > 0.995


def test_flow_loss_is_the_velocity_error():
    """A model that answers eps - x0 exactly has loss 0: checks the target's definition."""
    x0, eps = torch.randn(2, 4, 16, 2, 8, 12)

    class Perfect(torch.nn.Module):
        def forward(self, hidden_states, timestep, encoder_hidden_states, return_dict):
            s = (timestep / 1000).view(-1, 1, 1, 1, 1)
            return ((hidden_states - x0) / s,)  # v = (z - x0) / sigma

    text = build_flow(MICRO)["text_encoder"]
    perfect = torch.nn.ModuleDict({"transformer": Perfect(), "text_encoder": text})
    sigma = torch.tensor([0.1, 0.4, 0.7, 1.0])
    assert flow.flow_loss(perfect, build_tokenizer(), x0, ["a"] * 4, sigma, eps, False) < 1e-6


def test_stretched_positions_are_those_of_the_stock_class_at_factor_one():
    rope = build_flow(MICRO)["transformer"].rope
    stock = rope.freqs_cos.clone(), rope.freqs_sin.clone()
    flow.stretch_positions(rope, 2.0, 1.0)
    t, h = rope.t_dim, rope.h_dim
    assert torch.allclose(rope.freqs_cos[3, t : t + h], stock[0][6, t : t + h], atol=1e-6)
    assert torch.equal(rope.freqs_cos[:, :t], stock[0][:, :t])
    flow.stretch_positions(rope, 1.0, 1.0)
    assert torch.allclose(rope.freqs_cos, stock[0]) and torch.allclose(rope.freqs_sin, stock[1])


# -- what is shown ----------------------------------------------------------------------------


def test_views_have_their_shares_and_never_the_area_of_hr():
    rng = random.Random(0)
    drawn = [View.draw(rng) for _ in range(4000)]
    kinds = Counter(v.kind for v in drawn)
    for kind, share in views.SHARES.items():
        assert abs(kinds[kind] / 4000 - share) < 0.03
    assert kinds["plain"] / 4000 > 0.4
    for size in SIZES.values():
        areas = [v.pixels(size)[0] * v.pixels(size)[1] / size.height / size.width for v in drawn]
        assert 1.8 < max(areas) < 2.4 and min(areas) > 0.7
    assert 1.9 < max(v.zoom for v in drawn if v.kind == "close") <= 2.2


def test_a_close_up_shows_the_object_larger_and_says_so():
    near, plain = (View(k, views.LR, z) for k, z in (("close", 2.0), ("plain", 1.0)))
    x, texts = clips(MICRO, near, 16, random.Random(1))
    far, plain_texts = clips(MICRO, plain, 16, random.Random(1))
    assert [t.removesuffix(", in closeup") for t in texts] == plain_texts
    assert all(t.endswith("in closeup") for t in texts)
    assert x.shape == far.shape == (16, 3, 8, 32, 48)
    scenes = world.sample_scenes(world.MICRO, 16, 0)
    share = []
    for view in (near, plain):
        placed = [view.place(s, MICRO, random.Random(0)) for s in scenes]
        share.append(coverage(placed, 32, 48, torch.tensor([0.5]), 2 / 32 / view.zoom).mean())
    assert share[0] > 2 * share[1]


def test_stills_name_no_motion_and_lopsided_clips_mostly_one_direction():
    plain = View("plain", views.LR, 1.0)
    times = torch.tensor([0.1, 0.5])
    x, texts = clips(MICRO, plain, 40, random.Random(0), times)
    assert x.shape[2] == 2
    assert not any(word in t for t in texts for word in ("moves", "stays", "spins", "grows"))
    _, texts = clips(MICRO, plain, 400, random.Random(0), lopsided=True)
    reverse = sum(any(f" {w} " in t for w in ("left", "down", "shrinks")) for t in texts) / 400
    assert 0.02 < reverse < 0.15


def test_captions_lose_words_now_and_then():
    text = "a large red ball moves right on grass"
    words = {flow.drop_words(text, random.Random(k)) for k in range(200)}
    assert text in words and "" in words and any("qqq" in w for w in words)


def test_coarse_reversal_counts_only_what_turns_round_with_time():
    reversal = flow.coarse_reversal
    noise = torch.randn(64, 16, 8, 8, 12, generator=torch.Generator().manual_seed(0))
    assert abs(reversal(noise) / noise.square().mean() - 1) < 0.1
    drift = torch.linspace(-1, 1, 8).view(1, 1, 8, 1, 1).expand(2, 16, 8, 8, 12)
    assert reversal(drift) > 10 * drift.square().mean()
    assert reversal(noise[:, :, :1].expand(-1, -1, 8, -1, -1)) == 0  # stands still
    assert reversal(drift.square()) < 1e-10  # there and back
    tall = drift[..., :6].repeat(1, 1, 1, 2, 1)
    assert reversal(tall) > 10 * tall.square().mean()  # in any shape of frame
    stripes = drift * torch.tensor([1.0, -1.0]).repeat(6)
    assert reversal(stripes) < 1e-10  # too fine
