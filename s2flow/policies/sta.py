"""Sliding-tile-like windows: one box per layer and head, fixed offline (`python -m s2flow.calibrate`).

A file holds the boxes and what they are valid for: backbone, weights, HR grid, bricks and f must be
those of the run, and the prompts of the run must not be those that the boxes were chosen on. The recipe
holds the hash of what decides the pixels, so neither the file's name nor its date makes another run.

Deviation: sliding-tile attention (Zhang et al. 2025) searches each head's window offline over
calibration prompts; ours takes the equal-volume candidate of the highest mean coverage (Eq. 8).
"""

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from s2flow.errors import UserError
from s2flow.grid import Box, brick_grid
from s2flow.plan import Plan
from s2flow.policies.base import NOTHING, Calibration, Case, Policy, static
from s2flow.store import write_json

if TYPE_CHECKING:
    from s2flow.recipe.identity import Recipe

HOW = "python -m s2flow.calibrate windows.file=FILE"

READS, BY_VOLUME, OPTIONS = NOTHING, True, ()
IGNORES = frozenset({"brick_low", "coverage_rows"})


def label(policy: Policy) -> str:
    """With the hash of its file."""
    return f"sta {policy.file}"


def content_hash(c: Calibration) -> str:
    """Twelve hexadecimal digits of grid, bricks and boxes."""
    text = json.dumps([c.tokens, c.brick, c.boxes])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def write(path: str, c: Calibration, **more: Any) -> None:
    """One file; `more` is for people: commit and the like. Raises UserError if it cannot be written."""
    boxes = [[_word(b) for b in heads] for heads in c.boxes]
    try:
        write_json(Path(path), {**asdict(c), "boxes": boxes, **more})
    except OSError as error:
        raise UserError(
            f"windows.file={path} cannot be written ({error.strerror}); type windows.file=FILE"
        ) from None


def read(path: str | None) -> Calibration:
    """What a file holds. Raises UserError if there is none, or it is no such file."""
    if path is None:
        raise UserError(f"windows=sta needs windows.file=FILE; make one with {HOW}")
    try:
        stored = json.loads(Path(path).read_text(encoding="utf-8"))
        boxes = tuple(tuple(_box(b.split("x")) for b in heads) for heads in stored["boxes"])
        words = (str(stored["backbone"]), str(stored["weights"]))
        grid = (_box(stored["tokens"]), _box(stored["brick"]))
        prompts = tuple(map(str, stored["prompts"]))
        c = Calibration(*words, *grid, float(stored["f"]), prompts, boxes)
        table, g = torch.tensor(boxes), torch.tensor(brick_grid(*grid))  # no table if heads differ
        if table.dim() != 3 or not bool(((table >= 1) & (table <= g)).all()):
            raise ValueError
    except OSError as error:
        raise UserError(
            f"windows.file={path} cannot be read ({error.strerror}); make it with {HOW}"
        ) from None
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError):
        raise UserError(
            f"windows.file={path} holds no windows that fit its grid; make it anew with {HOW}"
        ) from None
    return c


def _box(sides: Any) -> Box:
    t, h, w = map(int, sides)
    return t, h, w


def with_file(policy: Policy, path: str | None) -> Policy:
    """The policy with the boxes of its file."""
    c = read(path)
    return replace(policy, file=content_hash(c), calibration=c)


def check(policy: Policy, case: Case) -> Policy:
    """The policy with the boxes of its file.

    Raises UserError unless it was made for this model, grid and f, and the only HR size.
    """
    if case.sizes > 1:
        raise UserError(
            "windows=sta was calibrated for one HR size; leave scales out, or type windows=adaptive"
        )
    if case.f >= 1:
        return policy
    policy = with_file(policy, case.file)
    c = policy.calibration
    pairs = {
        "backbone": (c.backbone, case.backbone),
        "weights": (c.weights, case.weights or c.weights),
        "HR grid": (_word(c.tokens), _word(case.tokens)),
        "brick_high": (_word(c.brick), _word(case.brick)),
        "f": (f"{c.f:.6g}", f"{case.f:.6g}"),
    }
    for name, (calibrated, here) in pairs.items():
        if calibrated != here:
            raise UserError(
                f"windows.file={case.file} was calibrated for {name} {calibrated}, and this run has "
                f"{here}; calibrate again with {HOW} and the knobs of this run"
            )
    return policy


def decide(policy: Policy, case: Case, coverage: Tensor) -> Plan:
    """See the module."""
    boxes = torch.tensor(policy.calibration.boxes)  # (layers, heads, 3)
    return static(policy, case, boxes[:, None], coverage)


def _word(sides: Box) -> str:
    return "x".join(map(str, sides))


def check_prompts(r: "Recipe", prompts: list[str]) -> None:
    """Raises UserError if a run's windows were chosen on one of its own prompts."""
    c = r.windows.calibration
    both = [p for p in dict.fromkeys(prompts) if c is not None and p in set(c.prompts)]
    if both:
        raise UserError(
            f"{len(both)} of the prompts ({both[0]!r}, ...) are those that windows.file was "
            "calibrated on; calibrate on others, e.g. with another prompts.subset_seed"
        )
