"""One run's folder, as the runner writes to it."""

import contextlib
import functools
import json
import os
import time
from pathlib import Path
from typing import Any

import pyarrow as pa

from s2flow.errors import UserError
from s2flow.store import index
from s2flow.store.files import (
    entries,
    json_text,
    remove_temporaries_of_the_dead,
    sha256_of,
    write_json,
    written_whole,
)
from s2flow.store.records import Records, read_record
from s2flow.store.scorebook import ScoreBook


class Store:
    """One run's folder. Raises UserError at once if it cannot be written.

    write: False only looks (cache=read-only); the folder need not be there.
    """

    def __init__(
        self, runs_dir: str | Path, run_id: str, recipe: dict[str, Any], write: bool = True
    ) -> None:
        self.runs_dir, self.run_id = Path(runs_dir), run_id
        self.folder, self.writes = self.runs_dir / run_id, write
        if write:
            self._open(recipe)
        self.book = ScoreBook(self.folder, slim=True)
        self._as_of, self._rows = None, None  # of _finished

    def _open(self, recipe: dict[str, Any]) -> None:
        try:
            for name in ("clips", "sheets", "records"):
                (self.folder / name).mkdir(parents=True, exist_ok=True)
            write_json(self.folder / "recipe.json", recipe)
            remove_temporaries_of_the_dead(self.folder, first=self._promote)
        except OSError as error:
            raise UserError(
                f"runs_dir={self.runs_dir} cannot be written ({error.strerror}); "
                "type runs_dir=some/other/folder"
            ) from None

    def path(self, kind: str, name: str) -> Path:
        """runs/<run_id>/<kind>/<name>."""
        return self.folder / kind / name

    # -- what there is ------------------------------------------------------------------------

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

    def recorded(self) -> dict[str, dict[str, Any]]:
        """What a scorer asks of the finished clips, by key: all those that `record` would give.

        For many clips at once; a moment old when it returns. prompt, original_prompt, seed, video,
        sha256, outcome, and `verdicts`: the verdicts that count, see store/rows.py.
        """
        return index.of_clips(self._finished())

    def tally(self, keys: list[str]) -> dict[str, Any]:
        """How many of these clips are finished, and the means over them; see `index.tally`."""
        return index.tally(self._finished(), keys)

    def _finished(self) -> pa.Table:
        """The rows of `index.finished`, read again only if anything may have come or gone since.

        What is altered in its place is seen by the next job.
        """
        now = index.state(self.folder)
        if now is None or now != self._as_of:
            self._as_of, self._rows = now, index.finished(self.folder, self.writes)
        return self._rows

    def records(self, keys: list[str]) -> Records:
        """The records of those of these clips that are finished, read when they are asked for."""
        return Records(self.folder, functools.partial(_among, self, keys))

    def matches(self, key: str) -> bool:
        """Whether record and video are of one making: two workers may have finished at once."""
        record = read_record(self.path("records", f"{key}.json"))
        try:
            return record is not None and _is_of(record, self.folder)
        except OSError:
            return False

    def failed(self) -> set[str]:
        """The keys of clips of which a failure is kept."""
        names = entries(self.folder / "failures")
        return {n[:-5] for n in names if n.endswith(".json") and not n.startswith(".")}

    def failure(self, key: str) -> dict[str, Any] | None:
        """What is kept of a clip that failed, or None."""
        try:
            found = json.loads(self.path("failures", f"{key}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    # -- what is added ------------------------------------------------------------------------

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
        text = json_text(record)
        with written_whole(self.path("records", f"{key}.json")) as temporary:
            temporary.write_text(text, encoding="utf-8")
            if files is not None:
                files.close()
        self.path("failures", f"{key}.json").unlink(missing_ok=True)

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


def _among(store: Store, keys: list[str]) -> list[str]:
    finished = store.recorded()
    return [key for key in keys if key in finished]


def _is_of(record: dict[str, Any], folder: Path) -> bool:
    """Whether a record names the bytes of the video that is there."""
    return sha256_of(folder / record["video"]) == record.get("sha256")
