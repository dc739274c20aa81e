"""The toy world is one world at every resolution, its splits are disjoint, its captions are read."""

import torch
import torch.nn.functional as F

from s2flow.embedded import backbone as tiny
from s2flow.embedded import world
from s2flow.embedded.render import render
from s2flow.embedded.text import TEXT_LENGTH, build_tokenizer
from s2flow.embedded.world import MICRO, SMALL, TINY


def test_a_scene_is_the_same_at_every_resolution():
    scenes = world.sample_scenes(TINY, 12, seed=3)
    low, high = (render(scenes, 32 * r, 48 * r, 4) for r in (1, 4))
    pooled = F.avg_pool3d(high.movedim(-1, 1), (1, 4, 4)).movedim(1, -1)
    assert (pooled - low).abs().mean() < 0.02
    other = render(world.sample_scenes(TINY, 12, seed=4), 32, 48, 4)
    assert (other - low).abs().mean() > 0.1


def test_the_object_moves_as_the_caption_says():
    scene = world.all_captions_cached(MICRO)["a large red ball moves right on grass"]
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
    for of in (SMALL, TINY):
        texts = list(world.all_captions_cached(of))[::97]
        for ids in tokenizer(texts).input_ids:
            assert tokenizer.unk_token_id not in ids
            assert len(ids) <= TEXT_LENGTH
        for t in texts:  # nothing that the caption says is lost on the way through the synonyms
            assert world.normalise(t, of) == (t.replace(",", ""), 0)


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


def test_a_view_of_another_shape_is_a_crop_of_a_larger_one():
    scenes = world.sample_scenes(MICRO, 6, seed=1)
    large = render(scenes, 64, 96, 2, pixel=2 / 32)
    small = render(scenes, 32, 48, 2)
    assert torch.allclose(large[:, :, 16:48, 24:72], small, atol=1e-5)


def test_captions_count_their_objects():
    scenes = world.all_captions_cached(SMALL)
    text = "three large red striped crosses move left on sand, the camera zooms in"
    assert scenes[text].number == 3 and world.caption(scenes[text]) == text
    assert all(len(s.objects) == s.number for s in world.sample_scenes(SMALL, 60, 1))
    assert world.caption(scenes[text], still=True) == "three large red striped crosses on sand"


def test_unknown_words_are_noted_once_per_prompt_and_for_three_prompts(capsys):
    backbone, cat = tiny.load("micro", "cpu"), "A cat plays the piano, a cat"
    for prompts in (["a large red ball moves right on grass"], [cat], [cat, "walrus"]):
        backbone.encode_prompt(prompts, "blurry", 4.0)
    first, second = capsys.readouterr().err.splitlines()
    assert "cat, plays, piano (" in first and "walrus" in second
    example = first.split('prompt="')[-1].rstrip('"')
    assert world.unknown_words(example, MICRO) == []
    backbone.encode_prompt(["walrus", "owl", "elk"], "", 4.0)
    assert len(capsys.readouterr().err.splitlines()) == 1
