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

from s2flow.costs.clock import BUS, Rates
from s2flow.costs.forward import Forward
from s2flow.costs.trace import Moved

GIB = 2**30
CONTEXT_GIB, SLACK = 1.0, 1.05  # SLACK: a factor
PARALLEL_PARTS = ("transformer", "none")  # their work is divided among ranks
FLOAT32_PARTS = ("vae", "none")  # they compute in float32


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
    """Costs of a batch of clips, counted without weights; see `measure`."""

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
        self,
        stage: Stage,
        rates: Rates | float,
        offload: str = "none",
        fp8: bool = False,
        ranks: int = 1,
    ) -> float:
        """Seconds by the roofline of `clock`, for each rank. rates: a number is TFLOP/s alone."""
        rates = rates if isinstance(rates, Rates) else Rates(rates)
        estimate = seconds_of(stage, rates, ranks)
        if offload == "group" and stage.part == "transformer":
            estimate = max(estimate, stage.forwards * self.weights.one(fp8) / BUS)
        return estimate


def seconds_of(stage: Stage, rates: Rates, ranks: int = 1) -> float:
    """Seconds of a stage whose weights are on the device."""
    sent = stage.sent(_ranks(stage, ranks))
    return rates.seconds(*_share(stage, ranks), stage.part in FLOAT32_PARTS) + rates.sending(sent)


def bound(stage: Stage, rates: Rates, ranks: int = 1) -> str:
    """What bounds a stage: "compute", "memory" or "link"."""
    flops, attention, moved = _share(stage, ranks)
    only_compute = replace(rates, bandwidth=math.inf)
    times = {
        "compute": only_compute.seconds(flops, attention, moved, stage.part in FLOAT32_PARTS),
        "memory": moved.total / (rates.bandwidth * 1e9),
        "link": rates.sending(stage.sent(_ranks(stage, ranks))),
    }
    return max(times, key=times.get)


def _ranks(stage: Stage, ranks: int) -> int:
    return ranks if stage.part in PARALLEL_PARTS else 1


def _share(stage: Stage, ranks: int) -> tuple[float, float, Moved]:
    """FLOPs, those of self-attention, and bytes moved of one rank."""
    k = _ranks(stage, ranks)
    return stage.flops / k, stage.attention / k, stage.moved.shared(k)
