"""Out of memory: how it shows, and what a job does without from then on.

A batch that does not fit is taken apart (`job`). A single clip that does not fit is tried once more,
with everything that saves memory and changes no pixel, so that its run id stays true:

    offload      on CUDA, the transformer's blocks come and go one by one (offload=group); a graph of
                 torch.compile is given up for that
    low_flows    LR flows of other clips are no longer held in memory, only on disk
    cache        what PyTorch's allocator keeps for later is given back

The job goes on so for its following clips, whose records say it (`saving`): loading the model to and
fro would cost more than the offloading. The next job of a sweep starts with the whole model again. A
clip that runs out of memory a second time, or after others had to save, has failed, and the line says
what to type.
"""

import gc
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig

from s2flow.store.lowflow import LowFlowCache

SAID = (  # by RuntimeErrors that have no type of their own
    "can't allocate memory",
    "not enough memory",
    "CUDA error: out of memory",
    "CUDA out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)


def ran_out(error: BaseException) -> bool:
    """Whether this is memory that could not be had, of the GPU or of the machine."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in SAID)


@dataclass
class Saving:
    """What a job does without; `after` says since when, None: it does without nothing."""

    offload: str | None = None  # instead of the config's
    after: str | None = None

    def begin(self, device: str, offload: str, stage: str | None) -> None:
        """From now on; offload: the config's; stage: in which memory ran out."""
        self.offload = "group" if offloads(device) else offload
        self.after = f"out of memory in {stage or 'loading'}"

    def report(self) -> dict[str, Any]:
        """For the record: {"saving": ...} or nothing."""
        if self.after is None:
            return {}
        said = {"offload": self.offload, "low_flows": "on disk only", "after": self.after}
        return {"saving": said}


def offloads(device: str) -> bool:
    """Whether weights can be elsewhere than where they are used."""
    return device.startswith("cuda")


def give_back(flows: LowFlowCache) -> None:
    """Drop what is held for later. No exception may be alive: its frames hold tensors."""
    flows.drop()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def advice(cfg: DictConfig) -> str:
    """What to type where a clip does not fit."""
    words = []
    if cfg.backbone.family != "tiny" and not (cfg.vae_tile or cfg.backbone.vae_tile):
        words.append("vae_tile=[512,448]")
    words.append("a smaller low=[height,width] and high=[height,width], or fewer frames")
    words.append(f"context_parallel={2 * cfg.context_parallel} over more GPUs")
    return f"type {', '.join(words[:-1])}, or {words[-1]}"
