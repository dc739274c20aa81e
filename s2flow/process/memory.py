"""Out of memory: how it is detected, and how a job saves memory from then on.

A batch that does not fit is split into clips (`job`). A single clip that does not fit is tried once
more with everything that saves memory and changes no pixel, so that its run id stays valid:

    offload      on CUDA, the transformer's blocks are offloaded one by one (offload=group), without
                 torch.compile
    low_flows    LR flows of other clips are kept on disk only, not in memory
    cache        PyTorch's allocator cache is emptied

The job keeps these settings and records them (`saving`), since reloading the model costs more than
offloading. The next job of a sweep starts without them. A clip that runs out of memory a second time,
or while the settings are active, fails, and its message says what to type.
"""

import gc
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig

from s2flow.store.lowflow import LowFlowCache

# of plain RuntimeErrors
OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "CUDA error: out of memory")
OUT_OF_MEMORY += ("CUDA out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


def ran_out(error: BaseException) -> bool:
    """Whether an error means out of memory, on the GPU or the host."""
    known = isinstance(error, RuntimeError) and any(m in str(error) for m in OUT_OF_MEMORY)
    return known or isinstance(error, (MemoryError, torch.OutOfMemoryError))


@dataclass
class Saving:
    """Memory-saving settings of a job; `after` is the reason, None if they are off."""

    offload: str | None = None  # instead of the config's
    after: str | None = None

    def begin(self, device: str, offload: str, stage: str | None) -> None:
        """Switch them on. offload: the config's; stage: where memory ran out."""
        self.offload = "group" if offloads(device) else offload
        self.after = f"out of memory in {stage or 'loading'}"

    def report(self) -> dict[str, Any]:
        """Fields for the record: {"saving": ...}, or {} if they are off."""
        if self.after is None:
            return {}
        settings = {"offload": self.offload, "low_flows": "on disk only", "after": self.after}
        return {"saving": settings}


def offloads(device: str) -> bool:
    """Whether weights can be offloaded from this device."""
    return device.startswith("cuda")


def give_back(flows: LowFlowCache) -> None:
    """Empty the caches. No exception may be alive: its frames hold tensors."""
    flows.drop()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def advice(cfg: DictConfig) -> str:
    """What to type if a clip does not fit."""
    options = []
    if cfg.backbone.family != "tiny" and not (cfg.vae_tile or cfg.backbone.vae_tile):
        options.append("vae_tile=[512,448]")
    options.append("a smaller low=[height,width] and high=[height,width], or fewer frames")
    options.append(f"context_parallel={2 * cfg.context_parallel} over more GPUs")
    return f"type {', '.join(options[:-1])}, or {options[-1]}"
