"""Typed parameters of a method: what method.<name>=... accepts, and what it means.

A method module may define two things beyond KNOBS and generate:

    Params             frozen dataclass of its parameters: float, int or Literal[...] fields with
                       defaults; __post_init__ refuses invalid values. Optional: ignored(), names of
                       parameters without effect at the others' values; within(t_i), one of all
                       values that t_i HR steps cannot distinguish
    DEFAULT_T_I_SHARE  the method's own default of t_i, as a share of the steps, e.g. 15 / 50

`preset` is common to all methods. It changes defaults only, so it is not part of the recipe.
preset=paper_parity (implied by Table 1's timings): t_i is where S2Flow hands off. preset=own: t_i is
DEFAULT_T_I_SHARE of the steps; a method without one does as under paper_parity. An explicit t_i wins.
"""

import difflib
import math
from collections.abc import Mapping
from dataclasses import fields
from types import ModuleType
from typing import Any, Literal, get_args, get_origin

from s2flow.errors import UserError

PRESETS = ("paper_parity", "own")
COMMON = ("name", "preset")


def parameters(module: ModuleType) -> tuple[str, ...]:
    """Names of the method's own parameters."""
    params = getattr(module, "Params", None)
    return () if params is None else tuple(f.name for f in fields(params))


def typed(module: ModuleType, name: str, given: Mapping[str, Any]) -> Any:
    """The Params of method `name` from the config; None for a method without parameters.

    Raises UserError for an unknown name, a value of the wrong type, and what Params refuses.
    """
    preset = given.get("preset", PRESETS[0])
    if preset not in PRESETS:
        raise UserError(
            f"method.preset={preset} is unknown; type one of method.preset={'|'.join(PRESETS)}"
        )
    known = parameters(module)
    for key in given.keys() - {*COMMON, *known}:
        close = difflib.get_close_matches(key, known, 1)
        choices = ", ".join(f"method.{n}" for n in ("preset", *known))
        hint = f"type method.{close[0]}=..." if close else f"it has {choices}"
        raise UserError(f"method.{key} is no parameter of method={name}; {hint}")
    if not known:
        return None
    kinds = {f.name: f.type for f in fields(module.Params)}
    return module.Params(**{k: _value(k, given[k], kinds[k]) for k in known if k in given})


def _value(key: str, value: Any, kind: Any) -> Any:
    """A value as its field's type, so that 1 and 1.0 are one run."""
    if get_origin(kind) is Literal:
        if value in get_args(kind):
            return value
        choices = "|".join(get_args(kind))
        raise UserError(f"method.{key}={value} is unknown; type one of method.{key}={choices}")
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if number and math.isfinite(value) and (kind is float or value == int(value)):
        return kind(value)
    expected = "a whole number" if kind is int else "a number"
    raise UserError(f"method.{key}={value} is refused: type {expected} for method.{key}")


def check_range(name: str, value: float, low: float, high: float = math.inf) -> None:
    """Raises UserError unless low <= value <= high."""
    if not low <= value <= high:
        nearest = low if value < low else high
        span = f"at least {low:g}" if high == math.inf else f"in [{low:g}, {high:g}]"
        raise UserError(f"method.{name}={value:g} is not {span}; type method.{name}={nearest:g}")


def usual_t_i(module: ModuleType, preset: str, steps: int) -> int | None:
    """HR steps by the method's own default; None where the backbone's hand-off level decides."""
    share = getattr(module, "DEFAULT_T_I_SHARE", None)
    return None if preset != "own" or share is None else max(round(share * steps), 1)


def within(params: Any, t_i: int) -> Any:
    """The parameters reduced by `Params.within(t_i)`, so that the same pixels are one run."""
    return params.within(t_i) if hasattr(params, "within") else params


def variant(params: Any, t_i: int) -> str | None:
    """The parameters that are not at their defaults (`within(t_i)`), as text for tables."""
    if params is None:
        return None
    defaults = within(type(params)(), t_i)
    values = {f.name: getattr(params, f.name) for f in fields(params)}
    changed = {k: v for k, v in values.items() if v != getattr(defaults, k)}
    words = (f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in changed.items())
    return " ".join(words) or None
