"""The index: the rows of a run's records in one parquet file, so that many are read in a second.

    runs/<run_id>/index.parquet    a row per complete record; see rows.py

The records are the source of truth. Rows are used only while each record's file is the one that was
read: a row holds its inode, size and both times, and a record is always a new file, renamed over the
old one. Scores are valid while the files of the score book have the same sizes and times. Rows of new
records are added; after any other change, or where the index is missing, cut off, altered (pages have
checksums) or of another version, all records are read again. The result is the same, only later.

Parquet instead of SQLite: the file is written and renamed atomically, so any number of workers on a
network file system need no lock, which NFS and Lustre support badly or not at all; of two writers the
last one wins, and both are right. Runs with fewer than MIN_RECORDS have no index: reading the records
takes less time than keeping one.
"""

import contextlib
import itertools
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from s2flow.store import rows
from s2flow.store.files import scan, written_whole
from s2flow.store.records import read_record
from s2flow.store.scorebook import ScoreBook

NAME = "index.parquet"
MIN_RECORDS = 256  # of a run with an index
CHUNK = 5000  # rows held as Python objects at once
FORMAT = b"2"  # raise it when a column changes its type or meaning


def load_records(runs_dir: str | Path) -> pd.DataFrame:
    """One row per finished clip of every run below `runs_dir`; empty if there is none."""
    return rows_below(Path(runs_dir)).to_pandas()


def rows_below(runs_dir: Path) -> pa.Table:
    """The rows of `load_records`."""
    folders = sorted(p.parent for p in runs_dir.glob("*/records"))
    return rows.joined(rows.shown(read(folder)) for folder in folders)


def read(folder: Path, keep: bool = True, needed: Callable[[str], bool] | None = None) -> pa.Table:
    """The rows of a run's complete records with their scores, by name; columns as in rows.py.

    The clips are not checked. keep: write the index if it has changed. needed: whether a column of this
    name is needed; others may be left out, which saves reading them.
    """
    signature = signature_of(folder / "scores")  # first: never newer than the scores
    current = _stamps(folder / "records")
    known, as_of = _kept(folder / NAME, needed)
    stamps = dict(zip(*(rows.values_of(known, n) for n in ("_file", "_stamp")), strict=True))
    if not stamps.items() <= current.items():  # a record was changed or removed
        known, stamps = pa.table({}), {}
    fresh = _fresh(folder, {n: s for n, s in current.items() if n not in stamps})
    if not fresh and as_of == signature and stamps:
        return known
    if needed is not None and stamps:
        return read(folder, keep)  # a written index has every column
    table = rows.joined([known, *fresh])
    if table.num_rows:
        table = table.take(pa.compute.sort_indices(table["_file"]))
        table = _with_scores(table, ScoreBook(folder, slim=True))
    if keep and table.num_rows >= MIN_RECORDS:
        about = {b"s2flow": FORMAT, b"scores": signature}
        with contextlib.suppress(OSError), written_whole(folder / NAME) as temporary:
            pq.write_table(
                table.replace_schema_metadata(about), temporary, write_page_checksum=True
            )
    return table


def signature_of(scores: Path) -> str:
    """Changes whenever a file of verdicts does."""
    files = ((e.name, e.stat()) for e in scan(scores) if e.name.endswith(".jsonl"))
    return json.dumps(sorted([name, s.st_size, s.st_mtime_ns, s.st_ino] for name, s in files))


def with_video(folder: Path, table: pa.Table) -> pa.Table:
    """The rows whose video exists and has the size in its record."""
    sizes: dict[str, int] = {}
    for entry in scan(folder / "clips"):
        with contextlib.suppress(OSError):
            sizes[f"clips/{entry.name}"] = entry.stat().st_size
    pairs = zip(*(rows.values_of(table, n) for n in ("_video", "_bytes")), strict=True)
    return table.filter(pa.array([sizes.get(v) == size for v, size in pairs], pa.bool_()))


def _stamps(records: Path) -> dict[str, str]:
    """A stamp by record name; it changes whenever the file does."""
    stamps = {}
    for entry in scan(records):
        if entry.name.endswith(".json") and not entry.name.startswith("."):
            with contextlib.suppress(OSError):  # removed since, or a link to nowhere
                s = entry.stat()
                stamps[entry.name[:-5]] = f"{s.st_mtime_ns} {s.st_ctime_ns} {s.st_size} {s.st_ino}"
    return stamps


def _fresh(folder: Path, stamps: dict[str, str]) -> list[pa.Table]:
    """The rows of these records without scores, in chunks to save memory."""

    def read_rows() -> Iterable[rows.Row]:
        for name, stamp in stamps.items():
            record = read_record(folder / "records" / f"{name}.json")
            # JSON, but no record of ours, raises; `verify` reports it
            with contextlib.suppress(
                LookupError, TypeError, ValueError, AttributeError, ArithmeticError
            ):
                if record is not None:
                    yield rows.row_of(record) | {"_file": name, "_stamp": stamp}

    made = read_rows()
    return [rows.table_of(c) for c in iter(lambda: list(itertools.islice(made, CHUNK)), [])]


def _with_scores(table: pa.Table, book: ScoreBook) -> pa.Table:
    needed, parts = table.select(["_video", "_sha256", "_own", "outcome"]), []
    for start in range(0, table.num_rows, CHUNK):
        part = needed.slice(start, CHUNK).to_pylist()
        parts.append(rows.table_of([rows.scores_of(row, book) for row in part]))
    scores = rows.joined(parts)
    columns = {n: table[n] for n in table.column_names if not n.startswith("score_")}
    return rows.ordered(pa.table(columns | {n: scores[n] for n in scores.column_names}))


def _kept(path: Path, needed: Callable[[str], bool] | None) -> tuple[pa.Table, str | None]:
    """The columns of the stored index that are needed, and the signature of its scores."""
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            names, about = file.schema_arrow.names, file.schema_arrow.metadata or {}
            if about.get(b"s2flow") == FORMAT and {*rows.FIXED} <= {*names}:
                always = ("_file", "_stamp")
                columns = [n for n in names if needed is None or n in always or needed(n)]
                return file.read(columns), about[b"scores"].decode()
    except (OSError, ValueError, LookupError, pa.ArrowException):
        pass
    return pa.table({}), None
