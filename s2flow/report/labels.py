"""Labels of runs: the knobs in which they differ."""

import json
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

from s2flow.report.reading import Run
from s2flow.store.recipes import order_suffix, sparsity_suffix


def labels(runs: list[Run]) -> dict[str, str]:
    """Run id -> the knobs in which these runs differ; the id distinguishes equal ones."""
    words = {run.id: _words(run) for run in runs}
    differ = differing(words.values())
    named = {
        i: ", ".join(text for k, text in w.items() if k in differ) or w["method"]
        for i, w in words.items()
    }
    count = Counter(named.values())
    return {i: f"{text} ({i})" if count[text] > 1 else text for i, text in named.items()}


def _words(run: Run) -> dict[str, str]:
    """A run's knobs as texts; windows and sparsity are one of them, solver and order another."""
    recipe = dict(run.recipe)
    words = {"method": str(recipe.pop("method", run.id))}
    if windows := next((r.get("windows") for r in run.records.values()), None):
        words["windows"] = windows + sparsity_suffix(recipe)
    if "solver" in recipe:
        words["solver"] = recipe["solver"] + order_suffix(recipe)
    merged = ("sparsity", "density", "solver", "order")
    rest = {k: v for k, v in recipe.items() if k not in merged and not k.startswith("windows.")}
    return words | {k: f"{k}={text_of(v)}" for k, v in rest.items()}


def differing(knobs: Iterable[dict[str, Any]]) -> set[str]:
    """The keys that have more than one value among those that have them."""
    values = {(k, str(v)) for some in knobs for k, v in some.items()}
    return {k for k, count in Counter(k for k, _ in values).items() if count > 1}


def text_of(value: Any) -> str:
    """A knob's value; [64, 96] is 64x96, fractions in lists have three places."""
    if isinstance(value, list) and value and all(isinstance(x, int) for x in value):
        return "x".join(map(str, value))
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return re.sub(r"(\.\d{3})\d+", r"\1", text) if isinstance(value, list) else text


def natural(text: str) -> list[Any]:
    """A sort key that puts t_i=8 before t_i=12."""
    parts = re.split(r"(\d+(?:\.\d+)?)", text)
    return [float(p) if i % 2 else p for i, p in enumerate(parts)]
