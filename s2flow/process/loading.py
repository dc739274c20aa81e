"""Resources of a process, each made once for all jobs of a sweep: device, backbone, LR flows."""

import functools
import gc
import importlib
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from omegaconf import DictConfig

from s2flow.backbones.base import Backbone, Origin
from s2flow.backbones.compiled import compile_backbone
from s2flow.backbones.ulysses import share_videos
from s2flow.errors import UserError
from s2flow.process.parallel import own_device
from s2flow.store.lowflow import LowFlowCache

FAMILIES = {"tiny": "s2flow.embedded.backbone"}
FAMILIES |= {name: f"s2flow.backbones.{name}" for name in ("wan", "hunyuan", "hunyuan15")}
_loaded: dict[tuple, Backbone] = {}  # at most one


def device_here(name: str) -> str:
    """The device of this process by `device=`. Raises UserError if this machine lacks it."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        raise UserError(f"device={name} is unknown; type one of device=auto|cpu|cuda|cuda:1")
    if name == "auto":
        return own_device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"device={name}: torch finds no CUDA device here; type device=cpu")
    if ":" in name and int(name.split(":")[1]) >= torch.cuda.device_count():
        raise UserError(
            f"device={name}: there are {torch.cuda.device_count()}; type device=cuda:0"
        )
    return own_device(name)


def family(name: str) -> ModuleType:
    """The module of a backbone family (`backbones/base.py`). Raises UserError for an unknown one."""
    if name not in FAMILIES:
        raise UserError(
            f"backbone.family={name} is unknown; type one of backbone.family={'|'.join(FAMILIES)}"
        )
    return importlib.import_module(FAMILIES[name])


def load_backbone(
    conf: DictConfig,
    device: str,
    offload: str = "none",
    fp8: bool = False,
    compiled: bool = False,
    group: Any = None,
) -> Backbone:
    """The backbone, loaded once per process; loading another one frees it.

    group: process group for context parallelism, None for one process. Raises UserError if strides or
    experts differ from the config, or the group's size does not divide the heads.
    """
    key = (conf.family, Origin.of(conf), device, offload, fp8, compiled, group)
    if key not in _loaded:
        _loaded.clear()
        gc.collect()
        placed = offload != "none" or fp8  # all weights at once might not fit the device
        backbone = family(conf.family).from_origin(Origin.of(conf), "cpu" if placed else device)
        if placed:
            from s2flow.backbones.placement import place  # loads diffusers, which takes seconds

            place(backbone, device, offload, fp8)
        for knob in ("multiple", "frame_step", "boundary"):
            configured, actual = conf[knob], getattr(backbone, knob, None)
            if configured != actual:
                configured, actual = ("null" if x is None else x for x in (configured, actual))
                raise UserError(
                    f"backbone.{knob}={configured}, but these weights have {actual}; "
                    f"type backbone.{knob}={actual}, or choose another backbone="
                )
        if group is not None:
            share_videos(backbone, group)
        if compiled:
            compile_backbone(backbone)
        _loaded[key] = backbone
    return _loaded[key]


def low_flows(cfg: DictConfig) -> LowFlowCache:
    """The cache of LR flows, in memory and in the config's folder."""
    gib = 0 if cfg.context_parallel > 1 else cfg.lr_cache_gib  # ranks must agree on its content
    folder = Path(cfg.runs_dir) / "lr_cache" if cfg.lr_cache_dir is None else cfg.lr_cache_dir
    return _low_flows(str(folder) if gib else None, round(gib * 2**30))


@functools.lru_cache
def _low_flows(folder: str | None, limit: int) -> LowFlowCache:
    return LowFlowCache(folder, limit)


@functools.lru_cache
def pipeline_state(family_name: str, weights: Origin) -> Any:
    """What the checkpoint says besides its weights (`backbones.inspect.State`), or None."""
    return family(family_name).state(weights)


@functools.lru_cache
def weights_hash(family_name: str, weights: Origin) -> str:
    """Hash of the weights, as in the recipe; computed once per process."""
    return family(family_name).identity(weights)
