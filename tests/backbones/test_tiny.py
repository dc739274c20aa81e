"""The toy world is one world at every resolution, its splits are disjoint, its trainer resumes."""

import argparse
import json
import random
from dataclasses import replace

import torch
import torch.nn.functional as F

from s2flow.backbones.tiny import train, world
from s2flow.backbones.tiny.render import render
from s2flow.backbones.tiny.text import TEXT_LENGTH, build_tokenizer
from s2flow.backbones.tiny.vae import PatchVAE
from s2flow.backbones.tiny.world import MICRO, TINY


def test_a_scene_is_the_same_at_every_resolution():
    scenes = world.sample_scenes(TINY, 12, seed=3)
    low, high = (render(scenes, 32 * r, 48 * r, 4) for r in (1, 4))
    pooled = F.avg_pool3d(high.movedim(-1, 1), (1, 4, 4)).movedim(1, -1)
    assert (pooled - low).abs().mean() < 0.02
    other = render(world.sample_scenes(TINY, 12, seed=4), 32, 48, 4)
    assert (other - low).abs().mean() > 0.1


def test_the_object_moves_as_the_caption_says():
    scene = world.all_captions(MICRO)["a large red ball moves right on grass"]
    (video,) = render([scene], 32, 48, 8)
    red = (video[..., 0] > 0.7) & (video[..., 1] < 0.3)
    columns = torch.arange(48.0)
    centre = [(columns * frame.any(0)).sum() / frame.any(0).sum() for frame in red]
    assert centre[-1] - centre[0] > 10


def test_splits_are_disjoint_and_decided_by_the_text_alone():
    training = {world.caption(s) for s in world.sample_scenes(MICRO, 400, seed=0)}
    assert not any(world.held_out(text) for text in training)
    evaluation = world.held_out_captions(MICRO, 200)
    assert len(set(evaluation)) == 200 and all(world.held_out(text) for text in evaluation)
    assert evaluation[:50] == world.held_out_captions(MICRO, 50)


def test_every_caption_is_known_to_the_tokenizer_and_fits():
    tokenizer = build_tokenizer()
    texts = list(world.all_captions(TINY))[::97]
    for ids in tokenizer(texts).input_ids:
        assert tokenizer.unk_token_id not in ids
        assert len(ids) <= TEXT_LENGTH
    assert all(world.normalise(t, TINY)[1] == 0 for t in texts)
    # nothing that the caption says is lost on the way through the synonyms
    assert all(world.normalise(t, TINY)[0].split() == t.replace(",", "").split() for t in texts)


def test_other_text_is_accepted_and_its_unknown_words_counted():
    words, unknown = world.normalise("A huge crimson CAR, in the night!", MICRO)
    assert words == "a large red square in the night sky"
    assert unknown == 0
    words, unknown = world.normalise("a philosophical walrus", MICRO)
    assert words == "a unknown unknown" and unknown == 2 / 3
    assert build_tokenizer().unk_token_id in build_tokenizer()(words).input_ids
    assert world.normalise("", MICRO) == ("", 0.0)
    # words of the grammar that this world's captions never hold are unknown to its model
    assert world.normalise("a small dotted ball", MICRO)[1] == 0.5
    assert world.normalise("a small dotted ball", TINY)[1] == 0
    assert world.normalise("red " * 40, MICRO)[1] == (40 - world.LONGEST) / 40


def test_attributes_are_read_from_captions_only():
    asked = world.attributes("a large blue striped star spins on sand", MICRO)
    assert asked["shape"] == "star" and asked["texture"] == "striped"
    assert world.attributes("a large blue dotted star spins on sand", MICRO) is None


def test_the_shipped_autoencoder_keeps_the_picture(micro):
    for seed, (h, w) in enumerate([(32, 48), (64, 96)]):
        video = render(world.sample_scenes(MICRO, 16, seed, "held_out"), h, w, 2)
        error = (micro.decode(micro.encode(video)) - video).square().mean()
        assert -10 * error.log10() > 28  # dB


def test_latents_are_scaled_by_the_square_root_of_their_deviation(micro):
    video = render(world.sample_scenes(MICRO, 64, 0), 32, 48, 4)
    latent = micro.encode(video)
    raw = micro.vae.encode(video.movedim(-1, 1) * 2 - 1).latent_dist.mode()
    ratio = latent.std((0, 2, 3, 4)) / raw.std((0, 2, 3, 4)).sqrt()
    assert ratio.std() / ratio.mean() < 0.1
    assert 0.7 < latent.square().mean().sqrt() < 1.3


def test_training_goes_on_where_it_was_stopped(tmp_path, capsys):
    size = replace(train.SIZES["micro"], layers=1, pool=128, stages=((1.0, 2, 8),))
    args = argparse.Namespace(
        device="cpu", minutes=0.01, renew_every=1e9, save_seconds=1e9, bf16=False, compile=False
    )
    args.init = None
    vae = PatchVAE().requires_grad_(False)
    vae.fit_pca(train.clips(size, 0, 8)[0])
    train.train_flow(args, size, vae, tmp_path)
    first = torch.load(tmp_path / "flow.pt", weights_only=True)
    args.minutes = 0.02
    train.train_flow(args, size, vae, tmp_path)
    second = torch.load(tmp_path / "flow.pt", weights_only=True)
    assert f"resumed at step {first['step']}" in capsys.readouterr().out
    assert second["step"] > first["step"] and second["spent"] > first["spent"]
    assert second["seen"] == 8 * second["step"]


def test_training_starts_from_exported_weights(tmp_path):
    flow = train.build_flow(train.SIZES["micro"])
    seen = train.start_from(train.WEIGHTS / "micro", flow)
    assert seen == json.loads((train.WEIGHTS / "micro" / "card.json").read_text())["samples_seen"]
    x0, texts = train.clips(train.SIZES["micro"], 5, 24)
    vae = PatchVAE.from_pretrained(train.WEIGHTS / "micro" / "vae")
    with torch.no_grad():
        z = train.normalised_latent(vae, x0)
        good, fresh = (
            train.flow_loss(f, build_tokenizer(), z, texts, train.SIZES["micro"], False)
            for f in (flow, train.build_flow(train.SIZES["micro"]))
        )
    assert good < 0.8 < 1.2 < fresh


def test_a_single_frame_is_not_told_what_moves():
    text = "a large red ball moves right on grass"
    words = {train.corrupt(text, random.Random(k), frames=1) for k in range(60)}
    assert not any("moves" in w or "right" in w for w in words)
    assert "a large red ball on grass" in words
    words = {train.corrupt(text, random.Random(k), frames=8) for k in range(60)}
    assert text in words and "" in words


def test_a_lopsided_batch_shows_mostly_one_direction_of_time(tmp_path):
    size = replace(train.SIZES["micro"], pool=512)
    pool = object.__new__(train.Pool)
    texts = [world.caption(s) for s in world.sample_scenes(MICRO, 512, 0)]
    pool.shards, pool.size, pool.device = (
        [{"z": torch.zeros(512, 16, 8, 1, 1), "text": texts}],
        size,
        "cpu",
    )

    def share(lopsided: bool) -> float:
        rng = random.Random(0)
        found = [t for _ in range(40) for t in pool.batch(64, 8, rng, lopsided)[1]]
        assert len(found) == 40 * 64
        return sum(train.reverses(t) for t in found) / len(found)

    assert share(False) > 0.3  # three motions of eight
    assert 0.02 < share(True) < 0.15


def test_coarse_reversal_counts_only_what_turns_round_with_time():
    noise = torch.randn(64, 16, 8, 8, 12, generator=torch.Generator().manual_seed(0))
    assert abs(train.coarse_reversal(noise) / noise.square().mean() - 1) < 0.1
    drift = torch.linspace(-1, 1, 8).view(1, 1, 8, 1, 1).expand(2, 16, 8, 8, 12)
    assert train.coarse_reversal(drift) > 10 * drift.square().mean()
    assert train.coarse_reversal(noise[:, :, :1].expand(-1, -1, 8, -1, -1)) == 0  # stands still
    assert train.coarse_reversal(drift.square()) < 1e-10  # there and back
    tall = drift[..., :6].repeat(1, 1, 1, 2, 1)
    assert train.coarse_reversal(tall) > 10 * tall.square().mean()  # in any shape of frame
    stripes = drift * torch.tensor([1.0, -1.0]).repeat(6)
    assert train.coarse_reversal(stripes) < 1e-10  # too fine


def test_flow_loss_is_the_velocity_error(micro):
    """A model that answers eps - x0 exactly would have loss 0: check the target's definition."""
    x0 = torch.randn(4, 16, 2, 8, 12)

    class Perfect(torch.nn.Module):
        def forward(self, hidden_states, timestep, encoder_hidden_states, return_dict):
            s = (timestep / 1000).view(-1, 1, 1, 1, 1)
            return ((hidden_states - x0) / s,)  # v = (z - x0) / sigma

    text = train.build_flow(train.SIZES["micro"])["text_encoder"]
    flow = torch.nn.ModuleDict({"transformer": Perfect(), "text_encoder": text})
    size = train.SIZES["micro"]
    loss = train.flow_loss(flow, build_tokenizer(), x0, ["a"] * 4, size, half=False)
    assert loss < 1e-6


def test_other_shapes_show_the_same_world_at_the_same_scale_and_area():
    size = train.SIZES["micro"]
    wide, texts = train.clips(size, 3, 8)
    for shape in set(train.SHAPES):
        video, same = train.clips(size, 3, 8, shape=shape)
        assert same == texts and video[0, 0, 0].numel() == wide[0, 0, 0].numel()
        assert all(side % 8 == 0 for side in video.shape[-2:])  # whole tokens
    assert train.SHAPES[0] == (2, 3) and train.SHAPES.count((2, 3)) == 3  # every other shard


def test_a_view_of_another_shape_is_a_crop_of_a_larger_one():
    scenes = world.sample_scenes(MICRO, 6, seed=1)
    large = render(scenes, 64, 96, 2, pixel=2 / 32)
    small = render(scenes, 32, 48, 2)
    assert torch.allclose(large[:, :, 16:48, 24:72], small, atol=1e-5)
