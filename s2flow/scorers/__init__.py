"""What is measured on a finished clip.

A scorer reads only what was saved (the mp4, the prompt, the seed, other runs in the same folder),
never the model, so that a clip can be scored again later and on another machine. `Scorer` is the
interface; `Suite` is a group of scorers that are built together but scored and resumed one by one.
None means "does not apply to this clip" and becomes JSON null. Whatever is missing apart from the
clip (another run, a package, weights) is an error that says what to type.

    builtin.py    temporal flickering as VBench defines it; needs nothing else
    fidelity.py   PSNR, SSIM, LPIPS and relative errors against the same clip of another run
    highres.py    detail, doubling, seams, fine flicker, black and frozen frames
    musiq.py      MUSIQ on native crops, where its weights are
    world.py      does a clip of the toy world show what its caption says? how often? how sharply?
    vbench/       VBench's own code, six dimensions, here or in an environment of its own
    oracle.py     the trained classifier behind world.py

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
    """A generated clip as the scorers see it, decoded once, on first use.

    prompt: the entry of the list, even if the model got an augmented text of it (`record["prompt"]`),
    since VBench's overall consistency needs the short one.
    path: the mp4; low_path: that of the cascade's LR flow, where there was one.
    runs_dir: the folder that holds all runs, `runs_dir/<run_id>/records/...`.
    record: of the clip in the store; {} for a clip that is not in one.
    """

    path: Path
    prompt: str
    seed: int
    runs_dir: Path
    low_path: Path | None = None
    record: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def frames(self) -> Tensor:
        """(T, H, W, 3) uint8, as saved. Raises Undecodable."""
        return read_frames(self.path)

    @cached_property
    def video(self) -> Tensor:
        """(T, H, W, 3) float32 in [0, 1]. Raises Undecodable."""
        return self.frames.float().div_(255)

    @cached_property
    def low(self) -> Tensor | None:
        """The LR video in the same layout, where there was one. Raises Undecodable."""
        return None if self.low_path is None else read_video(self.low_path)

    @classmethod
    def of(cls, video: Tensor, prompt: str, seed: int = 0, runs_dir: Path = Path()) -> "Clip":
        """A clip that is in memory only."""
        clip = cls(Path(), prompt, seed, runs_dir)
        vars(clip).update(video=video, frames=to_bytes(video))
        return clip


class Scorer(Protocol):
    """What computes the scores of one clip. Deriving from it gives the defaults below.

    names: the scores, always all of them; version: raised when their definition changes; needs: what
    is missing for them to be computed, each with what to do about it; weights: {file: sha256} or a
    short hash; arguments: those that decide the scores, None for all that were typed. These decide
    which stored scores are still valid, and so does `depends`, of a clip: whatever else its scores
    depend on, such as the hash of a reference. preprocessing, protocol, versions and device (None: this
    CPU) are stored beside the scores.
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

    def score(self, clip: Clip) -> dict[str, float | None]:
        """A value, or None where it does not apply, for every one of `names`."""


@runtime_checkable
class Suite(Protocol):
    """Several scorers that are built from one config."""

    def prepare(self) -> None:
        """Check everything that the parts need. Raises UserError for what the user can provide."""

    def parts(self) -> dict[str, Scorer]:
        """The scorers by name."""


def build(name: str, conf: Any) -> Scorer | Suite:
    """The scorer that a file of conf/scorer describes.

    Raises UserError for a `_target_` that is not allowed or no scorer; other errors are Hydra's.
    """
    target = str(conf.get("_target_") if isinstance(conf, Mapping) else None)
    packages = ("s2flow.scorers", *os.environ.get("S2FLOW_SCORERS", "").split(","))
    if not _is_class_of(target, packages):
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


def _is_class_of(target: str, packages: tuple[str, ...]) -> bool:
    """Whether `target` is a class that one of the packages defines; nothing else is imported."""

    def within(module: str) -> bool:
        return any(p and (module == p or module.startswith(f"{p}.")) for p in packages)

    module, _, name = target.rpartition(".")
    if not within(module):
        return False
    try:
        scorer = getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError:
        return False
    return isinstance(scorer, type) and within(scorer.__module__)


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
