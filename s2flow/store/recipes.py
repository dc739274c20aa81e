"""Stored recipes: the field names that a record may hold, the run id, and the label of a run.

A stored recipe is a plain dict, the `Recipe.identity()` that decided the pixels of a clip (see
`s2flow.recipe.identity`); nothing here needs torch or a config.
"""

import hashlib
import json
from typing import Any

VERSION = 1  # raise it when the same recipe would give other pixels
# fields that the first records do not have, at the values that those records imply
ADDED_FIELDS = {"dtype": "float32", "fp8": False, "vae_tile": None, "guidance_2": None}
ADDED_FIELDS |= {"rope": "none", "temperature": 1.0, "shift_high": None, "adain": False}
ADDED_FIELDS |= {"stages": [], "params": None}
LOW_FIELDS = ("backbone", "weights", "steps", "shift", "frames", "low", "guidance")
LOW_FIELDS += ("negative_prompt", "dtype", "fp8", "guidance_2")  # what decides the LR flow
# columns of the tables; a test compares them with the fields of Recipe
KNOBS = ("backbone", "weights", "method", "steps", "shift", "low", "guidance", "negative_prompt")
KNOBS += ("t_i", "handoff", "noise", "sparsity", "density", "brick_low", "brick_high")
KNOBS += ("coverage_rows", "attention", "solver", "order", "stencil", "lr_time", "upsample")
KNOBS += ("dtype", "rope", "temperature", "shift_high", "fp8", "vae_tile", "guidance_2", "adain")
KNOBS += ("stages", "params")


def id_of(version: int, identity: dict[str, Any]) -> str:
    """The run id of a stored recipe: ten hexadecimal digits."""
    text = json.dumps([version, identity], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def label(identity: dict[str, Any], windows: str | None = None, variant: str | None = None) -> str:
    """The knobs of a stored recipe in a few words, for tables; `?` for a method that is lost.

    windows, variant: their labels, which the record holds beside the recipe.
    """
    words = [" ".join(filter(None, (identity.get("method") or "?", variant)))]
    windows = windows or (identity.get("windows") or {}).get("name")
    if windows:
        words.append(windows + sparsity_suffix(identity))
    if "solver" in identity:
        words.append(identity["solver"] + order_suffix(identity))
    if "t_i" in identity:
        words.append(f"t_i={identity['t_i']}/{identity.get('steps')}")
        words += [f"then {h}x{w} at {n}" for (h, w), n in identity.get("stages", [])[1:]]
        words += ["adain"] if identity.get("adain") else []
    words += [f"{k}={identity[k]}" for k in ("rope", "temperature", "shift_high") if k in identity]
    return ", ".join(words)


def sparsity_suffix(identity: dict[str, Any]) -> str:
    """` s=0.5`, with ³ where density=per_axis; empty for recipes without a sparsity."""
    cubed = "³" if identity.get("density") == "per_axis" else ""
    return f" s={identity['sparsity']:g}{cubed}" if "sparsity" in identity else ""


def order_suffix(identity: dict[str, Any]) -> str:
    """` K=2`; empty for recipes without an order."""
    return f" K={identity['order']}" if "order" in identity else ""
