"""Tiny complete pipelines, saved as the real checkpoints are: same classes and folders, offline."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import HunyuanVideo15Pipeline, HunyuanVideoPipeline, WanPipeline
from tiny_pipelines import BUILD

from s2flow.backbones import hunyuan, hunyuan15, wan
from s2flow.backbones.base import Origin

# family's yaml (where it is not the name), adapter, pipeline, self-attention layers, head width
FACTS = {
    "wan": ("wan_1_3b", wan, WanPipeline, 3, 12),
    "hunyuan": ("hunyuan", hunyuan, HunyuanVideoPipeline, 2 + 2, 16),  # and not the token refiner
    "wan_2_2_5b": ("wan_2_2_5b", wan, WanPipeline, 3, 12),
    "wan_2_2_14b": ("wan_2_2_14b", wan, WanPipeline, 3, 12),  # of either expert
    "hunyuan_1_5": ("hunyuan_1_5", hunyuan15, HunyuanVideo15Pipeline, 3, 16),
}


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Folder of each family's tiny pipeline, as `save_pretrained` writes it."""
    root = tmp_path_factory.mktemp("checkpoints")
    for name, build in BUILD.items():
        torch.manual_seed(0)
        build().save_pretrained(root / name)
    return {name: root / name for name in BUILD}


@pytest.fixture(scope="session", params=["wan", "hunyuan"])
def case(request, folders):
    """One family: our `backbone` and diffusers' own `stock`, opened separately from `folder`.

    low and high are the sizes in pixels of 2x3 and 4x6 tokens per frame; joint: attention with text.
    """
    name = request.param
    conf, family, pipeline, layers, width = FACTS[name]
    stock = pipeline.from_pretrained(folders[name], dtype=torch.float32)
    stock.set_progress_bar_config(disable=True)
    backbone = family.from_origin(Origin(name, str(folders[name])), "cpu")
    if name == "hunyuan_1_5":
        stock.vae.enable_slicing()  # as it comes, its mask has no place for a batch of two
    # HunyuanVideo-1.5: its 1985 tokens of padding take seconds
    for pipe in (stock, backbone.pipeline):
        pipe.tokenizer_max_length, pipe.tokenizer_2_max_length = 12, 20
        pipe.vision_num_semantic_tokens = 3
    return SimpleNamespace(
        name=name,
        folder=folders[name],
        backbone=backbone,
        stock=stock,
        conf=conf,
        pipeline=pipeline,
        layers=layers,
        width=width,
        joint=name.startswith("hunyuan"),
        low=(2 * backbone.multiple, 3 * backbone.multiple),
        high=(4 * backbone.multiple, 6 * backbone.multiple),
    )


@pytest.fixture
def typed(case, recipe):
    """typed("order=1", ...): the recipe of a small clip of this family."""
    (h, w), (H, W) = case.low, case.high
    words = [f"backbone={case.conf}", f"low=[{h},{w}]", f"high=[{H},{W}]", "frames=5", "steps=3"]
    words += ["t_i=2", "brick_low=[1,1,1]", "brick_high=[1,2,2]", "backbone.dtype=float32"]
    return lambda *more: recipe(*words, *more)
