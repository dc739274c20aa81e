"""What the scripts share: configs as run.py composes them, result files, markdown, errors in a line."""

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException

from s2flow import methods
from s2flow.backbones.checkpoint import Origin
from s2flow.errors import UserError
from s2flow.process import loading
from s2flow.process.provenance import provenance
from s2flow.recipe.identity import Recipe
from s2flow.recipe.resolve import resolve

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"


def composed(words: Iterable[str]) -> Any:
    """The config of some words of run.py. Raises UserError for words that it would not take."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        try:
            return compose("config", overrides=list(words))
        except HydraException as error:
            line = str(error).splitlines()[0]
            raise UserError(f"{line} Type knobs of python run.py --help") from error


def recipe_of(cfg: Any, weights: str = "") -> Recipe:
    """The recipe of a config; weights: their hash. Raises UserError for what cannot be made."""
    return resolve(cfg, weights, methods.method(cfg.method.name).KNOBS)


def weights_of(cfg: Any) -> str:
    """The hash of the weights that a config names."""
    return loading.weights_hash(cfg.backbone.family, Origin.of(cfg.backbone))


def result(script: str, words: Iterable[str], device: str = "cpu", **more: Any) -> dict[str, Any]:
    """A result with its command, versions, machine and commit; the host's name stays out."""
    known = provenance(device)
    command = " ".join(["python", f"experiments/{script}.py", *words])
    kept = {k: v for k, v in known.items() if k not in ("command", "host")}
    return {"command": command, **kept, **more}


def markdown(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> list[str]:
    """Lines of a markdown table; None is an empty cell."""
    head = list(head)
    lines = [head, *rows]
    text = [["" if c is None else str(c).replace("|", "\\|") for c in line] for line in lines]
    drawn = ["| " + " | ".join(line) + " |" for line in text]
    return [drawn[0], "|---" * len(head) + "|", *drawn[1:]]


def run(main: Callable[[], int | None]) -> None:
    """Exit with the status of main(); a UserError is one line on stderr and status 1."""
    try:
        sys.exit(main())
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")
