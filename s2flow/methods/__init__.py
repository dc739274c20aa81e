"""The compared methods, one file per row of Table 1. Each defines

    KNOBS     names of the recipe's fields that this method reads, beyond those that all methods read
    generate(run: Cascade) -> Generated

and optionally Params and DEFAULT_T_I_SHARE (`params.py`). A new method is one such file and
`conf/method/<name>.yaml`, which lists the parameters with their defaults.

Not implemented: Jenga's bias on text attention and its skipped steps (its progressive resolution is
`cascade` with `scales` and `handoff=latent`); FreeSwim's second path (its window is `windows=inward`).
"""

import importlib
import pkgutil
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING

from s2flow.errors import UserError
from s2flow.methods.params import COMMON, parameters

if TYPE_CHECKING:
    from s2flow.backbones.base import Backbone
    from s2flow.cascade import Generated
    from s2flow.recipe.identity import Recipe

RESTART_KNOBS = ("low", "t_i", "rope", "temperature", "shift_high")
CASCADE_KNOBS = (*RESTART_KNOBS, "handoff", "noise", "adain", "stages")


def method(name: str) -> ModuleType:
    """The module of a method by name; raises UserError with the names that exist."""
    if name not in names():
        raise UserError(f"method={name} is unknown; type one of method={'|'.join(names())}")
    return importlib.import_module(f"{__name__}.{name}")


def names() -> list[str]:
    """All methods."""
    return sorted({m.name for m in pkgutil.iter_modules(__path__)} - {"filters", "params"})


def by_parameter() -> dict[str, list[str]]:
    """Every parameter of any method, with the methods that have it."""
    owners: dict[str, list[str]] = {name: [] for name in COMMON}
    for name in names():
        for parameter in parameters(method(name)):
            owners.setdefault(parameter, []).append(name)
    return owners


def generate(
    backbone: "Backbone", recipe: "Recipe", prompts: Sequence[str], seeds: Sequence[int], **options
) -> "Generated":
    """One batch of clips by the recipe's method, for `run.py` and `s2flow.generate` alike.

    options: `clock`, `cache`, `progress`, `on_low`, `on_step` of `Cascade`. The latent may hold NaN.
    """
    from s2flow.cascade import Cascade  # loads torch, which labels and --help do without

    return method(recipe.method).generate(Cascade(backbone, recipe, prompts, seeds, **options))


def check(backbone: "Backbone", recipe: "Recipe") -> None:
    """Raises UserError for a layer that the backbone lacks, or attention that cannot be used here."""
    if "windows" in recipe.knobs and recipe.attention != "auto":
        from s2flow.cascade import attention_of

        attention_of(backbone, recipe, recipe.high)
    layers = backbone.router.layers
    for layer in recipe.windows.dense_layers:
        if not 0 <= layer < layers:
            raise UserError(
                f"windows.dense_layers holds {layer}; {backbone.name} has layers 0..{layers - 1}"
            )
