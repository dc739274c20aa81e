"""What a table still lacks, and the command that makes it: clips that exist are not made again."""

import shlex
from collections.abc import Mapping
from typing import Any

KNOBS = ("sparsity", "windows", "density", "solver", "order", "t_i", "handoff", "noise")
USUAL = {"sparsity": 0.5, "windows": "adaptive", "density": "volume", "solver": "lri", "order": 2}
USUAL |= {"handoff": "x0", "noise": "fresh"}  # what run.py takes where nothing is typed


def missing_rows(rows: list[dict[str, Any]], wanted: int) -> list[str]:
    """The rows with fewer finished clips than asked for, in words."""
    found = []
    for row in rows:
        done = int(row["clips"].split()[0]) if row["clips"] else 0
        if done < wanted:
            found.append(f"{row['setting']} ({done} of {wanted} clips)")
    return found


def command(
    name: str,
    group: Mapping[str, Any],
    held: Mapping[str, Any],
    varied: tuple[str, ...],
    asked: tuple[int, int],
    embedded: bool,
) -> str:
    """The experiment as this table has it; asked: prompts, seeds.

    t_i is always said, since its default follows the backbone; of Table 4 the paper's fractions.
    """
    words = [f"experiment={name}"]
    prompts, seeds = asked
    if embedded:
        words += [f"prompts.count={prompts}"]
    else:
        words += ["prompts=vbench", "prompts.subset=half"]
    words += [f"seeds={seeds}"] if seeds > 1 else []
    words += [f"backbone={group['backbone']}"] if group["backbone"] != "micro" else []
    steps = group["steps"]
    if name == "table4":
        words.append("t_i=" + ",".join(str(round(steps * f)) for f in (0.8, 0.6, 0.4, 0.2)))
    for knob in KNOBS:
        value = held.get(knob)
        if knob not in varied and value is not None and value != USUAL.get(knob):
            words.append(f"{knob}={value}")
    words += [f"steps={steps}", f"high=[{group['height']},{group['width']}]"]
    words.append(f"frames={group['frames']}")
    return "python run.py " + " ".join(map(shlex.quote, words))
