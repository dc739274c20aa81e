"""The recipe: everything that decides the pixels of a clip besides its prompt and seed.

`run_id` is a short hash of the recipe, so two commands that would give the same pixels are one
run, and a sweep re-issued computes only what is missing. Placement (device, shard, launcher,
tracker, prompt subset, scorers) is not in it; neither are knobs that the method ignores (each
method names its own in KNOBS).
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

from s2flow.windows import Box, Policy

VERSION = 1  # raise it when the same recipe would give other pixels


@dataclass(frozen=True)
class Recipe:
    """Resolved knobs: no defaults left open. Sizes are (height, width) in pixels."""

    backbone: str
    weights: str
    method: str
    steps: int
    shift: float
    frames: int
    low: tuple[int, int]
    high: tuple[int, int]
    guidance: float
    negative_prompt: str
    t_i: int
    handoff: str
    noise: str
    sparsity: float
    density: str
    windows: Policy
    brick_low: Box
    brick_high: Box
    coverage_rows: int
    attention: str
    solver: str
    order: int
    stencil: str
    lr_time: str
    upsample: str
    knobs: tuple[str, ...] = ()  # the method's own, beyond those that every method has

    def identity(self) -> dict[str, Any]:
        """What is hashed and stored: plain types, without what this method ignores."""
        always = ("backbone", "weights", "method", "steps", "shift", "frames", "high")
        always += ("guidance", "negative_prompt")
        kept = set(always) | set(self.knobs)
        if "sparsity" in kept and self.windows.name in ("full", "coverage"):
            kept -= {"sparsity", "density"}
        if "sparsity" in kept and self.sparsity == 1:
            kept -= {"density"}
        if "solver" in kept and self.solver != "lri":
            kept -= {"order", "stencil", "lr_time"}
            kept -= {"upsample"} if self.solver != "lri_cv" else set()
        if "order" in kept and self.order == 1:
            kept -= {"stencil", "lr_time", "upsample"}
        if self.handoff == "noisy":
            kept -= {"noise"}
        # through JSON, so that tuples are lists and a stored recipe equals a fresh one
        return json.loads(json.dumps({k: v for k, v in asdict(self).items() if k in kept}))

    def low_identity(self) -> str:
        """Key of the LR flow: shared by every HR variant."""
        names = ("backbone", "weights", "steps", "shift", "frames", "low", "guidance")
        names += ("negative_prompt", "brick_low", "coverage_rows")
        return json.dumps({k: v for k, v in asdict(self).items() if k in names}, sort_keys=True)

    @property
    def run_id(self) -> str:
        """Ten hexadecimal digits of the identity and VERSION."""
        text = json.dumps([VERSION, self.identity()], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:10]
