"""What window policies share: options, the case they decide for, plans known before the HR flow."""

import importlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import ModuleType

import torch
from torch import Tensor

from s2flow.errors import UserError
from s2flow.grid import Box, brick_grid, realised_density
from s2flow.plan import Plan, whole_grid
from s2flow.windows import DEFAULT_EXPONENTS, candidates, to_grid

LR, HR, NOTHING = "LR attention", "HR attention", "nothing"  # what a policy READS


@dataclass(frozen=True)
class Calibration:
    """What a file of `s2flow.calibrate` holds: one box per layer and head, and what it is valid for.

    boxes: in bricks, by layer and head; prompts: those that it was made with; f: as requested.
    """

    backbone: str
    weights: str
    tokens: Box
    brick: Box
    f: float
    prompts: tuple[str, ...]
    boxes: tuple[tuple[Box, ...], ...]


@dataclass(frozen=True)
class Policy:
    """How windows are chosen; the `windows` group of the config, and part of the recipe.

    name: a module of `s2flow.policies`; its OPTIONS say which of the others it reads.
    dense_steps: so many first HR steps, dense_layers: these layers, attend everything.
    """

    name: str
    exponents: tuple[tuple[float, float, float], ...] = DEFAULT_EXPONENTS
    target: float = 0.95
    cap: float = 1.0
    dense_steps: int = 0
    dense_layers: tuple[int, ...] = ()
    file: str = ""  # hash of what `calibration` holds
    calibration: Calibration | None = field(default=None, compare=False, repr=False)

    @property
    def module(self) -> ModuleType:
        """The policy's file."""
        return importlib.import_module(f"s2flow.policies.{self.name}")

    @property
    def label(self) -> str:
        """The policy in a word for tables; anything but the usual settings is spelt out."""
        module = self.module
        words = module.label(self) if hasattr(module, "label") else spelt(self)
        words += f" dense_steps={self.dense_steps}" if self.dense_steps else ""
        return words + (f" dense_layers={list(self.dense_layers)}" if self.dense_layers else "")

    def check(self, case: "Case") -> "Policy":
        """The policy as it will run; raises UserError, in its module's words, if it cannot."""
        check = getattr(self.module, "check", None)
        return check(self, case) if check else self

    def dense(self, n: int, layer: int, t_i: int) -> bool:
        """Whether a layer attends everything with n of t_i HR steps remaining."""
        return n > t_i - self.dense_steps or layer in self.dense_layers

    def whole(self, kept: float) -> bool:
        """Whether every window is the whole grid where a share `kept` is asked for (s or f)."""
        return self.name == "full" or (self.module.BY_VOLUME and kept >= 1)

    def density(self, case: "Case") -> float:
        """Density f before any window is chosen: as requested, or what the module expects."""
        if self.whole(case.f):
            return 1.0
        return case.f if self.module.BY_VOLUME else self.module.density(self, case)

    def ignored(self, kept: float) -> frozenset[str]:
        """Knobs of the recipe that change nothing where a share `kept` is asked for."""
        return Policy("full").module.IGNORES if self.whole(kept) else self.module.IGNORES


@dataclass(frozen=True)
class Case:
    """What a policy's options are checked for, and what it decides windows for.

    f: requested share of query-key pairs. low_tokens, low_brick, tokens, brick: token grids and bricks
    of LR and HR. t_i: HR steps; rows: query rows sampled per head. What a file of windows must be valid
    for: backbone, weights (a hash, "" if not known) and sizes, the number of HR sizes; file: its path.
    """

    f: float
    low_tokens: Box
    low_brick: Box
    tokens: Box
    brick: Box
    t_i: int = 0
    rows: int = 0
    backbone: str = ""
    weights: str = ""
    file: str | None = None
    sizes: int = 1

    @property
    def low_grid(self) -> Box:
        """LR bricks per axis."""
        return brick_grid(self.low_tokens, self.low_brick)

    @property
    def grid(self) -> Box:
        """HR bricks per axis."""
        return brick_grid(self.tokens, self.brick)


def static(policy: Policy, case: Case, boxes: Tensor | Sequence[int], coverage: Tensor) -> Plan:
    """The plan of boxes known before the HR flow, with its guards.

    boxes: (N+1, layers, B, heads, 3), or what broadcasts to that shape of `coverage`.
    """
    boxes = torch.as_tensor(boxes, dtype=torch.int16).expand(*coverage.shape[:-3], 3)
    plan, (steps, layers) = whole_grid(boxes.shape[:-1], case.grid), boxes.shape[:2]
    windowed = torch.tensor(
        [
            [0 < n <= case.t_i and not policy.dense(n, layer, case.t_i) for layer in range(layers)]
            for n in range(steps)
        ]
    )
    plan[windowed] = boxes[windowed]
    return Plan(plan, case.tokens, case.brick)


# -- policies that choose between candidates ----------------------------------------------------


def candidates_of(policy: Policy, case: Case) -> list[Box]:
    """The boxes of the HR grid that a plan of this policy may hold."""
    boxes = torch.tensor(candidates(case.f, policy.exponents, case.low_grid), dtype=torch.int16)
    boxes = to_grid(boxes, case.low_grid, case.tokens, case.brick, case.f)
    return [tuple(b) for b in boxes.tolist()]


def check_candidates(policy: Policy, case: Case) -> Policy:
    """Raises UserError unless the LR grid has candidates of volume f, and HR bricks fine enough."""
    if case.f >= 1:
        return policy
    boxes = candidates_of(policy, case)
    reached = [realised_density(case.tokens, case.brick, box) for box in boxes]
    nearest = min(reached, key=lambda x: abs(math.log(x / case.f)))
    if not abs(math.log(nearest / case.f)) < math.log(1.25):
        raise UserError(
            f"brick_high={list(case.brick)} cannot keep f = {case.f:.4g} of the "
            f"{'x'.join(map(str, case.tokens))} tokens; the nearest that it reaches is "
            f"{nearest:.4g}: type smaller bricks, or another sparsity"
        )
    return policy


def spelt(policy: Policy) -> str:
    """The policy's name, with its exponents unless they are the usual ones."""
    if policy.exponents == getattr(policy.module, "USUAL", policy.exponents):
        return policy.name
    shares = ("[" + ",".join(f"{a:.3g}" for a in e) + "]" for e in policy.exponents)
    return f"{policy.name} {' '.join(shares)}"
