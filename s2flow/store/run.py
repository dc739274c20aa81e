"""One run's folder, as the runner writes to it."""

import contextlib
import functools
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import pyarrow as pa

from s2flow.errors import UserError
from s2flow.store import index, rows
from s2flow.store.files import read_json, remove_dead_temporaries, sha256_of, write_json
from s2flow.store.records import read_record
from s2flow.store.scorebook import ScoreBook

CLIP_COLUMNS = ("prompt", "original_prompt", "seed", "outcome", "_video", "_sha256", "_verdicts")
MEANS = {"f": "realised_density", "lr": "seconds_lr", "hr": "seconds_hr", "all": "seconds_total"}
verdicts_in = functools.lru_cache(json.loads)  # of a cell; many rows may share the list


class Store:
    """One run's folder. Raises UserError at once if it cannot be written.

    write: False for reading only (cache=read-only); the folder need not exist.
    """

    def __init__(
        self, runs_dir: str | Path, run_id: str, recipe: dict[str, Any], write: bool = True
    ) -> None:
        self.runs_dir, self.run_id = Path(runs_dir), run_id
        self.folder, self.writes = self.runs_dir / run_id, write
        try:
            for name in ("clips", "sheets", "records") if write else ():
                (self.folder / name).mkdir(parents=True, exist_ok=True)
            if write:
                write_json(self.folder / "recipe.json", recipe)
                remove_dead_temporaries(self.folder, before=self._promote)
        except OSError as error:
            raise UserError(
                f"runs_dir={self.runs_dir} cannot be written ({error.strerror}); "
                "type runs_dir=some/other/folder"
            ) from None
        self.book = ScoreBook(self.folder, slim=True)

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
        """The fields of the finished clips that a scorer needs, by key; read for all at once.

        prompt, original_prompt, seed, video, sha256, outcome, and the valid `verdicts` (rows.py).
        """
        table = self._finished()
        names = ("_file", *CLIP_COLUMNS) if table.num_rows else ()
        clips = table.select(names).rename_columns([n.removeprefix("_") for n in names])
        return {
            clip.pop("file"): clip | {"verdicts": verdicts_in(clip["verdicts"])}
            for clip in clips.to_pylist()
        }

    def tally(self, keys: list[str]) -> dict[str, Any]:
        """How many of these clips are finished, and means over them; None where none has the value.

        {"clips", "duplicates", "f": realised density, "lr", "hr", "all": seconds,
        "scores": {name: mean}, "video": of the only one, "nan": how many hold NaN}.
        """
        table, wanted = self._finished(), set(keys)
        kept = [n in wanted for n in rows.values_of(table, "_file")]
        table = table.filter(pa.array(kept, pa.bool_()))

        def mean(name: str) -> float | None:
            known = [v for v in rows.values_of(table, name) if v is not None]
            return fmean(known) if known else None

        scores = [n for n in table.column_names if n.startswith("score_") and table.num_rows]
        videos = rows.values_of(table, "_video")
        return {
            "clips": len(videos),
            "video": videos[0] if len(videos) == 1 else None,
            **{name: mean(column) for name, column in MEANS.items()},
            "scores": {name.removeprefix("score_"): mean(name) for name in scores},
            "nan": rows.values_of(table, "outcome").count("nan"),
            "duplicates": sum(filter(None, rows.values_of(table, "_duplicates"))),
        }

    def _finished(self) -> pa.Table:
        """The rows whose record and video exist, with the columns of `recorded` and `tally`."""
        needed = {*CLIP_COLUMNS, *MEANS.values(), "_bytes", "_duplicates"}
        table = index.read(
            self.folder, self.writes, lambda n: n in needed or n.startswith("score_")
        )
        return index.with_video(self.folder, table)

    def records(self, keys: list[str]) -> "Records":
        """The records of those of these clips that are finished."""
        return Records(self, keys)

    def matches(self, key: str) -> bool:
        """Whether record and video belong together: two workers may have finished at once."""
        record = read_record(self.path("records", f"{key}.json"))
        with contextlib.suppress(OSError):
            return record is not None and self._has_hash(record)
        return False

    def failed(self) -> set[str]:
        """The keys of clips with a stored failure."""
        return {p.stem for p in self.folder.glob("failures/[!.]*.json")}

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
        write_json(self.path("records", f"{key}.json"), record, files and files.close)
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
        if record is not None and self._has_hash(record):
            key = Path(record["video"]).stem
            if not self.matches(key):
                os.replace(path, self.path("records", f"{key}.json"))

    def _has_hash(self, record: dict[str, Any]) -> bool:
        """Whether a record has the hash of the video on disk."""
        return sha256_of(self.folder / record["video"]) == record.get("sha256")


class Records(Sequence):
    """The records with scores of those of these clips that are finished, read on first access."""

    def __init__(self, store: Store, keys: list[str]) -> None:
        self.store, self.keys = store, keys

    @functools.cached_property
    def _read(self) -> list[dict[str, Any]]:
        finished = self.store.recorded()
        records = (self.store.record(key) for key in self.keys if key in finished)
        return [record for record in records if record is not None]

    def __len__(self) -> int:
        return len(self._read)

    def __getitem__(self, i: Any) -> Any:
        return self._read[i]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None
