"""A stage of a clip, and what becomes of it on a device: seconds and peak memory.

    seconds  the roofline of `clock` over a rank's share of FLOPs and bytes, and what it sends
    peak     weights that are there + state + activations

Weights that are there: all of them, or those in use (offload=model), or of the transformer its
largest two blocks and what belongs to no block (offload=group), which travel from the CPU in every
forward. Of two experts one is in use. k ranks share a forward's tokens and activations; each reads all
weights, and joint text, well below a per cent of the tokens at 2K, is counted as shared, too.

Left out: the CUDA context and workspaces of kernels (`RESERVE`), fragmentation (`SLACK`).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from s2flow.costs.clock import BUS, Rates
from s2flow.costs.forward import Forward
from s2flow.costs.trace import Moved

GIB = 2**30
RESERVE, SLACK = 1.0, 1.05  # GiB, and a factor
SHARED = ("transformer", "none")  # parts whose work ranks share
SINGLE = ("vae", "none")  # parts that compute in float32


@dataclass(frozen=True)
class Stage:
    """One stage: which part works ("text", "transformer", "vae", "none"), FLOPs, bytes beside weights.

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

    def there(self, part: str, offload: str, fp8: bool) -> int:
        """Bytes of weights on the device while a part works."""
        if offload == "none":
            return self.text + self.vae + self.transformer[fp8]
        moved = self.group[fp8] if offload == "group" else self.one(fp8)
        return {"text": self.text, "vae": self.vae, "transformer": moved}.get(part, 0)

    def one(self, fp8: bool) -> int:
        """Bytes of the transformer that makes one forward."""
        return (self.expert or self.transformer)[fp8]


@dataclass
class Costs:
    """A batch of clips, measured without weights; see `measure`."""

    weights: Weights
    stages: list[Stage]  # in the order of a run
    heads: int = 1  # of the transformer: ranks must divide them
    low: Forward | None = None  # one forward at LR, and at HR
    high: Forward | None = None

    def peak(self, stage: Stage, offload: str = "none", fp8: bool = False, ranks: int = 1) -> int:
        """Bytes on one device at the worst moment of a stage."""
        shared = ranks if stage.part == "transformer" else 1
        return self.weights.there(stage.part, offload, fp8) + stage.bytes // shared

    def seconds(
        self,
        stage: Stage,
        rates: Rates | float,
        offload: str = "none",
        fp8: bool = False,
        ranks: int = 1,
    ) -> float:
        """By the roofline of `clock`, for each of `ranks`; a bare number: TFLOP/s, the rest is free."""
        rates = rates if isinstance(rates, Rates) else Rates(rates)
        spent = seconds_of(stage, rates, ranks)
        if offload == "group" and stage.part == "transformer":
            spent = max(spent, stage.forwards * self.weights.one(fp8) / BUS)
        return spent


def seconds_of(stage: Stage, rates: Rates, ranks: int = 1) -> float:
    """Seconds of a stage, with its weights in their place."""
    sent = stage.sent(_ranks(stage, ranks))
    return rates.seconds(*_share(stage, ranks), stage.part in SINGLE) + rates.sending(sent)


def bound(stage: Stage, rates: Rates, ranks: int = 1) -> str:
    """What a stage waits for most: "compute", "memory" or "link"."""
    flops, attention, moved = _share(stage, ranks)
    only_compute = replace(rates, bandwidth=math.inf)
    found = {
        "compute": only_compute.seconds(flops, attention, moved, stage.part in SINGLE),
        "memory": moved.total / (rates.bandwidth * 1e9),
        "link": rates.sending(stage.sent(_ranks(stage, ranks))),
    }
    return max(found, key=found.get)


def _ranks(stage: Stage, ranks: int) -> int:
    return ranks if stage.part in SHARED else 1


def _share(stage: Stage, ranks: int) -> tuple[float, float, Moved]:
    """FLOPs, those of self-attention, and bytes moved of one rank."""
    k = _ranks(stage, ranks)
    return stage.flops / k, stage.attention / k, stage.moved.shared(k)
