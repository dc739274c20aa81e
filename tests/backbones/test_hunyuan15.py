"""HunyuanVideo-1.5: no N x N mask anywhere, and what it leaves out changes nothing."""

import pytest
import torch
from tiny_pipelines import PROMPTS, relative
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from s2flow.backbones import hunyuan15
from s2flow.backbones.base import Origin
from s2flow.backbones.hunyuan15 import MasklessProcessor, _cut, attend_frame_by_frame

pytestmark = pytest.mark.parametrize("case", ["hunyuan_1_5"], indirect=True)


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation allocates: a view of its input is none."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        known = {x.untyped_storage().data_ptr() for x in tensors((args, kwargs))}
        made = [x for x in tensors(out) if x.untyped_storage().data_ptr() not in known]
        self.numel = max([self.numel, *(x.numel() for x in made)])
        return out


def tensors(tree):
    return [x for x in tree_leaves(tree) if isinstance(x, torch.Tensor)]


def latent(case, clips, side=16):
    shape = (clips, *case.backbone.latent_shape(16 * side, 16 * side, 5))
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def stock_inputs(case, z, prompts):
    """What the stock pipeline feeds its transformer: padding, places for an image, and masks."""
    text, mask, glyphs, glyph_mask = case.stock.encode_prompt(prompts, batch_size=len(prompts))
    places, width = case.stock.vision_num_semantic_tokens, case.stock.vision_states_dim
    return {
        "hidden_states": torch.cat([z, torch.zeros_like(z), torch.zeros_like(z[:, :1])], 1),
        "timestep": torch.full((len(z),), 700.0),
        "encoder_hidden_states": text,
        "encoder_attention_mask": mask,
        "encoder_hidden_states_2": glyphs,
        "encoder_attention_mask_2": glyph_mask,
        "image_embeds": torch.zeros(len(z), places, width),
        "return_dict": False,
    }


@torch.no_grad()
@pytest.mark.parametrize("prompts", [PROMPTS[:1], PROMPTS])
def test_no_tensor_of_n_squared_elements_and_the_same_velocity(case, prompts):
    """512 video tokens, one clip and a ragged batch; the stock model does build such masks."""
    z = latent(case, len(prompts))
    inputs = stock_inputs(case, z, prompts)
    with Largest() as stock:
        theirs = case.stock.transformer(**inputs)[0]
    condition = case.backbone.encode_prompt(prompts, "", 1.0)
    with Largest() as ours:
        v = case.backbone.velocity(z, 0.7, condition)
    n = 2 * 16 * 16
    assert stock.numel >= len(z) * n**2
    assert ours.numel < n**2
    assert relative(v, theirs) < 1e-5


@torch.no_grad()
def test_the_real_padding_changes_nothing(case, monkeypatch):
    """1000 + 256 text tokens and 729 places for an image, as the published pipeline feeds them."""
    for name, n in (("tokenizer_max_length", 1000), ("tokenizer_2_max_length", 256)):
        monkeypatch.setattr(case.stock, name, n)
        monkeypatch.setattr(case.backbone.pipeline, name, n)
    monkeypatch.setattr(case.stock, "vision_num_semantic_tokens", 729)
    z = latent(case, 1, 4)
    condition = case.backbone.encode_prompt(PROMPTS[:1], "", 1.0)
    theirs = case.stock.transformer(**stock_inputs(case, z, PROMPTS[:1]))[0]
    assert relative(case.backbone.velocity(z, 0.7, condition), theirs) < 1e-5
    text = condition.positive
    # 8 words and the template's last; Text "sand". and its end, in bytes
    assert text.states.shape[1] == 9 and text.glyphs.shape[1] == len('Text "sand". ') + 1
    assert text.lengths == [9 + 14]


@torch.no_grad()
def test_quoted_words_reach_the_second_text_encoder(case):
    z, found = latent(case, 1, 4), []
    for prompt in ('a "cat"', "a cat", 'a "ball"'):
        condition = case.backbone.encode_prompt([prompt], "", 1.0)
        v = case.backbone.velocity(z, 0.7, condition)
        found.append((condition.positive.glyphs.shape[1], v))
    assert found[1][0] == 0 < found[0][0] < found[2][0]
    assert all(relative(v, found[1][1]) > 1e-4 for _, v in (found[0], found[2]))


def test_padding_may_stand_anywhere(case):
    """A tokenizer that pads on the left: real tokens come to the front, in their order."""
    states = torch.arange(8.0).view(2, 4, 1)
    mask = torch.tensor([[False, True, False, True], [False, False, False, True]])
    cut, real = _cut(states, mask)
    assert cut[..., 0].tolist()[0] == [1, 3] and cut[1, 0, 0] == 7
    assert real.tolist() == [[True, True], [True, False]]


@torch.no_grad()
@pytest.mark.parametrize("half", ["encoder", "decoder"])
def test_the_autoencoders_attention_needs_no_mask_either(case, half):
    block = getattr(case.stock.vae, half).mid_block.attentions[0]
    x = torch.randn(1, 8, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    n = 3 * 12 * 12
    with Largest() as stock:
        theirs = block(x)
    with Largest() as ours:
        out = attend_frame_by_frame(block, x)
    assert relative(out, theirs) < 1e-5
    assert ours.numel < n**2 <= stock.numel
    two = torch.cat([x, x.flip(-1)])
    assert relative(attend_frame_by_frame(block, two)[:1], out) < 1e-5
    patched = getattr(case.backbone.vae, half).mid_block.attentions[0].forward
    assert patched.func is attend_frame_by_frame


@torch.no_grad()
def test_half_precision_is_told_the_very_sigma(case):
    """In bfloat16 the stock pipeline rounds 913.2 to 912, and 911 to the same."""
    half = hunyuan15.from_origin(Origin("x", str(case.folder), dtype="bfloat16"), "cpu")
    told = []
    half.transformer.time_embed.time_proj.register_forward_hook(
        lambda module, inputs, out: told.append(float(inputs[0][0]))
    )
    z = latent(case, 1, 4)
    condition = half.encode_prompt(PROMPTS[:1], "", 1.0)
    v = half.velocity(z, 0.9132, condition)
    assert v.dtype == torch.float32 and torch.isfinite(v).all()
    assert told == [pytest.approx(913.2, abs=1e-3)]
    assert float(torch.tensor(913.2).bfloat16()) == float(torch.tensor(911.0).bfloat16()) == 912


def test_the_text_of_the_guidance_pass_is_its_own(case):
    """Another negative prompt is another length, other states, and another velocity."""
    z = latent(case, 2, 4)
    long, short = (case.backbone.encode_prompt(PROMPTS, n, 6.0) for n in ("a red ball spins", ""))
    assert long.negative.lengths != short.negative.lengths != long.positive.lengths
    v, w = (case.backbone.velocity(z, 0.7, c) for c in (long, short))
    assert relative(v, w) > 1e-4
    seen = []
    with case.backbone.router.observing(lambda layer, q, k: seen.append(q.shape[2])):
        case.backbone.velocity(z, 0.7, long)
    n = 2 * 4 * 4 + long.positive.states.shape[1] + long.positive.glyphs.shape[1]
    assert seen == [n] * 3  # the conditional pass alone


def test_every_layer_of_the_blocks_is_replaced_and_the_refiner_left_alone(case):
    for name, p in case.backbone.transformer.attn_processors.items():
        ours = isinstance(getattr(p, "stock", None), MasklessProcessor)
        assert ours == name.startswith("transformer_blocks")
