"""The score book: the verdicts of scorers on finished clips, stored beside the records.

    runs/<run_id>/scores/<host>-<pid>-<8 hex>.jsonl        one file per process that scores

A line is one scorer's verdict on one clip, written at once: the scores, their status, the hash of the
mp4, the metric, and how they were computed. Every process appends to its own file, so any number of
them may score one run, here or on other machines, and merging is copying the files into one folder. A
line is valid once it ends in a newline, so a kill costs only the verdict being written.

    key       of the clip: prompt and seed (store/records.py)
    clip      sha256 of the mp4, so that a clip that was made again is scored again
    metric    hash of the scorer's name, arguments, version and weights
    status    ok | nan (a score that is no number, stored as null) | undecodable | missing_weights |
              altered (the file is not the one that was recorded) | failed (the scorer raised)

Of several verdicts of one metric on one clip the last with a FINAL status is valid, else the last one.
A clip is scored again only where none is final. A clip that cannot be scored has a line that says why.
"""

import contextlib
import errno
import functools
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from s2flow.store.files import process_name

FINAL = ("ok", "nan", "undecodable", "missing_weights")  # scoring again would change nothing
SCORES = ("ok", "nan")
REQUIRED = {"at", "clip", "key", "metric", "scorer", "scores", "status"}  # of a verdict
METHOD_FIELDS = ("arguments", "version", "weights", "metric", "status", "protocol")
SLIM = (*METHOD_FIELDS, "key", "clip", "scorer", "scores", "at", "depends", "missing")

Verdict = dict[str, Any]


def metric_hash(scorer: str, known: dict[str, Any]) -> str:
    """Twelve digits that name a metric: scorer, arguments, version, weights."""
    text = json.dumps([scorer, known], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


class ScoreBook:
    """The verdicts on one run's clips; those of other processes appear after `refresh`.

    slim: keep only the fields that decide which verdict is valid and that a record shows, a fifth of
    the memory.
    """

    def __init__(self, run_folder: str | Path, slim: bool = False) -> None:
        self.folder, self._slim = Path(run_folder) / "scores", slim
        self._own: Path | None = None
        self._read: dict[tuple[str, str], dict[tuple[str, str], Verdict]] | None = None

    def refresh(self) -> None:
        """Read every line again when verdicts are next needed."""
        self._read = None

    @property
    def _verdicts(self) -> dict[tuple[str, str], dict[tuple[str, str], Verdict]]:
        if self._read is None:
            self._read = {}
            lines = _lines(self.folder)
            verdicts = map(_slim, lines) if self._slim else lines
            for verdict in sorted(verdicts, key=lambda v: v["at"]):
                self._take(verdict)
        return self._read

    def of(self, record: dict[str, Any]) -> list[Verdict]:
        """The valid verdicts on a recorded clip, one per metric."""
        return list(self._of(record).values())

    def _of(self, record: dict[str, Any]) -> dict[tuple[str, str], Verdict]:
        key, _ = os.path.splitext(os.path.basename(record["video"]))
        return self._verdicts.get((key, record.get("sha256")), {})

    def add(self, verdict: Verdict) -> None:
        """Append a verdict and sync it to disk. Raises OSError, and ValueError for NaN."""
        text = json.dumps(verdict, ensure_ascii=False, allow_nan=False) + "\n"
        if self._own is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._own = self.folder / f"{process_name()}.jsonl"
        data = text.encode()
        with open(self._own, "ab", buffering=0) as file:
            start = file.tell()
            try:
                if file.write(data) < len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(file.fileno())
            except OSError:  # no partial line may precede the next one
                with contextlib.suppress(OSError):
                    file.truncate(start)
                raise
        self._take(verdict)

    def verdicts(self) -> list[Verdict]:
        """The valid verdicts, in order of time."""
        every = (v for of_clip in self._verdicts.values() for v in of_clip.values())
        return sorted(every, key=lambda v: v["at"])

    def joined(self, record: dict[str, Any]) -> dict[str, Any]:
        """A record with `scores` {name: value or None} and `scorers` {name: how they were computed}.

        Of several metrics of one scorer the latest is shown; a clip that was NaN has no score. Records
        older than the score book contain scores, which verdicts replace.
        """
        scores, scorers = dict(record.get("scores") or {}), dict(record.get("scorers") or {})
        latest: dict[str, Verdict] = {}  # of each scorer the last that scored, else the last
        for verdict in sorted(self._of(record).values(), key=lambda v: v["at"]):
            before = latest.get(verdict["scorer"])
            if before is None or verdict["status"] in SCORES or before["status"] not in SCORES:
                latest[verdict["scorer"]] = verdict
        for verdict in sorted(latest.values(), key=lambda v: (v["status"] in SCORES, v["at"])):
            scores |= verdict["scores"]
            scorers[verdict["scorer"]] = {k: verdict[k] for k in METHOD_FIELDS if k in verdict}
        if (
            record.get("outcome") == "nan"
        ):  # its video is black only because an mp4 cannot hold NaN
            scores = dict.fromkeys(scores)
        return record | {"scores": scores, "scorers": scorers}

    def _take(self, verdict: Verdict) -> None:
        of_clip = self._verdicts.setdefault((verdict["key"], verdict["clip"]), {})
        name = (verdict["scorer"], verdict["metric"])
        before = of_clip.get(name)
        if before is None or verdict["status"] in FINAL or before["status"] not in FINAL:
            of_clip[name] = verdict


def rows(verdicts: list[Verdict]) -> pd.DataFrame:
    """A row per (clip, score name, metric) with all fields of its verdict."""
    return pd.DataFrame(
        [
            {k: _cell(v) for k, v in verdict.items() if k != "scores"}
            | {"dimension": name, "score": x}
            for verdict in verdicts
            for name, x in verdict["scores"].items()
        ]
    )


def _cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (dict, list)) else value


def _lines(folder: Path) -> Iterator[Verdict]:
    for path in sorted(folder.glob("*.jsonl")):
        with open(path, "rb") as file:
            for line in file:
                complete = line.endswith(b"\n")
                if complete and (verdict := _verdict(line)) is not None:
                    yield verdict


def _slim(verdict: Verdict) -> Verdict:
    """The fields of SLIM; values that many verdicts share are held once."""
    kept = {k: verdict[k] for k in SLIM if k in verdict}
    for name in ("key", "clip", "scorer", "metric", "status"):
        if type(kept[name]) is str:
            kept[name] = sys.intern(kept[name])
    arguments = kept.get("arguments")
    if isinstance(arguments, dict):
        kept["arguments"] = _shared(json.dumps(arguments))
    return kept


@functools.lru_cache
def _shared(text: str) -> Any:
    return json.loads(text)


def _verdict(line: bytes) -> Verdict | None:
    try:
        verdict = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return verdict if isinstance(verdict, dict) and verdict.keys() >= REQUIRED else None


def is_verdict(line: bytes) -> bool:
    """Whether a line of a file is a valid verdict."""
    return _verdict(line) is not None
