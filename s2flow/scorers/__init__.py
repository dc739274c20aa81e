"""What is measured on a finished clip.

A scorer reads only what was saved (the mp4, the prompt, the seed, other runs of the folder), never the
model, so that a clip can be scored again later and elsewhere. A score of None "does not apply to this
clip". Whatever else is missing (another run, a package, weights) is an error that says what to type.

A new scorer is a class in a file here, derived from `Scorer`, and a yaml in conf/scorer/ that names
it. `_target_` must be a class of `s2flow.scorers`, or of a package of yours that the environment names:
S2FLOW_SCORERS=mylab.scorers python run.py 'scorer=[mine]' --config-dir ...
"""

import importlib
import inspect
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

import torch
from hydra.utils import instantiate
from torch import Tensor

from s2flow.errors import UserError
from s2flow.video import read_frames, read_video, to_bytes


@dataclass(frozen=True)
class Clip:
    """A generated clip, decoded once, on first use; then Undecodable may be raised.

    prompt: the entry of the list, even if the model got an augmented text of it (`record["prompt"]`).
    path: the mp4; low_path: that of its LR flow. runs_dir: the folder `runs_dir/<run_id>/records/...`.
    """

    path: Path
    prompt: str
    seed: int
    runs_dir: Path
    low_path: Path | None = None
    record: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def frames(self) -> Tensor:
        """(T, H, W, 3) uint8, as saved."""
        return read_frames(self.path)

    @cached_property
    def video(self) -> Tensor:
        """(T, H, W, 3) float32 in [0, 1]."""
        return self.frames.float().div_(255)

    @cached_property
    def low(self) -> Tensor | None:
        """The LR video in the same layout, where there was one."""
        return None if self.low_path is None else read_video(self.low_path)

    @classmethod
    def of(cls, video: Tensor, prompt: str, seed: int = 0) -> "Clip":
        """A clip that is in memory only."""
        clip = cls(Path(), prompt, seed, Path())
        vars(clip).update(video=video, frames=to_bytes(video))
        return clip


class Scorer(Protocol):
    """What computes the scores of one clip. Deriving from it gives the defaults below.

    names: the scores, always all of them; needs: what is missing for them, each with what to do about
    it. Which stored scores are still valid is decided by version (of the definition), weights ({file:
    sha256} or a short hash), arguments (None: all that were typed) and `depends`, of a clip: whatever
    else its scores depend on. covers: whether it has anything to do with the clip of a record; None:
    always. The others are stored beside the scores; device None is this CPU.
    """

    names: tuple[str, ...]
    version: int | str = 1
    needs: Sequence[str] = ()
    weights: Mapping[str, str] | str | None = None
    arguments: Mapping[str, Any] | None = None
    preprocessing: str | None = None
    protocol: str | None = None
    versions: Mapping[str, str] = MappingProxyType({})
    device: str | None = None
    depends: Callable[[Clip], Any] | None = None
    covers: Callable[[dict[str, Any]], bool] | None = None

    def score(self, clip: Clip) -> dict[str, float | None]:
        """A value, or None where it does not apply, for every one of `names`."""


@runtime_checkable
class Suite(Protocol):
    """Several scorers that are built from one config but scored and resumed one by one."""

    def prepare(self) -> None:
        """Check everything that the parts need. Raises UserError for what the user can provide."""

    def parts(self) -> dict[str, Scorer]:
        """The scorers by name."""


def build(name: str, conf: Any) -> Scorer | Suite:
    """The scorer that a file of conf/scorer describes.

    Raises UserError for a `_target_` that is not allowed or no scorer; other errors are Hydra's.
    """
    target = str(conf.get("_target_") if isinstance(conf, Mapping) else None)
    if not _is_allowed(target):
        raise UserError(
            f"scorer.{name}._target_={target} is no scorer of s2flow; type one of "
            "scorer=[builtin,world,fidelity,highres,...], or name your package in S2FLOW_SCORERS"
        )
    scorer = instantiate(conf, _recursive_=False)
    members, nothing = (*Scorer.__annotations__, "score"), object()
    lacking = [m for m in members if inspect.getattr_static(scorer, m, nothing) is nothing]
    if lacking and not isinstance(scorer, Suite):
        raise UserError(
            f"scorer.{name}._target_={target} is no scorer: it has no {', '.join(lacking)}; derive "
            "the class from s2flow.scorers.Scorer"
        )
    return scorer


def _is_allowed(target: str) -> bool:
    """Whether `target` is a class that an allowed package defines; nothing else is imported."""
    packages = ("s2flow.scorers", *filter(None, os.environ.get("S2FLOW_SCORERS", "").split(",")))
    within = tuple(f"{package}." for package in packages)
    module, _, name = target.rpartition(".")
    if not target.startswith(within):
        return False
    try:
        scorer = getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError:
        return False
    return isinstance(scorer, type) and f"{scorer.__module__}.".startswith(within)


def device_of(knob: str, name: str) -> str:
    """The device that `knob=name` selects. Raises UserError if it is not available."""
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", str(name)):
        raise UserError(f"{knob}={name} is unknown; type one of {knob}=auto|cpu|cuda|cuda:1")
    if name == "auto":
        return "cuda" if cards else "cpu"
    if name != "cpu" and int(name.partition(":")[2] or 0) >= cards:
        raise UserError(f"{knob}={name}: torch finds {cards} CUDA devices here; type {knob}=cpu")
    return name
