"""Typed parameters of a method: what may be typed as method.<name>=..., and what it means.

A method module may state two things beyond KNOBS and generate:

    Params   a frozen dataclass of its parameters: float, int or Literal[...] fields with defaults;
             __post_init__ refuses values that cannot work; ignored(), if it is there, names the
             parameters that change nothing beside the others' values, and within(t_i), if it is
             there, brings what t_i HR steps cannot tell apart to one value
    OWN      share of the steps that remain at the hand-off by the method's own default, e.g. 15 / 50

`preset` is common to all methods and changes defaults only, so it is in no recipe. Under paper_parity
(Table 1's timings imply it) t_i is where S2Flow hands off; under own it is OWN of the steps, or as
under paper_parity for a method without. A t_i that was typed wins.
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
    """Names of the parameters that a method has of its own."""
    params = getattr(module, "Params", None)
    return () if params is None else tuple(f.name for f in fields(params))


def typed(module: ModuleType, name: str, given: Mapping[str, Any]) -> Any:
    """The Params of method `name` from what was typed; None for a method without parameters.

    Raises UserError for an unknown name, a value of a wrong kind, and what Params refuses.
    """
    preset = given.get("preset", PRESETS[0])
    if preset not in PRESETS:
        raise UserError(
            f"method.preset={preset} is unknown; type one of method.preset={'|'.join(PRESETS)}"
        )
    own = parameters(module)
    for key in given.keys() - {*COMMON, *own}:
        close = difflib.get_close_matches(key, own, 1)
        there = ", ".join(f"method.{n}" for n in ("preset", *own))
        hint = f"type method.{close[0]}=..." if close else f"it has {there}"
        raise UserError(f"method.{key} is no parameter of method={name}; {hint}")
    if not own:
        return None
    kinds = {f.name: f.type for f in fields(module.Params)}
    return module.Params(**{k: _value(k, given[k], kinds[k]) for k in own if k in given})


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
    wanted = "a whole number" if kind is int else "a number"
    raise UserError(f"method.{key}={value} is refused: type {wanted} for method.{key}")


def check_range(name: str, value: float, low: float, high: float = math.inf) -> None:
    """Raises UserError unless low <= value <= high."""
    if not low <= value <= high:
        nearest = low if value < low else high
        span = f"at least {low:g}" if high == math.inf else f"in [{low:g}, {high:g}]"
        raise UserError(f"method.{name}={value:g} is not {span}; type method.{name}={nearest:g}")


def usual_t_i(module: ModuleType, preset: str, steps: int) -> int | None:
    """HR steps by a method's own default; None where the backbone's hand-off decides."""
    own = getattr(module, "OWN", None)
    return None if preset != "own" or own is None else max(round(own * steps), 1)


def within(params: Any, t_i: int) -> Any:
    """The parameters as t_i HR steps see them, so that the same pixels are one run."""
    return params.within(t_i) if hasattr(params, "within") else params


def variant(params: Any, t_i: int) -> str | None:
    """The parameters that are not at their defaults, in words that tell runs apart in tables.

    A default that t_i HR steps cut short is one still.
    """
    words = []
    usual = None if params is None else within(type(params)(), t_i)
    for f in fields(params) if params is not None else ():
        value = getattr(params, f.name)
        if value != getattr(usual, f.name):
            words.append(
                f"{f.name}={value:g}" if isinstance(value, float) else f"{f.name}={value}"
            )
    return " ".join(words) or None
