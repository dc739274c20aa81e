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
import hashlib
import itertools
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, Unpack

import numpy as np
import torch
from diffusers.utils.pil_utils import numpy_to_pil
from omegaconf import DictConfig
from torch import Tensor

from s2flow import methods
from s2flow.backbones.base import Backbone
from s2flow.backbones.inspect import State
from s2flow.backbones.tiles import tiled
from s2flow.cascade import Generated, Step, Stopped
from s2flow.errors import UserError
from s2flow.policies import sta
from s2flow.process.timing import Clock
from s2flow.recipe.borrowed import borrowed
from s2flow.recipe.defaults import composed
from s2flow.recipe.given import Given, fitted
from s2flow.recipe.identity import Recipe
from s2flow.recipe.keywords import Knobs
from s2flow.recipe.resolve import resolve
from s2flow.recipe.schema import CLIP_KNOBS

KNOBS = ("method", "windows", *CLIP_KNOBS)
ALIASES = {  # diffusers' keyword -> ours
    "num_frames": "frames",
    "num_inference_steps": "steps",
    "guidance_scale": "guidance",
    "guidance_scale_2": "guidance_2",
}
BOTH_EXPERTS = "guidance of both experts"
REFUSED = {  # diffusers' keyword -> what to do instead
    "latents": "type seed=... or generator=..., which draw the noise",
    "num_videos_per_prompt": "type a list of prompts, with a seed each",
    "prompt_2": "leave it out: both text encoders are given prompt=...",
    "true_cfg_scale": "type guidance=...",
    "sigmas": "type steps=... and shift=...",
    "return_dict": "leave it out: the result has .frames",
    "max_sequence_length": "leave it out: the model's own length is used",
    "callback_on_step_end_tensor_inputs": "leave it out: the callback is given latents",
    "attention_kwargs": "leave it out",
}
OUTPUTS = ("np", "pt", "pil", "latent")


@dataclass(frozen=True)
class Result:
    """Clips of B prompts.

    frames: by `output_type`, "np": (B, T, H, W, 3) float32 in [0, 1], for
    `diffusers.utils.export_to_video(frames[i])`; "pt": a tensor (B, T, 3, H, W); "pil": lists of
    images; "latent": the latent. None if `on_low` returned False. low_frames: the LR video, likewise;
    None for method="native" and for "latent". latent: the HR z_0 (B, C, T, h', w'), float32, on the
    pipe's device. reports: per clip, the realised density per step, window histogram, cosines. recipe:
    every knob as resolved, with what the pipe brought along. seconds: wall time per stage. fps: frame
    rate of the model's training clips.
    """

    frames: Any
    low_frames: Any
    latent: Tensor | None
    reports: list[dict[str, Any]]
    recipe: dict[str, Any]
    seconds: dict[str, float]
    fps: int


def generate(
    pipe: Any,
    prompt: str | Sequence[str] | None = None,
    *,
    seed: int | Sequence[int] = 0,
    generator: torch.Generator | list[torch.Generator] | None = None,
    video: Any = None,
    height: int | None = None,
    width: int | None = None,
    output_type: str = "np",
    progress: Callable[[str, int, int], None] | None = None,
    on_low: Callable[[np.ndarray], bool | None] | None = None,
    callback_on_step_end: Callable[..., dict | None] | None = None,
    **knobs: Unpack[Knobs],
) -> Result:
    """High-resolution clips of one prompt, or of a list of prompts in one batch.

    pipe: a loaded `WanPipeline` (2.1 or 2.2), `HunyuanVideoPipeline` or `HunyuanVideo15Pipeline`; or a
    name of conf/backbone, such as the embedded "micro"; or a backbone of this package. seed: one, or
    one per prompt; noise depends on (prompt, seed) alone. generator: draws the noise as in diffusers.
    video: a clip to refine: a file's name, frames (T, H, W, 3), or images. height, width: `high` in
    diffusers' words, as are num_frames, num_inference_steps, guidance_scale; prompt_embeds and what
    goes with it replace `prompt`. output_type: "np" | "pt" | "pil" | "latent". progress(stage, step,
    total): called after every step of stage "lr" and "hr". callback_on_step_end(pipe, i, t,
    {"latents": z}): likewise, counted through; it may return other latents. on_low(low_frames): sees
    the LR video, (B, T, h, w, 3) in [0, 1]; if it returns False, the call ends there. knobs:
    sparsity, windows, order, t_i, ... (docs/knobs.md), and method="native" or, with its parameters,
    method={"name": "hiflow", "alpha": 0.5, "preset": "own"}.

    Raises UserError for invalid values, in one line with what to type, and FloatingPointError for a
    latent that is not finite.
    """
    embeds = {k: knobs.pop(k) for k in list(knobs) if "_embeds" in k or k.endswith("_mask")}
    embeds = {k: x for k, x in embeds.items() if x is not None}
    prompts = _prompts(prompt, embeds)
    seeds = _integers(seed, len(prompts))
    knobs = _in_our_words(knobs, height, width)
    _check_keywords(prompts, seeds, knobs, output_type)
    with borrowed(pipe, embeds) as (backbone, files, weights, state):
        cfg, recipe, given = _resolved(files, weights, state, knobs, video, embeds)
        methods.check(backbone, recipe)
        sta.check_prompts(recipe, prompts)
        _check_vae(backbone, recipe, output_type)
        _check_negative(backbone, recipe)
        clock = Clock(backbone.device)
        options = {"clock": clock, "progress": progress, "generator": generator}
        options |= {"decode": output_type != "latent", "video": given and given.video}
        options |= {"on_low": _answer(on_low), "on_latent": _callback(pipe, callback_on_step_end)}
        common = {"recipe": recipe.identity(), "seconds": clock.seconds, "fps": cfg.backbone.fps}
        try:
            with tiled(backbone.vae, recipe.vae_tile):
                made = methods.generate(backbone, recipe, prompts, seeds, **options)
        except Stopped as stop:
            return Result(None, _array(stop.low_video), None, [], **common)
        _check_finite(made)
        frames, low = (_as_output(v, output_type) for v in (made.video, made.low_video))
        latents = output_type == "latent"
        return Result(made.latent if latents else frames, low, made.latent, made.reports, **common)


def _resolved(
    files: list[DictConfig],
    weights: str,
    state: State | None,
    knobs: dict[str, Any],
    video: Any,
    embeds: dict[str, Tensor],
) -> tuple[DictConfig, Recipe, Given | None]:
    """The call's config, its recipe, and the clip that is refined."""
    if state is not None and state.tiles:  # the pipe's own stay, unless others are typed
        typed = "vae_tile" in knobs
        state = replace(state, tiles={}) if typed else state
        knobs = knobs if typed else knobs | {"vae_tile": []}
    both = knobs.pop(BOTH_EXPERTS, None)
    if both is not None and files[0].boundary is not None:
        knobs = {"guidance_2": both} | knobs
    given = None
    if video is not None:
        sizes = {k: knobs.get(k) for k in ("low", "high", "frames")}
        place = SimpleNamespace(backbone=files[0], **sizes)
        given = fitted(video, place)
        knobs = knobs | {k: getattr(place, k) for k in sizes}
    cfg = composed(files, knobs)
    if state is not None:
        state.check("this pipe", cfg.method.name)
    knobs_read = methods.method(cfg.method.name).KNOBS
    recipe = resolve(cfg, weights, knobs_read, state, given and given.sha256)
    if embeds:
        recipe = replace(recipe, pipeline=(recipe.pipeline or {}) | {"embeds": _hash(embeds)})
    return cfg, recipe, given


def _check_finite(made: Generated) -> None:
    """Raises FloatingPointError for NaN or infinity in the latent or the video."""
    first = next((r["first_nan"] for r in made.reports if "first_nan" in r), None)
    if first is not None or not made.latent.isfinite().all():
        raise FloatingPointError(
            f"the latent holds NaN or infinity, first in the velocity of {first or 'no step'}; type "
            "pipe.transformer.to(torch.bfloat16), which does not overflow where float16 does"
        )
    if made.video is not None and not made.video.isfinite().all():
        raise FloatingPointError(
            "the decoded video holds NaN, and the latent does not; type pipe.vae.to(torch.float32)"
        )


def _check_vae(backbone: Backbone, recipe: Recipe, output_type: str) -> None:
    """Raises UserError where a VAE is needed that the pipe lacks."""
    if backbone.vae is not None:
        return
    if output_type != "latent":
        raise UserError("this pipe has no vae; type output_type='latent', or load the vae")
    if recipe.method != "native" and recipe.handoff != "latent":
        raise UserError(
            f"handoff={recipe.handoff} decodes and encodes, and this pipe has no vae; "
            "type handoff='latent', or load the vae"
        )


def _check_negative(backbone: Backbone, recipe: Recipe) -> None:
    """Raises UserError where guidance needs a negative prompt that nothing can encode."""
    given = backbone.embeds
    if not given or "negative_prompt_embeds" in given or recipe.guidance == 1.0:
        return
    second_pass = not backbone.transformer.config.get("guidance_embeds")
    if second_pass and getattr(backbone.pipeline, "text_encoder", None) is None:
        raise UserError(
            f"guidance={recipe.guidance:g} needs a negative prompt, and this pipe has no text_encoder; "
            "type negative_prompt_embeds=..., or guidance_scale=1"
        )


def _hash(embeds: dict[str, Tensor]) -> str:
    """Hash of all values, the same on every device."""
    digest = hashlib.sha256()
    for name, x in sorted(embeds.items()):
        digest.update(f"{name} {tuple(x.shape)}".encode())
        digest.update(x.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


# -- keywords -----------------------------------------------------------------------------------


def _prompts(prompt: Any, embeds: dict[str, Tensor]) -> list[Any]:
    """The prompts, or a name for each clip whose embedding is given, from which its noise is drawn."""
    given = embeds.get("prompt_embeds")
    if given is None:
        return list(prompt) if isinstance(prompt, (list, tuple)) else [prompt]
    if prompt is not None:
        raise UserError("prompt and prompt_embeds say the same; leave one out")
    return [f"embeds {_hash({'prompt_embeds': x})}" for x in given]


def _in_our_words(knobs: dict[str, Any], height: Any, width: Any) -> dict[str, Any]:
    """Knobs with diffusers' keywords translated. Raises UserError for one that is typed twice."""
    if (height is None) != (width is None):
        raise UserError(f"height={height} width={width}: type both, or high=(height, width)")
    theirs = {} if height is None else {"high": ("height", (height, width))}
    theirs |= {ALIASES[k]: (k, v) for k, v in knobs.items() if k in ALIASES and v is not None}
    for ours, (name, _) in theirs.items():
        if ours in knobs:
            raise UserError(f"{name} and {ours} set the same; leave one out")
    kept = {k: v for k, v in knobs.items() if k not in ALIASES}
    if "guidance_scale" in knobs and "guidance_scale_2" not in knobs:
        kept[BOTH_EXPERTS] = knobs["guidance_scale"]  # as in diffusers
    return kept | {ours: value for ours, (_, value) in theirs.items()}


def _check_keywords(
    prompts: list[Any], seeds: list[Any], knobs: dict[str, Any], output_type: str
) -> None:
    if output_type not in OUTPUTS:
        raise UserError(
            f"output_type={output_type!r} is unknown; type one of output_type={'|'.join(OUTPUTS)}"
        )
    if not prompts or not all(isinstance(p, str) and p.strip() for p in prompts):
        raise UserError(
            "prompt is empty or no text; type prompt='a large red ball moves right on sand'"
        )
    if len(seeds) != len(prompts):
        raise UserError(
            f"seed holds {len(seeds)} numbers for {len(prompts)} prompts; type one, or one for each"
        )
    for name in knobs.keys() - {*KNOBS, BOTH_EXPERTS}:
        close = difflib.get_close_matches(name, KNOBS, 1)
        hint = f"type {close[0]}=..." if close else f"there are {', '.join(KNOBS)}"
        raise UserError(f"{name} is no keyword of s2flow.generate; {REFUSED.get(name, hint)}")


def _integers(seed: Any, count: int) -> list[int]:
    """One seed for each prompt. Noise hashes a seed's digits, so 1.0 must not pass for 1."""
    given = list(seed) if isinstance(seed, Iterable) else [seed] * count
    try:
        return [operator.index(s) for s in given]
    except TypeError:
        raise UserError(
            f"seed={seed!r} is no whole number; type seed=0, or one for each prompt"
        ) from None


def _array(video: Tensor) -> np.ndarray:
    return video.float().cpu().numpy()


def _as_output(video: Tensor | None, output_type: str) -> Any:
    """A video in the form that `output_type` names; None for none."""
    if video is None or output_type == "latent":
        return None
    if output_type == "pt":
        return video.float().movedim(-1, 2)
    if output_type == "pil":
        return [numpy_to_pil(_array(clip)) for clip in video]
    return _array(video)


def _answer(on_low: Callable | None) -> Callable[[Tensor], bool] | None:
    """`on_low`, given an array; what it answers is False for False alone, numpy's included."""
    if on_low is None:
        return None
    truths = (bool, np.bool_)
    return lambda video: not isinstance(answer := on_low(_array(video)), truths) or bool(answer)


def _callback(pipe: Any, call: Callable[..., dict | None] | None) -> Callable | None:
    """diffusers' callback, as the loop calls it: steps of both stages are counted through."""
    if call is None:
        return None
    count = itertools.count()

    def on_latent(step: Step, z: Tensor) -> Tensor:
        told = torch.tensor(1000 * step.sigma)
        return (call(pipe, next(count), told, {"latents": z}) or {}).get("latents", z)

    return on_latent
