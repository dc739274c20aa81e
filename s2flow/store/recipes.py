"""Stored recipes: their fields, the run id, and the label of a run.

A stored recipe is a plain dict, the `Recipe.identity()` that decided the pixels of a clip (see
`s2flow.recipe.identity`); nothing here needs torch or a config.
"""

import hashlib
import json
from dataclasses import MISSING, dataclass, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from s2flow.grid import Box
    from s2flow.policies.base import Policy

VERSION = 1  # raise it when the same recipe would give other pixels


@dataclass(frozen=True)
class Fields:
    """What decides pixels, resolved, without open defaults. Sizes are (height, width) in pixels.

    They stand here so that tables of the store have a column each; `Recipe` adds what they mean. A
    field with a default was added later: it is left out of identities at that value, so that no run id
    changes.
    """

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
    windows: "Policy"
    brick_low: "Box"
    brick_high: "Box"
    coverage_rows: int
    attention: str
    solver: str
    order: int
    stencil: str
    lr_time: str
    upsample: str
    dtype: str = "float32"  # of the model; the flow's state is always float32
    rope: str = "none"  # position scaling of the HR stage
    temperature: float = 1.0  # factor on the HR stage's attention logits
    shift_high: float | None = None  # of the HR noise grid; None: as shift
    fp8: bool = False  # weights of the transformer stored as float8_e4m3fn
    vae_tile: tuple[int, int] | None = None  # (side, stride) in pixels of the autoencoder's tiles
    guidance_2: float | None = None  # of the second expert of a model that has two
    adain: bool = False  # the hand-off keeps the LR mean and deviation
    stages: tuple = ()  # ((height, width), steps left) of every HR stage, if there are several
    pipeline: Any = None  # state of a loaded pipeline that alters the clip (backbones.inspect)
    scheduler: Any = None  # of the pipeline, with its options, where it takes the steps itself
    input: str | None = None  # hash of the clip that takes the place of the LR flow's
    params: Any = None  # the method's own Params; None for methods without


LOW_FIELDS = ("backbone", "weights", "steps", "shift", "frames", "low", "guidance")
LATER_LOW_FIELDS = ("pipeline", "input")
LOW_FIELDS += ("negative_prompt", "dtype", "fp8", "guidance_2", *LATER_LOW_FIELDS)  # of an LR flow
KNOBS = tuple(f.name for f in fields(Fields) if f.name not in ("frames", "high", "windows"))
ADDED_FIELDS = {  # as they are stored
    f.name: list(f.default) if isinstance(f.default, tuple) else f.default
    for f in fields(Fields)
    if f.default is not MISSING
}


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
