"""What a process holds: its device, one backbone, the LR flows that it has made or found.

Within one process a backbone is loaded once, and an LR flow is computed once for all HR variants of a
sweep that share it.
"""

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

FAMILIES = {
    "tiny": "s2flow.embedded.backbone",
    "wan": "s2flow.backbones.wan",
    "hunyuan": "s2flow.backbones.hunyuan",
    "hunyuan15": "s2flow.backbones.hunyuan15",
}
_loaded: dict[tuple, Backbone] = {}  # at most one


def device_here(name: str) -> str:
    """The device that `device=` means for this process. Raises UserError if it is not here."""
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
    """The module of a backbone family; `backbones/base.py` says what it offers.

    Raises UserError for one that there is not.
    """
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
    """The backbone, loaded once per process; another one takes its place in memory.

    group: of processes that make each video together, None for one. Raises UserError if its strides,
    or its experts, are not those that the config was checked with, or its heads cannot be shared.
    """
    key = (conf.family, Origin.of(conf), device, offload, fp8, compiled, group)
    if key not in _loaded:
        _loaded.clear()
        gc.collect()
        elsewhere = offload != "none" or fp8  # as a whole it might not fit the device
        backbone = family(conf.family).from_origin(Origin.of(conf), "cpu" if elsewhere else device)
        if elsewhere:
            from s2flow.backbones.placement import place  # loads diffusers, which takes seconds

            place(backbone, device, offload, fp8)
        for knob in ("multiple", "frame_step", "boundary"):
            stated, found = conf[knob], getattr(backbone, knob, None)
            if stated != found:
                stated, found = ("null" if x is None else x for x in (stated, found))
                raise UserError(
                    f"backbone.{knob}={stated}, but these weights have {found}; "
                    f"type backbone.{knob}={found}, or choose another backbone="
                )
        if group is not None:
            share_videos(backbone, group)
        if compiled:
            compile_backbone(backbone)
        _loaded[key] = backbone
    return _loaded[key]


def low_flows(cfg: DictConfig) -> LowFlowCache:
    """The LR flows of this process, and of the folder that the config names."""
    gib = 0 if cfg.context_parallel > 1 else cfg.lr_cache_gib  # ranks must agree on what is there
    folder = Path(cfg.runs_dir) / "lr_cache" if cfg.lr_cache_dir is None else cfg.lr_cache_dir
    return _low_flows(str(folder) if gib else None, round(gib * 2**30))


@functools.lru_cache
def _low_flows(folder: str | None, limit: int) -> LowFlowCache:
    return LowFlowCache(folder, limit)


@functools.lru_cache
def weights_hash(family_name: str, weights: Origin) -> str:
    """Name of the weights, as recipes hold it; worked out once per process."""
    return family(family_name).identity(weights)
