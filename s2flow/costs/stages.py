"""A stage of a clip: its seconds and peak memory on a device.

    seconds  the roofline of `clock` over a rank's share of FLOPs and bytes, and its communication
    peak     resident weights + state + activations

Resident weights: all of them; those in use (offload=model); or, of the transformer, its largest two
blocks and the weights outside blocks (offload=group), which are copied from the CPU in every forward.
Of two experts one is in use. k ranks share a forward's tokens and activations. Each reads all weights;
joint text, well below a per cent of the tokens at 2K, is counted as shared, too.

Not included: the CUDA context and kernel workspaces (`CONTEXT_GIB`), fragmentation (`SLACK`).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from s2flow.costs.clock import BUS, Rates
from s2flow.costs.forward import Forward
from s2flow.costs.trace import Moved

GIB = 2**30
CONTEXT_GIB, SLACK = 1.0, 1.05  # SLACK: a factor


@dataclass(frozen=True)
class Stage:
    """One stage: active part ("text", "transformer", "vae", "none"), FLOPs, bytes without weights.

    forwards: guided velocities; density: f of its windows; attention: FLOPs of self-attention among
    all; moved: bytes in device memory; sent(k): bytes that the busiest of k ranks sends.
    """

    name: str
    part: str
    tokens: int
    flops: float
    bytes: int
    forwards: float = 0
    density: float = 1.0
    attention: float = 0
    moved: Moved = Moved()
    sent: Callable[[int], float] = field(default=lambda k: 0.0, compare=False, repr=False)

    def times(self, rates: Rates, ranks: int = 1) -> tuple[float, float]:
        """(seconds of one rank's work, seconds to send), with the weights on the device."""
        k = ranks if self.part in ("transformer", "none") else 1  # whose work ranks share
        work = (self.flops / k, self.attention / k, self.moved.shared(k))
        single = self.part in ("vae", "none")
        return rates.seconds(*work, single), self.sent(k) / (rates.link * 1e9)

    def bound(self, rates: Rates, ranks: int = 1) -> str:
        """What it waits for: "compute", "memory" or "link"."""
        compute, link = self.times(replace(rates, bandwidth=math.inf), ranks)
        k = ranks if self.part in ("transformer", "none") else 1
        memory = self.moved.shared(k).total / (rates.bandwidth * 1e9)
        times = {"compute": compute, "memory": memory, "link": link}
        return max(times, key=times.get)


@dataclass(frozen=True)
class Weights:
    """Bytes by part; of the transformer as (plain, fp8).

    transformer: of all experts; group: on the device under offload=group; expert: of the largest one,
    where there are several, of which only one is in use.
    """

    text: int
    vae: int
    transformer: tuple[int, int]
    group: tuple[int, int]
    expert: tuple[int, int] | None = None

    def resident(self, part: str, offload: str, fp8: bool) -> int:
        """Bytes of weights on the device while a part is active."""
        if offload == "none":
            return self.text + self.vae + self.transformer[fp8]
        transformer = self.group[fp8] if offload == "group" else self.one(fp8)
        return {"text": self.text, "vae": self.vae, "transformer": transformer}.get(part, 0)

    def one(self, fp8: bool) -> int:
        """Bytes of the transformer (or expert) of one forward."""
        return (self.expert or self.transformer)[fp8]


@dataclass
class Costs:
    """Costs of a batch of clips, counted without weights; see `clip.measure`."""

    weights: Weights
    stages: list[Stage]  # in the order of a run
    heads: int = 1  # of the transformer: ranks must divide them
    low: Forward | None = None  # one forward at LR, and at HR
    high: Forward | None = None

    def peak(self, stage: Stage, offload: str = "none", fp8: bool = False, ranks: int = 1) -> int:
        """Peak bytes on one device in a stage."""
        shared = ranks if stage.part == "transformer" else 1
        return self.weights.resident(stage.part, offload, fp8) + stage.bytes // shared

    def seconds(
        self, stage: Stage, rates: Rates, offload: str = "none", fp8: bool = False, ranks: int = 1
    ) -> float:
        """Seconds by the roofline of `clock`, for each rank."""
        estimate = sum(stage.times(rates, ranks))
        if offload == "group" and stage.part == "transformer":
            estimate = max(estimate, stage.forwards * self.weights.one(fp8) / BUS)
        return estimate

    def rows(self, rates: Rates, *placement: Any) -> list[dict[str, Any]]:
        """What tables say of every stage. placement: offload, fp8, ranks."""
        ranks = placement[-1]
        return [
            {
                "stage": s.name,
                "tokens": s.tokens,
                "f": s.density,
                "tflop": s.flops / 1e12,
                "moved_gb": s.moved.total / 1e9,
                "sent_gb": s.sent(ranks) / 1e9,
                "seconds": self.seconds(s, rates, *placement),
                "bound": s.bound(rates, ranks),
                "peak_gib": self.peak(s, *placement) / GIB,
            }
            for s in self.stages
        ]
