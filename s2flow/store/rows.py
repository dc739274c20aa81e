"""A record as a row, and many rows as Arrow columns, the same however they were put together.

A row has a cell per knob and per fact that tables, plots and exports ask for; `frame` makes
a pandas frame of many. Columns that stand for the index alone begin with "_":

    _file   name of the record without .json: the clip's key
    _stamp  what tells that the record's file is another one now
    _video, _bytes, _sha256, _at, _duplicates   from the record, to compare with the clip
    _own    JSON of the scores that the record itself holds, and of its outcome
    _named  JSON list of the stages and scores that the record has, be they null
    _verdicts   JSON list of the verdicts that count, each with VERDICT_FIELDS only

Cells of one column that are of no common type are kept as JSON, and the field's metadata says so.
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
OF_SCORES = ("fidelity_reference", "metrics")
FIXED = (*INDEX_COLUMNS, *FACTS, *KNOBS, *OF_SCORES, *OTHERS, "realised_density", "seconds_total")
AS_JSON = {b"json": b"1"}

Row = dict[str, Any]


def knobs_of(recipe: dict[str, Any]) -> Row:
    """The cells of a recipe, which the records of a run share."""
    return {name: _cell(recipe.get(name)) for name in KNOBS}


def row_of(record: dict[str, Any], knobs: Row) -> Row:
    """Everything but the scores. Raises LookupError, TypeError, ValueError, AttributeError."""
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
    """The columns that hang on scores; `row` needs _video, _sha256, _own, _named and outcome."""
    record = {"video": row["_video"], "sha256": row["_sha256"], "outcome": row["outcome"]}
    record |= json.loads(row["_own"]) if row["_own"] else {}
    joined = book.joined(record)
    scores, scorers = joined["scores"], joined["scorers"]
    found: Row = {f"score_{k}": _number(v) for k, v in scores.items()}
    stages = [k for k in _named(row["_named"]) if k.startswith("seconds_")]
    found["_named"] = _names([*stages, *found])
    verdicts = [{k: v[k] for k in VERDICT_FIELDS if k in v} for v in book.of(record)]
    found["_verdicts"] = json.dumps(verdicts)
    fidelity = scorers.get("fidelity", {})
    found["fidelity_reference"] = (fidelity.get("arguments") or {}).get("reference")
    found["metrics"] = " ".join(
        f"{name}:{how['metric']}"
        for name, how in sorted(scorers.items())
        if how.get("metric") and not name.startswith("fidelity")  # whose reference is a column
    )
    return found


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


def _names(found: Iterable[str]) -> str:
    return json.dumps(sorted(found))


@functools.lru_cache
def _named(text: str) -> list[str]:
    return json.loads(text)


@functools.lru_cache
def verdicts_of(verdicts: str) -> list[dict[str, Any]]:
    """What a cell of `_verdicts` holds; many rows may share the list."""
    return json.loads(verdicts)


# -- columns ----------------------------------------------------------------------------------


def table_of(rows: list[Row]) -> pa.Table:
    """Rows as columns, in an order of their own; a row may lack what others have."""
    names = dict.fromkeys(k for row in rows for k in row)
    return _ordered({name: column_of([row.get(name) for row in rows]) for name in names})


def column_of(values: list[Any]) -> tuple[pa.Array, dict | None]:
    """One column and its field's metadata."""
    try:
        found = pa.array(values)
        if pa.types.is_nested(found.type):
            raise pa.ArrowInvalid("a cell that holds cells")
        return found, None
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
    names, columns = dict.fromkeys(n for t in tables for n in t.column_names), {}
    for name in names:
        having = [t for t in tables if name in t.column_names]
        kinds = {t.schema.field(name).type for t in having} - {pa.null()}
        if len(kinds) > 1 or any(_is_json(t, name) for t in having):
            columns[name] = column_of([v for t in tables for v in values_of(t, name)])
            continue
        kind = kinds.pop() if kinds else pa.null()
        parts = [
            t[name].cast(kind) if name in t.column_names else pa.nulls(len(t), kind)
            for t in tables
        ]
        chunks = [c for p in parts for c in (p.chunks if isinstance(p, pa.ChunkedArray) else [p])]
        columns[name] = pa.chunked_array(chunks, kind), None
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
    """Without the index's own columns, and without stages and scores that no record names now."""
    if not table.num_rows:
        return pa.table({})
    named = {n for text in table["_named"].unique().to_pylist() for n in _named(text)}
    kept = [n for n in table.column_names if n in FIXED or n in named]
    columns = {
        n: (table[n], table.schema.field(n).metadata) for n in kept if n not in INDEX_COLUMNS
    }
    for name, (column, _) in columns.items():
        if column.null_count == table.num_rows:  # of no type, whatever rows that went had there
            columns[name] = pa.nulls(table.num_rows), None
    return _ordered(columns)


def frame(tables: Iterable[pa.Table]) -> pd.DataFrame:
    """Tables as a pandas frame, None or NaN where nothing is."""
    found = joined([t for t in tables if t.num_rows] or [pa.table({})])
    if not found.num_rows:
        return pd.DataFrame()
    coded = {n: values_of(found, n) for n in found.column_names if _is_json(found, n)}
    made = found.drop_columns(list(coded)).to_pandas()
    for name, values in coded.items():
        made[name] = pd.Series(values, dtype=object)
    return made[found.column_names]
