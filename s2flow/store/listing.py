"""What `ls` says of each run: how many clips, failures and bytes, what it was and when."""

import contextlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from s2flow.store import index, rows
from s2flow.store.files import entries
from s2flow.store.recipes import label
from s2flow.store.verify import KINDS, OTHERS, run_folders

ASKED = {"_at", "_duplicates", "_video", "_bytes", "variant", "windows"}


def list_runs(runs_dir: Path) -> list[dict[str, Any]]:
    """A dict per run, by id: id, label, clips, failed, duplicates, bytes, last (seconds since 1970).

    clips: those whose record and video are whole. failed: failures of others. duplicates: how often a
    clip was made that was there. last: when a clip was made last. Raises UserError if it is no store.
    """
    return [_of_run(folder) for folder in run_folders(runs_dir)]


def _of_run(folder: Path) -> dict[str, Any]:
    files = {kind: entries(folder / kind) for kind in (".", *KINDS, *OTHERS)}
    table = index.whole(
        folder, index.read(folder, needed=ASKED.__contains__), files["clips"].values()
    )
    made, doubled, stamps = (rows.values_of(table, n) for n in ("_at", "_duplicates", "_stamp"))
    written = (int(s.split()[0]) / 1e9 for s in stamps)  # the first records do not say when
    there = set(rows.values_of(table, "_file"))
    failed = [n for n in files["failures"] if n.endswith(".json") and n[0] != "."]
    return {
        "id": folder.name,
        "label": label(_recipe(folder), **_first(table)),
        "clips": table.num_rows,
        "failed": sum(n[:-5] not in there for n in failed),
        "duplicates": sum(filter(None, doubled)),
        "bytes": sum(_bytes(of.values()) for of in files.values()),
        "last": max((m or w for m, w in zip(made, written, strict=True)), default=None),
    }


def _first(table: Any) -> dict[str, Any]:
    some = table.slice(0, 1)
    return {n: rows.values_of(some, n)[0] for n in ("variant", "windows") if some.num_rows}


def _recipe(folder: Path) -> dict[str, Any]:
    try:
        recipe = json.loads((folder / "recipe.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return recipe if isinstance(recipe, dict) else {}


def _bytes(files: Iterable[os.DirEntry]) -> int:
    """Of all that are no folders; links count as links."""
    total = 0
    for entry in files:
        with contextlib.suppress(OSError):
            if not entry.is_dir(follow_symlinks=False):
                total += entry.stat(follow_symlinks=False).st_size
    return total
