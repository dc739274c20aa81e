"""The backbone behind whatever `s2flow.generate` was given: a loaded pipe, a name, or a backbone.

A pipe's processors are wrapped and its VAE's attention replaced while it is borrowed; at the end, also
after an error or Ctrl-C, everything is as it was. What cannot be used is refused before that.
"""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from typing import Any

from omegaconf import DictConfig
from torch import Tensor

from s2flow.backbones import inspect
from s2flow.backbones.base import Backbone, Origin
from s2flow.backbones.inspect import State
from s2flow.embedded.world import WORLDS
from s2flow.errors import UserError
from s2flow.process.loading import device_here, load_backbone, pipeline_state, weights_hash
from s2flow.recipe.defaults import conf_file, of_pipe
from s2flow.recipe.schema import BackboneConf

# pipeline class -> module of its adapter, its class, matching files of conf/backbone
FAMILIES = {
    "WanPipeline": ("wan", "WanBackbone", ["wan_1_3b", "wan_14b"]),
    "HunyuanVideoPipeline": ("hunyuan", "HunyuanVideoBackbone", ["hunyuan"]),
    "HunyuanVideo15Pipeline": ("hunyuan15", "HunyuanVideo15Backbone", ["hunyuan_1_5"]),
}


def _check_pipe(pipe: Any, embeds: dict[str, Tensor]) -> str:
    """The class in FAMILIES of a pipe that can be used. Raises UserError for one that cannot."""
    name = next((c.__name__ for c in type(pipe).__mro__ if c.__name__ in FAMILIES), None)
    if name is None:
        raise UserError(
            f"a {type(pipe).__name__} cannot be used; pass a loaded {' or '.join(FAMILIES)}, or the "
            "name of a backbone such as 'micro'"
        )
    if type(pipe.vae).__name__ == "PatchVAE":
        raise UserError("this pipe is the embedded model; type s2flow.generate('micro', ...)")
    for part in ("transformer", "scheduler"):
        if getattr(pipe, part, None) is None:
            raise UserError(f"this pipe has no {part}; load the whole checkpoint")
    for part in ("text_encoder", "tokenizer"):
        if getattr(pipe, part, None) is None and "prompt_embeds" not in embeds:
            raise UserError(
                f"this pipe has no {part}; pass prompt_embeds=..., or load the whole checkpoint"
            )
    boundary = pipe.config.get("boundary_ratio")
    if boundary is not None and getattr(pipe, "transformer_2", None) is None:
        raise UserError(
            f"this pipe changes its expert at boundary_ratio={boundary} and has no transformer_2; "
            "load the whole checkpoint"
        )
    return name


@contextmanager
def borrowed(
    pipe: Any, embeds: dict[str, Tensor]
) -> Iterator[tuple[Backbone, list[DictConfig], str, State | None]]:
    """(backbone, its files of conf/backbone, hash of its weights, state) of `generate`'s argument."""
    if embeds and (isinstance(pipe, str) or hasattr(pipe, "router")):
        raise UserError(f"{next(iter(embeds))} needs a loaded pipe; type prompt=...")
    if isinstance(pipe, str):
        conf = conf_file("backbone", pipe, BackboneConf)
        of = (conf.family, Origin.of(conf))
        weights, state = weights_hash(*of), pipeline_state(*of)
        yield load_backbone(conf, device_here("auto")), [conf], weights, state
        return
    if hasattr(pipe, "router"):  # a backbone of this package
        state = inspect.of_pipe(pipe.pipeline) if pipe.name not in WORLDS else None
        weights = inspect.weights(pipe.pipeline)
        yield pipe, [conf_file("backbone", pipe.name, BackboneConf)], weights, state
        return
    name = _check_pipe(pipe, embeds)
    state = inspect.of_pipe(pipe)
    state.check("this pipe")
    module, adapter, files = FAMILIES[name]
    if pipe.config.get("boundary_ratio") is not None:
        files = ["wan_2_2_14b"]
    if pipe.config.get("expand_timesteps"):
        files = ["wan_2_2_5b"]
    family = importlib.import_module(f"s2flow.backbones.{module}")
    if module == "hunyuan15":
        family.check_guider(pipe, "this pipe")
    _check_embeds(embeds, pipe)
    backbone = getattr(family, adapter)(files[0], pipe)
    backbone.embeds = embeds
    try:
        yield backbone, of_pipe(pipe, state, backbone, files), inspect.weights(pipe), state
    finally:
        backbone.release()
        if state.offload == "model":
            pipe.maybe_free_model_hooks()


def _check_embeds(embeds: dict[str, Tensor], pipe: Any) -> None:
    """Raises UserError for embeddings that the pipe's own call does not take."""
    names = signature(type(pipe).__call__).parameters
    taken = [name for name in names if "_embeds" in name or "_mask" in name]
    for name in embeds:
        if name not in taken:
            raise UserError(
                f"{name} is no keyword of a {type(pipe).__name__}; it takes {', '.join(taken)}"
            )
