"""One run's folder, as the runner writes to it."""

import functools
from pathlib import Path
from typing import Any

from s2flow.errors import UserError
from s2flow.scorebook import ScoreBook
from s2flow.store import index
from s2flow.store.files import remove_temporaries_of_the_dead, write_json
from s2flow.store.records import Records, read_record


class Store:
    """One run's folder. Raises UserError at once if it cannot be written."""

    def __init__(self, runs_dir: str | Path, run_id: str, recipe: dict[str, Any]) -> None:
        self.runs_dir, self.run_id = Path(runs_dir), run_id
        self.folder = self.runs_dir / run_id
        try:
            for name in ("clips", "sheets", "records"):
                (self.folder / name).mkdir(parents=True, exist_ok=True)
            write_json(self.folder / "recipe.json", recipe)
            remove_temporaries_of_the_dead(self.folder)
        except OSError as error:
            raise UserError(
                f"runs_dir={runs_dir} cannot be written ({error.strerror}); "
                "type runs_dir=some/other/folder"
            ) from None
        self.book = ScoreBook(self.folder, slim=True)

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

    def recorded(self) -> dict[str, dict[str, Any]]:
        """What a scorer asks of the finished clips, by key: all those that `record` would give.

        For many clips at once; a moment old when it returns. prompt, original_prompt, seed, video,
        sha256, outcome.
        """
        return index.finished(self.folder)

    def tally(self, keys: list[str]) -> dict[str, Any]:
        """How many of these clips are finished, and the means over them; see `index.tally`."""
        return index.tally(self.folder, keys)

    def records(self, keys: list[str]) -> Records:
        """The records of those of these clips that are finished, read when they are asked for."""
        return Records(self.folder, functools.partial(_among, self.folder, keys))

    def commit(self, key: str, record: dict[str, Any]) -> None:
        """Write the record: from here on the clip is done."""
        write_json(self.path("records", f"{key}.json"), record)
        self.path("failures", f"{key}.json").unlink(missing_ok=True)

    def fail(self, key: str, record: dict[str, Any]) -> None:
        """Keep the traceback of a clip that failed."""
        write_json(self.path("failures", f"{key}.json"), record)


def _among(folder: Path, keys: list[str]) -> list[str]:
    finished = index.finished(folder)
    return [key for key in keys if key in finished]
