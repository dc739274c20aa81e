"""One run's folder, as the runner writes to it."""

import contextlib
import functools
import os
import time
from pathlib import Path
from typing import Any

import pyarrow as pa

from s2flow.errors import UserError
from s2flow.store import index
from s2flow.store.files import (
    json_text,
    names_of,
    read_json,
    remove_dead_temporaries,
    sha256_of,
    write_json,
    written_whole,
)
from s2flow.store.records import Records, read_record
from s2flow.store.scorebook import ScoreBook


class Store:
    """One run's folder. Raises UserError at once if it cannot be written.

    write: False for reading only (cache=read-only); the folder need not exist.
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
            remove_dead_temporaries(self.folder, before=self._promote)
        except OSError as error:
            raise UserError(
                f"runs_dir={self.runs_dir} cannot be written ({error.strerror}); "
                "type runs_dir=some/other/folder"
            ) from None

    def path(self, kind: str, name: str) -> Path:
        """runs/<run_id>/<kind>/<name>."""
        return self.folder / kind / name

    # -- reading -------------------------------------------------------------------------------

    def record(self, key: str) -> dict[str, Any] | None:
        """The record of a finished clip with its scores, or None.

        A truncated record or video counts as missing.
        """
        record = read_record(self.path("records", f"{key}.json"))
        if record is None:
            return None
        video = self.folder / record["video"]
        complete = video.exists() and video.stat().st_size == record["bytes"]
        return self.book.joined(record) if complete else None

    def recorded(self) -> dict[str, dict[str, Any]]:
        """The fields of the finished clips that a scorer needs, by key.

        prompt, original_prompt, seed, video, sha256, outcome, and the valid `verdicts` (store/rows.py),
        of the clips that `record` would return, read for all of them at once.
        """
        return index.of_clips(self._finished())

    def tally(self, keys: list[str]) -> dict[str, Any]:
        """How many of these clips are finished, and the means over them; see `index.tally`."""
        return index.tally(self._finished(), keys)

    def _finished(self) -> pa.Table:
        """The rows of `index.finished`, read again only if a file may have been added or removed.

        A file that is altered in place is noticed by the next job.
        """
        now = index.state(self.folder)
        if now is None or now != self._as_of:
            self._as_of, self._rows = now, index.finished(self.folder, self.writes)
        return self._rows

    def records(self, keys: list[str]) -> Records:
        """The records of those of these clips that are finished, read when they are accessed."""
        return Records(self.folder, functools.partial(_among, self, keys))

    def matches(self, key: str) -> bool:
        """Whether record and video belong together: two workers may have finished at once."""
        record = read_record(self.path("records", f"{key}.json"))
        try:
            return record is not None and _is_of(record, self.folder)
        except OSError:
            return False

    def failed(self) -> set[str]:
        """The keys of clips with a stored failure."""
        return {n[:-5] for n in names_of(self.folder / "failures", ".json")}

    def failure(self, key: str) -> dict[str, Any] | None:
        """The failure of a clip, or None."""
        return read_json(self.path("failures", f"{key}.json"))

    # -- writing --------------------------------------------------------------------------------

    def commit(
        self,
        key: str,
        record: dict[str, Any],
        files: contextlib.ExitStack | None = None,
        replaces: float | None = None,
    ) -> None:
        """Write the record: from then on the clip is finished.

        files: open `written_whole` blocks of the clip, closed just before the record is written.
        replaces: `at` of the record that was to be made again; any other record that exists by now is
        counted as a duplicate.
        """
        existing = self.record(key)
        if existing is not None and existing.get("at") != replaces:
            record = record | {"duplicates": 1 + existing.get("duplicates", 0)}
        text = json_text(record)
        with written_whole(self.path("records", f"{key}.json")) as temporary:
            temporary.write_text(text, encoding="utf-8")
            if files is not None:
                files.close()
        self.path("failures", f"{key}.json").unlink(missing_ok=True)

    def fail(self, key: str, record: dict[str, Any]) -> None:
        """Store the traceback of a failed clip, the number of tries, and their times (`tried_at`)."""
        before = self.failure(key) or {}
        tried = {"tries": before.get("tries", 0) + 1}
        tried["tried_at"] = [*before.get("tried_at", []), round(time.time(), 3)][-20:]
        write_json(self.path("failures", f"{key}.json"), record | tried)

    def _promote(self, path: Path) -> None:
        """Commit a record whose writer was killed after it had written the video."""
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
    """Whether a record has the hash of the video on disk."""
    return sha256_of(folder / record["video"]) == record.get("sha256")
