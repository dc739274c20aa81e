"""Stage clocks: wall seconds and peak memory of text, lr, plan, handoff, hr, decode and score.

The device is synchronised at both ends of a stage. Peak memory is the allocator's on CUDA. On a CPU it
is the process's peak resident set, of the stage if the kernel allows a reset, else since the start.
`watch` is called when a stage begins and when it ends. `steps` holds the seconds of each step of the
LR and HR flows by steps remaining, per clip of the batch.
"""

import resource
import time
from collections.abc import Callable
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch


@dataclass
class Clock:
    """Accumulates seconds and the peak MiB per stage: `with clock("hr"): ...`."""

    device: str = "cpu"
    seconds: dict[str, float] = field(default_factory=dict)
    peak_mib: dict[str, float] = field(default_factory=dict)
    steps: dict[str, dict[int, float]] = field(default_factory=dict)  # seconds per clip
    watch: Callable[[str, float | None], None] | None = None  # of (stage, None or seconds)
    failed_stage: str | None = None  # first stage that raised

    @contextmanager
    def __call__(self, stage: str):
        """Time one stage; repeated stages add up."""
        if self.watch is not None:
            self.watch(stage, None)
        self._begin()
        start = time.perf_counter()
        try:
            yield
        except BaseException:
            self.failed_stage = self.failed_stage or stage
            raise
        finally:
            if self.device.startswith("cuda"):
                torch.cuda.synchronize(self.device)
            seconds = time.perf_counter() - start
            self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds
            self.peak_mib[stage] = max(self.peak_mib.get(stage, 0.0), self._peak())
            if self.watch is not None:
                self.watch(stage, seconds)

    def _begin(self) -> None:
        if self.device.startswith("cuda"):
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            return
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM

    def _peak(self) -> float:
        if self.device.startswith("cuda"):
            return torch.cuda.max_memory_allocated(self.device) / 2**20
        try:
            status = Path("/proc/self/status").read_text()
            line = next(row for row in status.splitlines() if row.startswith("VmHWM"))
            return int(line.split()[1]) / 1024
        except (OSError, StopIteration):
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
