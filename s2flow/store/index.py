"""The index: the rows of a run's records in one parquet file, so that many are read in a second.

    runs/<run_id>/index.parquet    a row per complete record; see rows.py

The records are the source of truth. A row is used only while its record's file is the one that was
read: the row holds its inode, size and both times, and a record is always a new file, renamed over the
old one.
Rows of new and changed records are read from the records; scores in the rows are valid while the files
of the score book have the same sizes and times. An index that is missing, cut off, altered (pages have
checksums) or of another version is rebuilt, and in a read-only folder the records are read instead: the
result is the same, only slower.

Parquet instead of SQLite: the file is written and renamed atomically, like everything in the store, so
any number of workers on a network file system need no lock, on which SQLite relies and which NFS and
Lustre support badly or not at all; of two writers the last one wins, and both are right. One file per
run, so that workers of different runs do not interfere. Runs with fewer than MIN_RECORDS have none:
reading the records takes less time than keeping an index of them.
"""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from s2flow.store import rows
from s2flow.store.files import scan, written_whole
from s2flow.store.records import read_record
from s2flow.store.scorebook import ScoreBook

NAME = "index.parquet"
MIN_RECORDS = 256  # of a run with an index
SETTLED = 2.0  # seconds after which a folder's time distinguishes two changes
CHUNK = 5000  # rows held as Python objects at once
# a new column makes old indexes invalid
FORMAT = "1 " + hashlib.sha256(" ".join(rows.FIXED).encode()).hexdigest()[:12]


def load_records(runs_dir: str | Path) -> pd.DataFrame:
    """One row per finished clip of every run below `runs_dir`; empty if there is none."""
    return rows.frame(rows.shown(read(folder)) for folder in run_folders(Path(runs_dir)))


def export(runs_dir: Path, to: Path) -> int:
    """Write the rows of `load_records` to one file, .parquet or .csv; returns their number.

    No file is written for no rows. Cells without a common type are JSON in parquet.
    """
    table = rows.joined(
        [t for f in run_folders(runs_dir) if (t := rows.shown(read(f))).num_rows] or [pa.table({})]
    )
    if table.num_rows:
        with written_whole(to) as temporary:
            if to.suffix == ".csv":
                rows.frame([table]).to_csv(temporary, index=False)
            else:
                pq.write_table(table.replace_schema_metadata(None), temporary)
    return table.num_rows


def run_folders(runs_dir: Path) -> list[Path]:
    """The folders of the runs that hold records, by name."""
    return sorted(p.parent for p in runs_dir.glob("*/records"))


def read(folder: Path, keep: bool = True, needed: Callable[[str], bool] | None = None) -> pa.Table:
    """The rows of a run's complete records with their scores, by name; columns as in rows.py.

    The clips are not checked. keep: write the index if it has changed. needed: whether a column of this
    name is needed; others may be left out, which saves reading them.
    """
    signature = _signature(
        folder / "scores"
    )  # read first, so that it is never newer than the scores
    current = _stamps(folder / "records")
    known, as_of = _kept(folder / NAME, needed)
    names, stamps = (rows.values_of(known, n) for n in ("_file", "_stamp"))
    same = [current.get(n) == s for n, s in zip(names, stamps, strict=True)]
    seen = {n for n, kept in zip(names, same, strict=True) if kept}
    new = {n: s for n, s in current.items() if n not in seen}
    if needed is not None and (new or not all(same) or as_of != signature):
        return read(folder, keep)  # a rebuilt index has every column
    fresh = list(_fresh(folder, new))
    if not fresh and all(same) and as_of == signature:
        return known
    if not all(same):
        known = known.filter(pa.array(same, pa.bool_()))
    table = rows.joined([t for t in (known, *fresh) if t.num_rows] or [pa.table({})])
    if not table.num_rows:
        return table
    table = table.take(pa.compute.sort_indices(table["_file"]))
    table = _with_scores(table, ScoreBook(folder, slim=True))
    if keep and table.num_rows >= MIN_RECORDS:
        _write(folder / NAME, table, signature)
    return table


def _signature(scores: Path) -> str:
    files = ((e.name, e.stat()) for e in scan(scores) if e.name.endswith(".jsonl"))
    return json.dumps(sorted([name, s.st_size, s.st_mtime_ns, s.st_ino] for name, s in files))


def _stamps(records: Path) -> dict[str, str]:
    """A stamp by record name; it changes whenever the file does."""
    stamps = {}
    for entry in scan(records):
        if entry.name.endswith(".json") and not entry.name.startswith("."):
            with contextlib.suppress(OSError):  # removed since, or a link to nowhere
                s = entry.stat()
                stamps[entry.name[:-5]] = f"{s.st_mtime_ns} {s.st_ctime_ns} {s.st_size} {s.st_ino}"
    return stamps


def _fresh(folder: Path, stamps: dict[str, str]) -> Iterator[pa.Table]:
    """The rows of these records without scores, in chunks to save memory."""
    chunk: list[rows.Row] = []
    recipe, knobs = None, {}
    for name, stamp in stamps.items():
        record = read_record(folder / "records" / f"{name}.json")
        if record is None:
            continue
        try:
            if record["recipe"] != recipe:
                recipe, knobs = record["recipe"], rows.knobs_of(record["recipe"])
            chunk.append(rows.row_of(record, knobs) | {"_file": name, "_stamp": stamp})
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError):
            continue  # JSON, but no record of ours; `verify` reports it
        if len(chunk) == CHUNK:
            yield rows.table_of(chunk)
            chunk = []
    if chunk:
        yield rows.table_of(chunk)


def _with_scores(table: pa.Table, book: ScoreBook) -> pa.Table:
    needed = ("_video", "_sha256", "_own", "_named", "outcome")
    parts = []
    for start in range(0, table.num_rows, CHUNK):
        part = table.slice(start, CHUNK)
        lines = zip(*(rows.values_of(part, n) for n in needed), strict=True)
        given = (dict(zip(needed, line, strict=True)) for line in lines)
        parts.append(rows.table_of([rows.scores_of(row, book) for row in given]))
    scores = rows.joined(parts)
    old = [n for n in table.column_names if n in scores.column_names or n.startswith("score_")]
    return rows.beside(table.drop_columns(old), scores)


def _kept(path: Path, needed: Callable[[str], bool] | None = None) -> tuple[pa.Table, str | None]:
    """The columns of the stored index that are needed, and the signature of its scores."""
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            names, about = file.schema_arrow.names, file.schema_arrow.metadata or {}
            if about.get(b"s2flow") == FORMAT.encode() and {*rows.FIXED} <= {*names}:
                always = ("_file", "_stamp")
                columns = [n for n in names if needed is None or n in always or needed(n)]
                return file.read(columns), about[b"scores"].decode()
    except (OSError, ValueError, LookupError, pa.ArrowException):
        pass
    return pa.table({}), None


def _write(path: Path, table: pa.Table, scores: str) -> None:
    about = {"s2flow": FORMAT, "scores": scores}
    with contextlib.suppress(OSError), written_whole(path) as temporary:
        pq.write_table(table.replace_schema_metadata(about), temporary, write_page_checksum=True)


# -- queries ----------------------------------------------------------------------------------


CLIP_COLUMNS = ("prompt", "original_prompt", "seed", "outcome", "_video", "_sha256", "_verdicts")
MEANS = {"f": "realised_density", "lr": "seconds_lr", "hr": "seconds_hr", "all": "seconds_total"}
FINISHED_COLUMNS = {*CLIP_COLUMNS, *MEANS.values(), "_bytes", "_duplicates", "_named"}


def finished(folder: Path, keep: bool = True) -> pa.Table:
    """The rows of clips with complete record and video, with the columns of `of_clips` and `tally`."""
    return with_video(
        folder, read(folder, keep, lambda n: n in FINISHED_COLUMNS or n.startswith("score_"))
    )


def state(folder: Path) -> tuple | None:
    """Changes whenever a file is added to a run or removed; None just after such a change.

    A file system may give two changes in quick succession the same time.
    """
    try:
        times = [os.stat(folder / kind).st_mtime_ns for kind in ("records", "clips")]
    except OSError:
        return None
    settled = max(times) < (time.time() - SETTLED) * 1e9
    return (*times, _signature(folder / "scores")) if settled else None


def of_clips(table: pa.Table) -> dict[str, dict[str, Any]]:
    """The fields of `finished` rows that a scorer needs, and the verdicts, by key."""
    columns = [rows.values_of(table, n) for n in ("_file", *CLIP_COLUMNS)]
    names = [n.removeprefix("_") for n in CLIP_COLUMNS]
    clips = {key: dict(zip(names, c, strict=True)) for key, *c in zip(*columns, strict=True)}
    for clip in clips.values():
        clip["verdicts"] = rows.verdicts_of(clip["verdicts"])
    return clips


def tally(table: pa.Table, keys: list[str]) -> dict[str, Any]:
    """The number of clips with these keys among `finished` rows, and means over them.

    {"clips", "duplicates", "f": realised density, "lr", "hr", "all": seconds, "scores": {name: mean},
    "video": of the only one}; a mean is None where no clip has the value.
    """
    wanted = set(keys)
    names = rows.values_of(table, "_file")
    table = table.filter(pa.array([n in wanted for n in names], pa.bool_()))
    scores = [n for n in rows.shown(table).column_names if n.startswith("score_")]
    means = {k: _mean(table, n) for k, n in MEANS.items()}
    means["scores"] = {n.removeprefix("score_"): _mean(table, n) for n in scores}
    means["duplicates"] = sum(filter(None, rows.values_of(table, "_duplicates")))
    videos = rows.values_of(table, "_video")
    return {"clips": len(videos), "video": videos[0] if len(videos) == 1 else None, **means}


def _mean(table: pa.Table, name: str) -> float | None:
    known = [v for v in rows.values_of(table, name) if v is not None]
    return fmean(known) if known else None


def with_video(
    folder: Path, table: pa.Table, clips: Iterable[os.DirEntry] | None = None
) -> pa.Table:
    """The rows whose video exists and has the size in its record.

    clips: the entries of the folder of clips, where they were read before.
    """
    sizes: dict[str, int] = {}
    for entry in scan(folder / "clips") if clips is None else clips:
        with contextlib.suppress(OSError):
            sizes[f"clips/{entry.name}"] = entry.stat().st_size
    pairs = zip(*(rows.values_of(table, n) for n in ("_video", "_bytes")), strict=True)
    same = [(sizes[v] if v in sizes else _size(folder / v)) == size for v, size in pairs]
    return table if all(same) else table.filter(pa.array(same, pa.bool_()))


def _size(path: Path) -> int | None:
    try:
        return os.stat(path).st_size
    except (OSError, ValueError):
        return None
