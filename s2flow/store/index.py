"""The index: the rows of a run's records in one parquet file, so that many are read in a second.

    runs/<run_id>/index.parquet    a line per whole record: rows.py says what it holds

The records are the truth. Before a line is used, the record's file must still be the one that was
read: its inode, size and both times stand in the line, and a record is always a new file that took
the old one's name. Lines of new and of changed records are read from them; scores stand in the lines
as long as the files of the score book have the sizes and times that they had. An index that is lost,
cut off, altered (pages have checksums), of another version or of something else is made again, and a
folder that cannot be written is read without: what comes out is the same, only later.

Parquet and not SQLite: the file is written whole and renamed, like everything in the store, so any
number of workers on a network file system need no lock, which is what SQLite relies on and what NFS
and Lustre do badly or not at all; of two writers the last one wins, and either is right. A file per
run, so that a worker of one run neither reads nor writes what others are doing. Small runs have none:
reading LEAST records takes less than keeping an index of them.
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
LEAST = 256  # records of a run that is given an index
SETTLED = 2.0  # seconds after which a folder's time tells one change from the next
PART = 5000  # rows that are held as Python objects at once
FORMAT = "1 " + hashlib.sha256(" ".join(rows.FIXED).encode()).hexdigest()[:12]  # a new knob: anew


def load_records(runs_dir: str | Path) -> pd.DataFrame:
    """One row per finished clip of every run below `runs_dir`; empty if there is none."""
    return rows.frame(rows.shown(read(folder)) for folder in run_folders(Path(runs_dir)))


def export(runs_dir: Path, to: Path) -> int:
    """Write the rows of `load_records` to one file, .parquet or .csv, whole; returns their number.

    Nothing is written where there is none. Cells of no common type are JSON in parquet.
    """
    found = rows.joined(
        [t for f in run_folders(runs_dir) if (t := rows.shown(read(f))).num_rows] or [pa.table({})]
    )
    if found.num_rows:
        with written_whole(to) as temporary:
            if to.suffix == ".csv":
                rows.frame([found]).to_csv(temporary, index=False)
            else:
                pq.write_table(found.replace_schema_metadata(None), temporary)
    return found.num_rows


def run_folders(runs_dir: Path) -> list[Path]:
    """The folders of the runs that hold records, by name."""
    return sorted(p.parent for p in runs_dir.glob("*/records"))


def read(folder: Path, keep: bool = True, needed: Callable[[str], bool] | None = None) -> pa.Table:
    """The rows of a run's whole records with their scores, by name; columns as rows.py has them.

    `_file` and `_stamp` are the records' names and states. Whether the clips are whole is not asked.
    keep: write the index if it has changed. needed: of a column's name, whether it is asked for; the
    others may be left out, which saves reading them.
    """
    said = _signature(folder / "scores")  # before what it stands for, so that it is never newer
    found = _stamps(folder / "records")
    known, as_of = _kept(folder / NAME, needed)
    names, stamps = (rows.values_of(known, n) for n in ("_file", "_stamp"))
    same = [found.get(n) == s for n, s in zip(names, stamps, strict=True)]
    seen = {n for n, kept in zip(names, same, strict=True) if kept}
    new = {n: s for n, s in found.items() if n not in seen}
    if needed is not None and (new or not all(same) or as_of != said):
        return read(folder, keep)  # what is written anew has every column
    fresh = list(_fresh(folder, new))
    if not fresh and all(same) and as_of == said:
        return known
    if not all(same):
        known = known.filter(pa.array(same, pa.bool_()))
    table = rows.joined([t for t in (known, *fresh) if t.num_rows] or [pa.table({})])
    if not table.num_rows:
        return table
    table = table.take(pa.compute.sort_indices(table["_file"]))
    table = _with_scores(table, ScoreBook(folder, slim=True))
    if keep and table.num_rows >= LEAST:
        _write(folder / NAME, table, said)
    return table


def _signature(scores: Path) -> str:
    found = ((e.name, e.stat()) for e in scan(scores) if e.name.endswith(".jsonl"))
    return json.dumps(sorted([name, s.st_size, s.st_mtime_ns, s.st_ino] for name, s in found))


def _stamps(records: Path) -> dict[str, str]:
    """The records' names and states, by name."""
    found = {}
    for entry in scan(records):
        if entry.name.endswith(".json") and not entry.name.startswith("."):
            with contextlib.suppress(OSError):  # removed since, or a link to nowhere
                s = entry.stat()
                found[entry.name[:-5]] = f"{s.st_mtime_ns} {s.st_ctime_ns} {s.st_size} {s.st_ino}"
    return found


def _fresh(folder: Path, stamps: dict[str, str]) -> Iterator[pa.Table]:
    """The rows of records with these states, without scores, PART by PART to save memory."""
    found: list[rows.Row] = []
    recipe, knobs = None, {}
    for name, stamp in stamps.items():
        record = read_record(folder / "records" / f"{name}.json")
        if record is None:
            continue
        try:
            if record["recipe"] != recipe:
                recipe, knobs = record["recipe"], rows.knobs_of(record["recipe"])
            found.append(rows.row_of(record, knobs) | {"_file": name, "_stamp": stamp})
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError):
            continue  # JSON, but no record of ours: `verify` says so
        if len(found) == PART:
            yield rows.table_of(found)
            found = []
    if found:
        yield rows.table_of(found)


def _with_scores(table: pa.Table, book: ScoreBook) -> pa.Table:
    needed = ("_video", "_sha256", "_own", "_named", "outcome")
    parts = []
    for start in range(0, table.num_rows, PART):
        part = table.slice(start, PART)
        lines = zip(*(rows.values_of(part, n) for n in needed), strict=True)
        given = (dict(zip(needed, line, strict=True)) for line in lines)
        parts.append(rows.table_of([rows.scores_of(row, book) for row in given]))
    scores = rows.joined(parts)
    old = [n for n in table.column_names if n in scores.column_names or n.startswith("score_")]
    return rows.beside(table.drop_columns(old), scores)


def _kept(path: Path, needed: Callable[[str], bool] | None = None) -> tuple[pa.Table, str | None]:
    """The index that was written last, with the columns that are needed, and the scores' state then."""
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            names, about = file.schema_arrow.names, file.schema_arrow.metadata or {}
            if about.get(b"s2flow") == FORMAT.encode() and {*rows.FIXED} <= {*names}:
                always = ("_file", "_stamp")
                asked = [n for n in names if needed is None or n in always or needed(n)]
                return file.read(asked), about[b"scores"].decode()
    except (OSError, ValueError, LookupError, pa.ArrowException):
        pass
    return pa.table({}), None


def _write(path: Path, table: pa.Table, scores: str) -> None:
    about = {"s2flow": FORMAT, "scores": scores}
    with contextlib.suppress(OSError), written_whole(path) as temporary:
        pq.write_table(table.replace_schema_metadata(about), temporary, write_page_checksum=True)


# -- questions --------------------------------------------------------------------------------


OF_CLIPS = ("prompt", "original_prompt", "seed", "outcome", "_video", "_sha256", "_verdicts")
MEANS = {"f": "realised_density", "lr": "seconds_lr", "hr": "seconds_hr", "all": "seconds_total"}
ASKED = {*OF_CLIPS, *MEANS.values(), "_bytes", "_duplicates", "_named"}


def finished(folder: Path, keep: bool = True) -> pa.Table:
    """The rows of clips whose record and video are whole, with what `of_clips` and `tally` ask."""
    return whole(folder, read(folder, keep, lambda n: n in ASKED or n.startswith("score_")))


def state(folder: Path) -> tuple | None:
    """What has changed if anything has come to a run or gone; None if that was a moment ago.

    For a file system may give two changes within a moment the same time.
    """
    try:
        times = [os.stat(folder / kind).st_mtime_ns for kind in ("records", "clips")]
    except OSError:
        return None
    settled = max(times) < (time.time() - SETTLED) * 1e9
    return (*times, _signature(folder / "scores")) if settled else None


def of_clips(table: pa.Table) -> dict[str, dict[str, Any]]:
    """Of `finished` rows, by key: what a scorer asks of a clip, and what was said of it."""
    columns = [rows.values_of(table, n) for n in ("_file", *OF_CLIPS)]
    names = [n.removeprefix("_") for n in OF_CLIPS]
    found = {key: dict(zip(names, c, strict=True)) for key, *c in zip(*columns, strict=True)}
    for of_clip in found.values():
        of_clip["verdicts"] = rows.verdicts_of(of_clip["verdicts"])
    return found


def tally(table: pa.Table, keys: list[str]) -> dict[str, Any]:
    """Of the clips with these keys among `finished` rows: how many there are, and means over them.

    {"clips", "duplicates", "f": realised density, "lr", "hr", "all": seconds, "scores": {name: mean},
    "video": of the only one}; a mean is None where no clip has the value.
    """
    wanted = set(keys)
    names = rows.values_of(table, "_file")
    table = table.filter(pa.array([n in wanted for n in names], pa.bool_()))
    scores = [n for n in rows.shown(table).column_names if n.startswith("score_")]
    found = {k: _mean(table, n) for k, n in MEANS.items()}
    found["scores"] = {n.removeprefix("score_"): _mean(table, n) for n in scores}
    found["duplicates"] = sum(filter(None, rows.values_of(table, "_duplicates")))
    only = rows.values_of(table, "_video")
    return {"clips": len(only), "video": only[0] if len(only) == 1 else None, **found}


def _mean(table: pa.Table, name: str) -> float | None:
    known = [v for v in rows.values_of(table, name) if v is not None]
    return fmean(known) if known else None


def whole(folder: Path, table: pa.Table, clips: Iterable[os.DirEntry] | None = None) -> pa.Table:
    """The rows whose video is there and has the size that its record says.

    clips: what its folder of clips holds, where somebody has looked.
    """
    sizes: dict[str, int] = {}
    for entry in scan(folder / "clips") if clips is None else clips:
        with contextlib.suppress(OSError):
            sizes[f"clips/{entry.name}"] = entry.stat().st_size
    pairs = zip(*(rows.values_of(table, n) for n in ("_video", "_bytes")), strict=True)
    same = [(sizes[v] if v in sizes else _size(folder / v)) == told for v, told in pairs]
    return table if all(same) else table.filter(pa.array(same, pa.bool_()))


def _size(path: Path) -> int | None:
    try:
        return os.stat(path).st_size
    except (OSError, ValueError):
        return None
