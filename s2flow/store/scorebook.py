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

    def refresh(self) -> None:
        """Read every line again when verdicts are next needed."""
        self.__dict__.pop("_verdicts", None)

    @functools.cached_property
    def _verdicts(self) -> dict[tuple[str, str], dict[tuple[str, str], Verdict]]:
        """The valid verdict by (key, clip) and (scorer, metric)."""
        read: list[Verdict] = []
        for path in sorted(self.folder.glob("*.jsonl")):
            with open(path, "rb") as file:
                lines = (parsed(line) for line in file if line.endswith(b"\n"))
                read += (_slim(v) if self._slim else v for v in lines if v is not None)
        valid: dict[tuple[str, str], dict[tuple[str, str], Verdict]] = {}
        for verdict in sorted(read, key=lambda v: v["at"]):
            _take(valid, verdict)
        return valid

    def of(self, record: dict[str, Any]) -> list[Verdict]:
        """The valid verdicts on a recorded clip, one per metric."""
        key, _ = os.path.splitext(os.path.basename(record["video"]))
        return list(self._verdicts.get((key, record.get("sha256")), {}).values())

    def add(self, verdict: Verdict) -> None:
        """Append a verdict and sync it to disk. Raises OSError, and ValueError for NaN."""
        data = (json.dumps(verdict, ensure_ascii=False, allow_nan=False) + "\n").encode()
        if self._own is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._own = self.folder / f"{process_name()}.jsonl"
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
        _take(self._verdicts, verdict)

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
        by_time = sorted(self.of(record), key=lambda v: (v["status"] in SCORES, v["at"]))
        latest = {v["scorer"]: v for v in by_time}  # the last that scored, else the last
        for verdict in sorted(latest.values(), key=lambda v: (v["status"] in SCORES, v["at"])):
            scores |= verdict["scores"]
            scorers[verdict["scorer"]] = {k: verdict[k] for k in METHOD_FIELDS if k in verdict}
        if record.get("outcome") == "nan":  # its video is black, since an mp4 cannot hold NaN
            scores = dict.fromkeys(scores)
        return record | {"scores": scores, "scorers": scorers}


def _take(valid: dict, verdict: Verdict) -> None:
    of_clip = valid.setdefault((verdict["key"], verdict["clip"]), {})
    name = (verdict["scorer"], verdict["metric"])
    if verdict["status"] in FINAL or of_clip.get(name, {}).get("status") not in FINAL:
        of_clip[name] = verdict


def parsed(line: bytes) -> Verdict | None:
    """The verdict in a line of a file; None if it is no verdict."""
    try:
        verdict = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return verdict if isinstance(verdict, dict) and verdict.keys() >= REQUIRED else None


def _slim(verdict: Verdict) -> Verdict:
    """The fields of SLIM; values that many verdicts share are held once."""
    kept = {k: sys.intern(v) if type(v) is str else v for k, v in verdict.items() if k in SLIM}
    if "arguments" in kept:
        kept["arguments"] = _shared(json.dumps(kept["arguments"]))
    return kept


_shared = functools.lru_cache(json.loads)


def rows(verdicts: list[Verdict]) -> pd.DataFrame:
    """A row per (clip, score name, metric) with all fields of its verdict; lists and dicts as JSON."""
    return pd.DataFrame(
        {k: _cell(v) for k, v in verdict.items() if k != "scores"}
        | {"dimension": name, "score": score}
        for verdict in verdicts
        for name, score in verdict["scores"].items()
    )


def _cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (dict, list)) else value
