"""The score book: what scorers said of finished clips, beside the records that it belongs to.

    runs/<run_id>/scores/<host>-<pid>-<8 hex>.jsonl        one file per process that scores

A line is one scorer's verdict on one clip, and is written at once: the scores, their status, the
hash of the mp4, the metric, and with what they were taken. Every process appends to a file of its
own, so any number of them may score one run, here or on other machines, and merging is copying the
files into one folder. A line counts once it ends in a newline, so a kill costs the verdict in flight.

    key       of the clip, that is of prompt and seed (store/records.py)
    clip      sha256 of the mp4: a clip that was made anew is scored anew
    metric    hash of the scorer's name, arguments, version and weights: another one is another metric
    status    ok | nan (a score that is no number, kept as null) | undecodable | missing_weights |
              altered (the file is not the one that was recorded) | failed (the scorer raised)

Of several verdicts by one metric on one clip the last that is FINAL counts, else the last; scoring
again asks only where none is final. Nothing is dropped: a clip that cannot be scored is a line that
says why.
"""

import contextlib
import errno
import functools
import hashlib
import json
import os
import socket
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

FINAL = ("ok", "nan", "undecodable", "missing_weights")  # asking again would change nothing
SCORES = ("ok", "nan")
NAMED = {
    "key",
    "clip",
    "scorer",
    "metric",
    "status",
    "scores",
    "at",
}  # what makes a line a verdict
HOW = ("arguments", "version", "weights", "metric", "status", "protocol")
SLIM = (*HOW, "key", "clip", "scorer", "scores", "at", "depends", "missing")

Verdict = dict[str, Any]


def metric_hash(scorer: str, known: dict[str, Any]) -> str:
    """Twelve digits that name a metric: scorer, arguments, version, weights."""
    text = json.dumps([scorer, known], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


class ScoreBook:
    """The verdicts on one run's clips; what other processes add is seen after `refresh`.

    slim: keep only what decides which verdict counts and what a clip's record shows of it, a fifth
    of the memory.
    """

    def __init__(self, run_folder: str | Path, slim: bool = False) -> None:
        self.folder, self._slim = Path(run_folder) / "scores", slim
        self._own: Path | None = None
        self._read: dict[tuple[str, str], dict[tuple[str, str], Verdict]] | None = None

    def refresh(self) -> None:
        """Read every line again, once something is asked."""
        self._read = None

    @property
    def _said(self) -> dict[tuple[str, str], dict[tuple[str, str], Verdict]]:
        if self._read is None:
            self._read = {}
            lines = _lines(self.folder)
            found = map(_slim, lines) if self._slim else lines
            for verdict in sorted(found, key=lambda v: v["at"]):
                self._take(verdict)
        return self._read

    def of(self, record: dict[str, Any]) -> list[Verdict]:
        """The verdicts on a recorded clip that count, one by every metric."""
        return list(self._of(record).values())

    def _of(self, record: dict[str, Any]) -> dict[tuple[str, str], Verdict]:
        key, _ = os.path.splitext(os.path.basename(record["video"]))
        return self._said.get((key, record.get("sha256")), {})

    def add(self, verdict: Verdict) -> None:
        """Append a verdict; it is on the disk when this returns. Raises OSError, ValueError for NaN."""
        text = json.dumps(verdict, ensure_ascii=False, allow_nan=False) + "\n"
        if self._own is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            unique = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
            self._own = self.folder / f"{unique}.jsonl"
        data = text.encode()
        with open(self._own, "ab", buffering=0) as file:
            start = file.tell()
            try:
                if file.write(data) < len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(file.fileno())
            except OSError:  # no half line may stand before the next one
                with contextlib.suppress(OSError):
                    file.truncate(start)
                raise
        self._take(verdict)

    def verdicts(self) -> list[Verdict]:
        """Those that count, in order of time."""
        every = (v for of_clip in self._said.values() for v in of_clip.values())
        return sorted(every, key=lambda v: v["at"])

    def joined(self, record: dict[str, Any]) -> dict[str, Any]:
        """A record with `scores` {name: value or None} and `scorers` {name: how they were taken}.

        Of several metrics of one scorer the latest is seen; of a clip that was NaN no score is.
        Records older than the book bring scores of their own, until a verdict takes their place.
        """
        scores, scorers = dict(record.get("scores") or {}), dict(record.get("scorers") or {})
        latest: dict[str, Verdict] = {}  # of each scorer the last that scored, else the last
        for verdict in sorted(self._of(record).values(), key=lambda v: v["at"]):
            before = latest.get(verdict["scorer"])
            if before is None or verdict["status"] in SCORES or before["status"] not in SCORES:
                latest[verdict["scorer"]] = verdict
        for verdict in sorted(latest.values(), key=lambda v: (v["status"] in SCORES, v["at"])):
            scores |= verdict["scores"]
            scorers[verdict["scorer"]] = {k: verdict[k] for k in HOW if k in verdict}
        if record.get("outcome") == "nan":  # its video is black where nobody generated black
            scores = dict.fromkeys(scores)
        return record | {"scores": scores, "scorers": scorers}

    def _take(self, verdict: Verdict) -> None:
        of_clip = self._said.setdefault((verdict["key"], verdict["clip"]), {})
        name = (verdict["scorer"], verdict["metric"])
        before = of_clip.get(name)
        if before is None or verdict["status"] in FINAL or before["status"] not in FINAL:
            of_clip[name] = verdict


def rows(verdicts: list[Verdict]) -> pd.DataFrame:
    """A row per (clip, score name, metric) with everything that its verdict holds."""
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
                whole = line.endswith(b"\n")  # what follows the last newline is torn
                if whole and (verdict := _verdict(line)) is not None:
                    yield verdict


def _slim(verdict: Verdict) -> Verdict:
    """With values that many verdicts share held once."""
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
    return verdict if isinstance(verdict, dict) and verdict.keys() >= NAMED else None


def is_verdict(line: bytes) -> bool:
    """Whether a line of a file is one that counts."""
    return _verdict(line) is not None
