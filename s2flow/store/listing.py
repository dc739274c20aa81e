"""What `ls` prints of each run: clips, failures, bytes, what it was and when it was made."""

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from s2flow.store import index, rows
from s2flow.store.files import entries, read_json
from s2flow.store.recipes import label
from s2flow.store.verify import KINDS, OTHERS, run_folders

COLUMNS = {"_at", "_duplicates", "_video", "_bytes", "variant", "windows"}  # read of the index


def list_runs(runs_dir: Path) -> list[dict[str, Any]]:
    """A dict per run, by id: id, label, clips, failed, duplicates, bytes, last (Unix time).

    clips: those whose record and video are complete; failed: failures of other clips; duplicates: how
    often a finished clip was made again; last: when the newest clip was made. Raises UserError if
    runs_dir is no store.
    """
    return [_of_run(folder) for folder in run_folders(runs_dir)]


def _of_run(folder: Path) -> dict[str, Any]:
    files = {kind: entries(folder / kind) for kind in (".", *KINDS, *OTHERS)}
    table = index.read(folder, needed=COLUMNS.__contains__)
    table = index.with_video(folder, table, files["clips"].values())
    made, doubled, stamps = (rows.values_of(table, n) for n in ("_at", "_duplicates", "_stamp"))
    written = (int(s.split()[0]) / 1e9 for s in stamps)  # the first records have no `at`
    finished, first = set(rows.values_of(table, "_file")), table.slice(0, 1)
    beside = {n: v for n in ("variant", "windows") for v in rows.values_of(first, n)}
    failed = [n for n in files["failures"] if n.endswith(".json") and n[0] != "."]
    return {
        "id": folder.name,
        "label": label(read_json(folder / "recipe.json") or {}, **beside),
        "clips": table.num_rows,
        "failed": sum(n[:-5] not in finished for n in failed),
        "duplicates": sum(filter(None, doubled)),
        "bytes": sum(_bytes(of.values()) for of in files.values()),
        "last": max((m or w for m, w in zip(made, written, strict=True)), default=None),
    }


def _bytes(files: Iterable[os.DirEntry]) -> int:
    """Of all that are no folders; links count as links."""
    total = 0
    for entry in files:
        with contextlib.suppress(OSError):
            if not entry.is_dir(follow_symlinks=False):
                total += entry.stat(follow_symlinks=False).st_size
    return total
