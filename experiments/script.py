"""What the scripts share: result files with their provenance, markdown, errors in one line."""

import json
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from s2flow.errors import UserError
from s2flow.process.provenance import provenance
from s2flow.store import written_whole

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"


def write_result(path: Path, data: dict[str, Any]) -> None:
    """Write JSON, whole or not at all; the folder is made."""
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def result(script: str, words: Iterable[str], device: str = "cpu", **more: Any) -> dict[str, Any]:
    """A result with its command, versions, machine and commit; the host's name stays out."""
    kept = {k: v for k, v in provenance(device).items() if k not in ("command", "host")}
    return {"command": " ".join(["python", f"experiments/{script}.py", *words]), **kept, **more}


def markdown(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> list[str]:
    """Lines of a markdown table; None is an empty cell."""
    text = [["" if c is None else str(c).replace("|", "\\|") for c in r] for r in (head, *rows)]
    drawn = ["| " + " | ".join(line) + " |" for line in text]
    return [drawn[0], "|---" * len(text[0]) + "|", *drawn[1:]]


def load() -> list[float]:
    """The machine's load: others on it cost time."""
    return [round(x, 2) for x in os.getloadavg()]


def run(main: Callable[[], int | None]) -> None:
    """Exit with the status of main(); a UserError is one line on stderr and status 1."""
    try:
        sys.exit(main())
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")
