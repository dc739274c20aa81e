"""Records as rows and Arrow columns, independent of the order in which they were assembled.

A row has a cell per knob and per fact that tables, plots and exports need; `frame` makes a pandas frame
of many. Columns that only the index uses begin with "_":

    _file       name of the record without .json: the clip's key
    _stamp      changes whenever the record's file does
    _video, _bytes, _sha256, _at, _duplicates   from the record, to compare with the clip
    _own        JSON of the scores inside the record itself (records older than the score book)
    _named      JSON list of the stages and scores that the record has, null ones too
    _verdicts   JSON list of the valid verdicts, reduced to VERDICT_FIELDS

Cells of one column without a common type are stored as JSON, and the field's metadata says so.
"""

import functools
import json
import math
from collections.abc import Iterable
from typing import Any

import pandas as pd
import pyarrow as pa

from s2flow.store.recipes import KNOBS
from s2flow.store.records import generation_seconds
from s2flow.store.scorebook import ScoreBook

FACTS = ("run_id", "prompt", "original_prompt", "seed", "status", "height", "width", "frames")
FACTS += ("device", "commit")
OTHERS = ("windows", "variant", "outcome", "low_flow_reused")
INDEX_COLUMNS = ("_file", "_stamp", "_video", "_bytes", "_sha256", "_at", "_duplicates")
INDEX_COLUMNS += ("_own", "_named", "_verdicts")
VERDICT_FIELDS = ("scorer", "metric", "status", "depends")
SCORE_COLUMNS = ("fidelity_reference", "metrics")
FIXED = (
    *INDEX_COLUMNS,
    *FACTS,
    *KNOBS,
    *SCORE_COLUMNS,
    *OTHERS,
    "realised_density",
    "seconds_total",
)
AS_JSON = {b"json": b"1"}

Row = dict[str, Any]


def knobs_of(recipe: dict[str, Any]) -> Row:
    """The cells of a recipe; the records of a run share them."""
    return {name: _cell(recipe.get(name)) for name in KNOBS}


def row_of(record: dict[str, Any], knobs: Row) -> Row:
    """All cells but scores. Raises LookupError, TypeError, ValueError, AttributeError."""
    density, seconds = record.get("density") or {}, record["seconds"]
    row: Row = {name: record.get(name) for name in FACTS} | knobs
    row |= {name: record.get(name) for name in OTHERS}
    row["realised_density"] = sum(density.values()) / len(density) if density else None
    row["seconds_total"] = float(generation_seconds(record))
    row |= {f"seconds_{k}": _number(v) for k, v in seconds.items()}
    own = {k: record[k] for k in ("scores", "scorers") if record.get(k)}
    return row | {
        "_video": record["video"],
        "_bytes": record["bytes"],
        "_sha256": sha if isinstance(sha := record.get("sha256"), str) else None,
        "_at": at if isinstance(at := _number(record.get("at")), float) else None,
        "_duplicates": n if isinstance(n := record.get("duplicates"), int) else None,
        "_own": json.dumps(own) if own else None,
        "_named": _names(f"seconds_{k}" for k in seconds),
    }


def scores_of(row: Row, book: ScoreBook) -> Row:
    """The cells that depend on scores; `row` needs _video, _sha256, _own, _named and outcome."""
    record = {"video": row["_video"], "sha256": row["_sha256"], "outcome": row["outcome"]}
    record |= json.loads(row["_own"]) if row["_own"] else {}
    joined = book.joined(record)
    scores, scorers = joined["scores"], joined["scorers"]
    cells: Row = {f"score_{k}": _number(v) for k, v in scores.items()}
    stages = [k for k in _named(row["_named"]) if k.startswith("seconds_")]
    cells["_named"] = _names([*stages, *cells])
    verdicts = [{k: v[k] for k in VERDICT_FIELDS if k in v} for v in book.of(record)]
    cells["_verdicts"] = json.dumps(verdicts)
    fidelity = scorers.get("fidelity", {})
    cells["fidelity_reference"] = (fidelity.get("arguments") or {}).get("reference")
    cells["metrics"] = " ".join(
        f"{name}:{how['metric']}"
        for name, how in sorted(scorers.items())
        if how.get("metric") and not name.startswith("fidelity")  # whose reference is a column
    )
    return cells


def _cell(value: Any) -> Any:
    """A knob as one cell: sizes and bricks as "32x48", parameters of a method as "alpha=1.0"."""
    if isinstance(value, dict):
        return " ".join(f"{k}={v}" for k, v in value.items())
    return "x".join(map(str, value)) if isinstance(value, list) else value


def _number(value: Any) -> Any:
    """Numbers of a record as floats, so that 1 and 1.0 make one kind of column; NaN is None."""
    if not isinstance(value, (int, float)):
        return value
    return None if math.isnan(value) else float(value)


def _names(names: Iterable[str]) -> str:
    return json.dumps(sorted(names))


@functools.lru_cache
def _named(text: str) -> list[str]:
    return json.loads(text)


@functools.lru_cache
def verdicts_of(cell: str) -> list[dict[str, Any]]:
    """The verdicts in a cell of `_verdicts`; many rows may share the list."""
    return json.loads(cell)


# -- columns ----------------------------------------------------------------------------------


def table_of(rows: list[Row]) -> pa.Table:
    """Rows as columns in a fixed order; a row may lack cells that others have."""
    names = dict.fromkeys(k for row in rows for k in row)
    return _ordered({name: column_of([row.get(name) for row in rows]) for name in names})


def column_of(values: list[Any]) -> tuple[pa.Array, dict | None]:
    """One column and its field's metadata."""
    try:
        array = pa.array(values)
        if pa.types.is_nested(array.type):
            raise pa.ArrowInvalid("a nested cell")
        return array, None
    except (pa.ArrowException, OverflowError, UnicodeError, TypeError):
        return pa.array([None if v is None else json.dumps(v) for v in values]), AS_JSON


def values_of(table: pa.Table, name: str) -> list[Any]:
    """A column as it was given to `column_of`; None for each row where there is none."""
    if name not in table.column_names:
        return [None] * len(table)
    values = table[name].to_pylist()
    if not _is_json(table, name):
        return values
    return [None if v is None else json.loads(v) for v in values]


def joined(tables: list[pa.Table]) -> pa.Table:
    """Tables below each other; a column that one lacks is null there."""
    if len(tables) == 1 and not any(_is_json(tables[0], n) for n in tables[0].column_names):
        return tables[0]
    columns = {}
    for name in dict.fromkeys(n for t in tables for n in t.column_names):
        having = [t for t in tables if name in t.column_names]
        kinds = {t.schema.field(name).type for t in having} - {pa.null()}
        if len(kinds) > 1 or any(_is_json(t, name) for t in having):
            columns[name] = column_of([v for t in tables for v in values_of(t, name)])
            continue
        parts = [
            t.select([name]) if name in t.column_names else pa.table({name: pa.nulls(len(t))})
            for t in tables
        ]
        columns[name] = pa.concat_tables(parts, promote_options="default")[name], None
    return _ordered(columns)


def beside(table: pa.Table, more: pa.Table) -> pa.Table:
    """Columns of two tables with the same rows."""
    both = {n: (t[n], t.schema.field(n).metadata) for t in (table, more) for n in t.column_names}
    return _ordered(both)


def _is_json(table: pa.Table, name: str) -> bool:
    return table.schema.field(name).metadata == AS_JSON


def _ordered(columns: dict[str, tuple[Any, dict | None]]) -> pa.Table:
    """Fixed columns first, then stages and scores by name."""
    order = {name: i for i, name in enumerate(FIXED)}
    names = sorted(columns, key=lambda n: (order.get(n, len(order)), n.startswith("score_"), n))
    arrays = [columns[n][0] for n in names]
    of = [pa.field(n, a.type, metadata=columns[n][1]) for n, a in zip(names, arrays, strict=True)]
    return pa.table(arrays, schema=pa.schema(of)) if names else pa.table({})


def shown(table: pa.Table) -> pa.Table:
    """Without the columns of the index, and without stages and scores that no record has any more."""
    if not table.num_rows:
        return pa.table({})
    named = {n for text in table["_named"].unique().to_pylist() for n in _named(text)}
    kept = [n for n in table.column_names if n in FIXED or n in named]
    columns = {
        n: (table[n], table.schema.field(n).metadata) for n in kept if n not in INDEX_COLUMNS
    }
    for name, (column, _) in columns.items():
        if column.null_count == table.num_rows:  # no type, whatever type removed rows had
            columns[name] = pa.nulls(table.num_rows), None
    return _ordered(columns)


def frame(tables: Iterable[pa.Table]) -> pd.DataFrame:
    """Tables as a pandas frame, None or NaN where a cell is empty."""
    table = joined([t for t in tables if t.num_rows] or [pa.table({})])
    if not table.num_rows:
        return pd.DataFrame()
    coded = {n: values_of(table, n) for n in table.column_names if _is_json(table, n)}
    frame = table.drop_columns(list(coded)).to_pandas()
    for name, values in coded.items():
        frame[name] = pd.Series(values, dtype=object)
    return frame[table.column_names]
