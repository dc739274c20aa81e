"""The store: runs/<run_id>/ holds a recipe, clips, contact sheets and one record per clip.

    runs/<run_id>/recipe.json              what was run
                  clips/<key>.mp4          the video;  <key>.low.mp4 the LR one
                  sheets/<key>.png         LR and HR frames side by side
                  latents/<key>.safetensors  the final latent, with keep_latents=true
                  windows/<key>.npz        its windows, where they are boxes; see windowmap.py
                  records/<key>.json       written last: a clip is done when its record exists
                  scores/*.jsonl           what scorers said of it, see scorebook.py
                  failures/<key>.json      a clip that failed: traceback, how often it was tried, when

The key is a hash of prompt text and seed. Every file is written to a temporary name and renamed,
so a kill at any moment costs at most the clip in flight, and any number of workers may share a
folder. All files of a clip are whole before the first takes its place, and the record is the last: a
kill in between leaves a record that the next start puts in its place if it names the video there.
"""

import contextlib
import hashlib
import json
import math
import os
import socket
import time
import uuid
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pandas as pd

from s2flow.errors import UserError
from s2flow.recipe import Recipe
from s2flow.scorebook import ScoreBook

STAGES = ("text", "lr", "plan", "handoff", "hr", "decode")  # from prompt to decoded video


def clip_key(prompt: str, seed: int, original: str | None = None) -> str:
    """Sixteen hexadecimal digits of (prompt, seed): the clip's name within its run.

    original: the entry that an augmented prompt stands for. It decides no pixel, but what the clip
    is scored with, so that two entries with one augmented prompt are two clips.
    """
    entry = "" if original in (None, prompt) else f"\0{original}"
    return hashlib.sha256(f"{seed}\0{prompt}{entry}".encode()).hexdigest()[:16]


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A temporary path that becomes `path` if the block succeeds and vanishes if it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unique = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    temporary = path.with_name(f".tmp-{unique}-{path.name}")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write JSON whole or not at all; NaN is refused."""
    text = _json(value)
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def without_nan(value: Any) -> Any:
    """The same nest of dicts and lists with None for every NaN and infinity, which JSON lacks."""
    if isinstance(value, dict):
        return {k: without_nan(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def sha256_of(path: Path) -> str:
    """Hash of a file's content."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Store:
    """One run's folder. Raises UserError at once if it cannot be written.

    write: False only looks (cache=read-only); the folder need not be there.
    """

    def __init__(
        self, runs_dir: str | Path, run_id: str, recipe: dict[str, Any], write: bool = True
    ) -> None:
        self.runs_dir, self.run_id = Path(runs_dir), run_id
        self.folder = self.runs_dir / run_id
        if write:
            self._open(recipe)
        self.book = ScoreBook(self.folder)

    def _open(self, recipe: dict[str, Any]) -> None:
        try:
            for name in ("clips", "sheets", "records"):
                (self.folder / name).mkdir(parents=True, exist_ok=True)
            write_json(self.folder / "recipe.json", recipe)
        except OSError as error:
            raise UserError(
                f"runs_dir={self.runs_dir} cannot be written ({error.strerror}); "
                "type runs_dir=some/other/folder"
            ) from None
        for path in temporaries_of_the_dead(self.folder):
            with contextlib.suppress(OSError):
                self._promote(path)
            path.unlink(missing_ok=True)

    def path(self, kind: str, name: str) -> Path:
        """runs/<run_id>/<kind>/<name>."""
        return self.folder / kind / name

    def record(self, key: str) -> dict[str, Any] | None:
        """The record of a finished clip with its scores, or None.

        A truncated record or video counts as none.
        """
        record = read_record(self.path("records", f"{key}.json"))
        if record is None:
            return None
        video = self.folder / record["video"]
        complete = video.exists() and video.stat().st_size == record["bytes"]
        return self.book.joined(record) if complete else None

    def commit(
        self,
        key: str,
        record: dict[str, Any],
        files: contextlib.ExitStack | None = None,
        replaces: float | None = None,
    ) -> None:
        """Write the record: from here on the clip is done.

        files: `written_whole` blocks of the clip, which take their places just before the record.
        replaces: `at` of the record that was to be made again; any other one that is there by now is
        a duplicate, and is counted.
        """
        there = self.record(key)
        if there is not None and there.get("at") != replaces:
            record = record | {"duplicates": 1 + there.get("duplicates", 0)}
        text = _json(record)
        with written_whole(self.path("records", f"{key}.json")) as temporary:
            temporary.write_text(text, encoding="utf-8")
            if files is not None:
                files.close()
        self.path("failures", f"{key}.json").unlink(missing_ok=True)

    def matches(self, key: str) -> bool:
        """Whether record and video are of one making: two workers may have finished at once."""
        record = read_record(self.path("records", f"{key}.json"))
        try:
            return record is not None and _is_of(record, self.folder)
        except OSError:
            return False

    def failure(self, key: str) -> dict[str, Any] | None:
        """What is kept of a clip that failed, or None."""
        try:
            found = json.loads(self.path("failures", f"{key}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def fail(self, key: str, record: dict[str, Any]) -> None:
        """Keep the traceback of a clip that failed, how often it was tried, and when (`tried_at`)."""
        before = self.failure(key) or {}
        tried = {"tries": before.get("tries", 0) + 1}
        tried["tried_at"] = [*before.get("tried_at", []), round(time.time(), 3)][-20:]
        write_json(self.path("failures", f"{key}.json"), record | tried)

    def _promote(self, path: Path) -> None:
        """Put a record in its place whose video is there and whose writer was killed in between."""
        record = read_record(path) if path.parent.name == "records" else None
        if record is None or not _is_of(record, self.folder):
            return
        key = Path(record["video"]).stem
        if not self.matches(key):
            os.replace(path, self.path("records", f"{key}.json"))


def temporaries_of_the_dead(folder: Path) -> list[Path]:
    """What `written_whole` left below a folder in processes of this machine that are no more."""
    prefix = f".tmp-{socket.gethostname()}-"
    pids = {path: path.name[len(prefix) :].split("-")[0] for path in folder.rglob(f"{prefix}*")}
    return [p for p, pid in pids.items() if pid.isdigit() and not Path(f"/proc/{pid}").exists()]


def _is_of(record: dict[str, Any], folder: Path) -> bool:
    """Whether a record names the bytes of the video that is there."""
    return sha256_of(folder / record["video"]) == record.get("sha256")


def read_record(path: Path) -> dict[str, Any] | None:
    """A record that is whole, or None; its scores are in the score book."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    whole = isinstance(record, dict) and record.get("status") == "ok" and "bytes" in record
    return record if whole else None


def read_run(folder: Path) -> list[dict[str, Any]]:
    """The records of a run's finished clips with their scores, by name."""
    records = map(read_record, sorted((folder / "records").glob("[!.]*.json")))  # no temporaries
    book = ScoreBook(folder)
    return [book.joined(record) for record in records if record is not None]


def load_records(runs_dir: str | Path) -> pd.DataFrame:
    """One row per finished clip of every run below `runs_dir`; empty if there is none."""
    folders = sorted(p.parent for p in Path(runs_dir).glob("*/records"))
    return pd.DataFrame([_row(record) for folder in folders for record in read_run(folder)])


def generation_seconds(record: dict[str, Any]) -> float:
    """Seconds from prompt to decoded video; writing, scoring and diagnostics are not in it.

    The LR flow counts in full, also where a sweep reused it: it is part of what a clip costs.
    """
    return sum(record["seconds"].get(stage, 0.0) for stage in STAGES)


def _row(record: dict[str, Any]) -> dict[str, Any]:
    recipe, density = record["recipe"], record.get("density") or {}
    simple = (
        "run_id",
        "prompt",
        "original_prompt",
        "seed",
        "status",
        "height",
        "width",
        "frames",
        "device",
        "commit",
    )
    row: dict[str, Any] = {name: record.get(name) for name in simple}
    elsewhere = {"windows", "high", "knobs", *row}
    knobs = [f.name for f in fields(Recipe) if f.name not in elsewhere]
    row |= {name: _cell(recipe.get(name)) for name in knobs}
    fidelity = (record.get("scorers") or {}).get("fidelity", {})
    row["fidelity_reference"] = fidelity.get("arguments", {}).get("reference")
    others = ("windows", "variant", "outcome", "low_flow_reused")
    row |= {name: record.get(name) for name in others}
    row["metrics"] = " ".join(
        f"{name}:{how['metric']}"
        for name, how in sorted((record.get("scorers") or {}).items())
        if how.get("metric") and not name.startswith("fidelity")  # whose reference is a column
    )
    row["realised_density"] = sum(density.values()) / len(density) if density else None
    row["seconds_total"] = generation_seconds(record)
    row |= {f"seconds_{k}": v for k, v in record["seconds"].items()}
    return row | {f"score_{k}": v for k, v in record["scores"].items()}


def _cell(value: Any) -> Any:
    """A knob as one cell: sizes and bricks as "32x48", parameters of a method as "alpha=1.0"."""
    if isinstance(value, dict):
        return " ".join(f"{k}={v}" for k, v in value.items())
    return "x".join(map(str, value)) if isinstance(value, list) else value
