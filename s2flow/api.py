"""S²Flow for a loaded diffusers pipeline, in one call.

    pipe = WanPipeline.from_pretrained(FOLDER, dtype=torch.bfloat16).to("cuda")
    out = s2flow.generate(pipe, "a cat in the rain", high=(960, 1664), sparsity=0.5, order=2)
    export_to_video(out.frames[0], "cat.mp4", fps=out.fps)

Keywords are the knobs of docs/knobs.md that describe a clip, with the same checks and defaults. Knobs
that are not given come, in this order, from other keywords (`low` is half of `high`), from the pipe
(the shift of its scheduler, strides, dtypes), and from the matching file of conf/backbone. Noise is
that of `run.py`, and so are the pixels if dtypes and shift are; `run.py` keeps the autoencoder in
float32 (here: pipe.vae.float()).

A call leaves the pipe unchanged: what an adapter wraps or sets is restored at its end, also after an
error or Ctrl-C. Weights, dtypes, devices and scheduler are never changed.
"""

import difflib
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from s2flow import methods
from s2flow.backbones.base import Backbone, Origin
from s2flow.backbones.tiles import tiled
from s2flow.cascade import Stopped
from s2flow.errors import UserError
from s2flow.policies import sta
from s2flow.process.timing import Clock
from s2flow.recipe.defaults import composed, conf_file, of_pipe
from s2flow.recipe.resolve import resolve
from s2flow.recipe.schema import CLIP_KNOBS, BackboneConf

KNOBS = ("method", "windows", *CLIP_KNOBS)
WEIGHTS_OF_PIPE = "of a loaded pipe"  # stands for the hash of the weights
DIFFUSERS_KEYWORDS = {  # diffusers' keyword -> ours
    "height": "high=(height, width)",
    "width": "high=(height, width)",
    "num_frames": "frames=...",
    "num_inference_steps": "steps=...",
    "guidance_scale": "guidance=...",
    "generator": "seed=...",
    "callback_on_step_end": "progress=...",
}


@dataclass(frozen=True)
class Result:
    """Clips of B prompts.

    frames: (B, T, H, W, 3) float32 in [0, 1], for `diffusers.utils.export_to_video(frames[i])`; None
    if `on_low` returned False. low_frames: the LR video; None for method="native". latent: the HR z_0
    (B, C, T, h', w'), float32, on the pipe's device. reports: per clip, the realised density per step,
    window histogram, cosines. recipe: every knob as resolved. seconds: wall time per stage. fps: of the
    model's training clips.
    """

    frames: np.ndarray | None
    low_frames: np.ndarray | None
    latent: Tensor | None
    reports: list[dict[str, Any]]
    recipe: dict[str, Any]
    seconds: dict[str, float]
    fps: int


def generate(
    pipe: Any,
    prompt: str | Sequence[str],
    *,
    seed: int | Sequence[int] = 0,
    progress: Callable[[str, int, int], None] | None = None,
    on_low: Callable[[np.ndarray], bool | None] | None = None,
    **knobs: Any,
) -> Result:
    """High-resolution clips of one prompt, or of a list of prompts in one batch.

    pipe: a loaded `WanPipeline` (2.1 or 2.2), `HunyuanVideoPipeline` or `HunyuanVideo15Pipeline`; or a
    name of conf/backbone, such as the embedded "micro", which is loaded once per process; or a
    backbone of this package. seed: one for all prompts or one each.
    progress(stage, step, total): called after every step of stage "lr" and "hr".
    on_low(low_frames): called with the LR video, (B, T, h, w, 3) in [0, 1], before the HR stage. If it
    returns False, the call ends there and the result has no frames.
    knobs: high=(H, W), frames, sparsity, windows, order, solver, t_i, ... and method="native" and the
    like, or, with its parameters, method={"name": "hiflow", "alpha": 0.5, "preset": "own"}.

    Raises UserError for invalid values, in one line with what to type, and FloatingPointError for a
    latent that is not finite.
    """
    prompts = list(prompt) if isinstance(prompt, (list, tuple)) else [prompt]
    seeds = _integers(seed, len(prompts))
    _check_keywords(prompts, seeds, knobs)
    with _borrowed(pipe) as (backbone, files, weights):
        cfg = composed(files, knobs)
        recipe = resolve(cfg, weights, methods.method(cfg.method.name).KNOBS)
        methods.check(backbone, recipe)
        sta.check_prompts(recipe, prompts)
        clock = Clock(backbone.device)
        options = {"clock": clock, "progress": progress}
        if on_low is not None:  # np.False_ is not False
            truths = (bool, np.bool_)
            options["on_low"] = lambda video: (
                not isinstance(answer := on_low(_array(video)), truths) or bool(answer)
            )
        common = {"recipe": recipe.identity(), "seconds": clock.seconds, "fps": cfg.backbone.fps}
        try:
            with tiled(backbone.vae, recipe.vae_tile):
                made = methods.generate(backbone, recipe, prompts, seeds, **options)
        except Stopped as stop:
            return Result(None, _array(stop.low_video), None, [], **common)
        if not torch.isfinite(made.latent).all():
            raise FloatingPointError("the latent holds NaN or infinity")
        low = _array(made.low_video)
        return Result(_array(made.video), low, made.latent, made.reports, **common)


def _wan(pipe: Any) -> tuple[Backbone, list[str]]:
    from s2flow.backbones.wan import WanBackbone

    if type(pipe.vae).__name__ == "PatchVAE":
        raise UserError("this pipe is the embedded model; type s2flow.generate('micro', ...)")
    boundary = pipe.config.get("boundary_ratio")
    transformer_2 = getattr(pipe, "transformer_2", None)
    if boundary is not None and transformer_2 is None:
        raise UserError(
            f"this pipe changes its expert at boundary_ratio={boundary} and has no transformer_2; "
            "load the whole checkpoint"
        )
    files = ["wan_1_3b", "wan_14b"] if boundary is None else ["wan_2_2_14b"]
    return WanBackbone("wan", pipe), ["wan_2_2_5b"] if pipe.config.get(
        "expand_timesteps"
    ) else files


def _hunyuan(pipe: Any) -> tuple[Backbone, list[str]]:
    from s2flow.backbones.hunyuan import HunyuanVideoBackbone

    return HunyuanVideoBackbone("hunyuan", pipe), ["hunyuan"]


def _hunyuan15(pipe: Any) -> tuple[Backbone, list[str]]:
    from s2flow.backbones.hunyuan15 import HunyuanVideo15Backbone, check_guider

    check_guider(pipe, "this pipe")
    return HunyuanVideo15Backbone("hunyuan_1_5", pipe), ["hunyuan_1_5"]


# pipeline class -> adapter and matching files of conf/backbone
FAMILIES = {
    "WanPipeline": _wan,
    "HunyuanVideoPipeline": _hunyuan,
    "HunyuanVideo15Pipeline": _hunyuan15,
}


@contextmanager
def _borrowed(pipe: Any) -> Iterator[tuple[Backbone, list[DictConfig], str]]:
    """(backbone, its files of conf/backbone, hash of its weights) of `generate`'s first argument."""
    if isinstance(pipe, str):
        from s2flow.process.loading import device_here, load_backbone, weights_hash

        conf = conf_file("backbone", pipe, BackboneConf)
        weights = weights_hash(conf.family, Origin.of(conf))
        yield load_backbone(conf, device_here("auto")), [conf], weights
        return
    if hasattr(pipe, "router"):  # a backbone of this package
        yield pipe, [conf_file("backbone", pipe.name, BackboneConf)], WEIGHTS_OF_PIPE
        return
    names = [c.__name__ for c in type(pipe).__mro__ if c.__name__ in FAMILIES]
    if not names:
        raise UserError(
            f"a {type(pipe).__name__} cannot be used; pass a loaded {' or '.join(FAMILIES)}, or the "
            "name of a backbone such as 'micro'"
        )
    if pipe.transformer is None:
        raise UserError("this pipe has no transformer; load the whole checkpoint")
    if str(pipe._execution_device) != str(pipe.transformer.device):
        raise UserError(
            f"this pipe is offloaded (weights on {pipe.transformer.device}, work on "
            f"{pipe._execution_device}), which is not supported; type pipe.remove_all_hooks() and "
            "pipe.to('cuda')"
        )
    backbone, files = FAMILIES[names[0]](pipe)
    try:
        yield backbone, of_pipe(pipe, backbone, files), WEIGHTS_OF_PIPE
    finally:
        backbone.release()


def _check_keywords(prompts: list[Any], seeds: list[Any], knobs: dict[str, Any]) -> None:
    if not prompts or not all(isinstance(p, str) and p.strip() for p in prompts):
        raise UserError(
            "prompt is empty or no text; type prompt='a large red ball moves right on sand'"
        )
    if len(seeds) != len(prompts):
        raise UserError(
            f"seed holds {len(seeds)} numbers for {len(prompts)} prompts; type one, or one for each"
        )
    for name in knobs.keys() - set(KNOBS):
        close = difflib.get_close_matches(name, KNOBS, 1)
        suggestion = DIFFUSERS_KEYWORDS.get(name) or (f"{close[0]}=..." if close else None)
        hint = f"type {suggestion}" if suggestion else f"there are {', '.join(KNOBS)}"
        raise UserError(f"{name} is no keyword of s2flow.generate; {hint}")


def _integers(seed: Any, count: int) -> list[int]:
    """One seed for each prompt. Noise hashes a seed's digits, so 1.0 must not pass for 1."""
    given = list(seed) if isinstance(seed, Iterable) else [seed] * count
    try:
        return [operator.index(s) for s in given]
    except TypeError:
        raise UserError(
            f"seed={seed!r} is no whole number; type seed=0, or one for each prompt"
        ) from None


def _array(video: Tensor | None) -> np.ndarray | None:
    return None if video is None else video.float().cpu().numpy()
