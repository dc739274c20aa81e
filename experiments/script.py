"""What the scripts share: result files with their provenance, markdown, errors in one line."""

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from s2flow.errors import UserError
from s2flow.process.provenance import provenance

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"


def write_result(path: Path, data: dict[str, Any]) -> None:
    """Write JSON to a temporary name, then rename it; the folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    part.replace(path)


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
