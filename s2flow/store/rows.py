"""Records as rows and Arrow columns, independent of the order in which they were assembled.

A row has a cell per knob and per fact that tables, plots and exports need. Columns of one name have one
type (`type_of`), whatever a record holds there. Columns that only the index uses begin with "_":

    _file       name of the record without .json: the clip's key
    _stamp      changes whenever the record's file does
    _video, _bytes, _sha256, _at, _duplicates   from the record, to compare with the clip
    _own        JSON of the scores inside the record itself (records older than the score book)
    _verdicts   JSON list of the valid verdicts, reduced to VERDICT_FIELDS
"""

import json
from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from s2flow.store.recipes import KNOBS
from s2flow.store.records import generation_seconds
from s2flow.store.scorebook import ScoreBook

FACTS = ("run_id", "prompt", "original_prompt", "seed", "status", "height", "width", "frames")
FACTS += ("device", "commit")
OTHERS = ("windows", "variant", "outcome", "low_flow_reused")
INDEX_COLUMNS = ("_file", "_stamp", "_video", "_bytes", "_sha256", "_at", "_duplicates")
INDEX_COLUMNS += ("_own", "_verdicts")
VERDICT_FIELDS = ("scorer", "metric", "status", "depends")
FIXED = (*INDEX_COLUMNS, *FACTS, *KNOBS, "fidelity_reference", "metrics", *OTHERS)
FIXED += ("realised_density", "seconds_total")
INTEGERS = {"seed", "height", "width", "frames", "steps", "t_i", "coverage_rows", "order"}
INTEGERS |= {"_bytes", "_duplicates"}
FLOATS = {"shift", "guidance", "sparsity", "temperature", "shift_high", "guidance_2", "_at"}
FLOATS |= {"realised_density"}
BOOLEANS = {"fp8", "adain", "low_flow_reused"}

Row = dict[str, Any]


def row_of(record: dict[str, Any]) -> Row:
    """All cells but scores. Raises LookupError, TypeError, ValueError, AttributeError."""
    density, seconds = record.get("density") or {}, record["seconds"]
    own = {k: record[k] for k in ("scores", "scorers") if record.get(k)}
    return {
        **{name: record.get(name) for name in (*FACTS, *OTHERS)},
        **{name: record["recipe"].get(name) for name in KNOBS},
        **{f"seconds_{k}": v for k, v in seconds.items()},
        **{f"_{name}": record.get(name) for name in ("video", "bytes", "sha256", "at")},
        "_duplicates": record.get("duplicates"),
        "_own": json.dumps(own) if own else None,
        "realised_density": sum(density.values()) / len(density) if density else None,
        "seconds_total": generation_seconds(record),
    }


def scores_of(row: Row, book: ScoreBook) -> Row:
    """The cells that depend on scores; `row` needs _video, _sha256, _own and outcome."""
    record = {"video": row["_video"], "sha256": row["_sha256"], "outcome": row["outcome"]}
    record |= json.loads(row["_own"]) if row["_own"] else {}
    joined = book.joined(record)
    verdicts = [{k: v[k] for k in VERDICT_FIELDS if k in v} for v in book.of(record)]
    fidelity = joined["scorers"].get("fidelity", {})
    return {
        **{f"score_{k}": v for k, v in joined["scores"].items()},
        "_verdicts": json.dumps(verdicts),
        "fidelity_reference": (fidelity.get("arguments") or {}).get("reference"),
        "metrics": " ".join(
            f"{name}:{how['metric']}"
            for name, how in sorted(joined["scorers"].items())
            if how.get("metric") and not name.startswith("fidelity")  # whose reference is a column
        ),
    }


def table_of(rows: list[Row]) -> pa.Table:
    """Rows as columns; a row may lack cells that others have."""
    names = dict.fromkeys(name for row in rows for name in row)
    return ordered(
        pa.table({name: _column(name, [row.get(name) for row in rows]) for name in names})
    )


def _column(name: str, values: list[Any]) -> pa.Array:
    """Values as a column of the type that its name has; NaN is null."""
    kind = pa.string()
    if name in FLOATS or name.startswith(("seconds_", "score_")):
        kind = pa.float64()
    elif name in INTEGERS | BOOLEANS:
        kind = pa.int64() if name in INTEGERS else pa.bool_()
    try:
        return pa.array(values, kind, from_pandas=True)
    except (pa.ArrowException, OverflowError, UnicodeError, TypeError):
        return pa.array([_cell(v, kind) for v in values], kind)


def _cell(value: Any, kind: pa.DataType) -> Any:
    """Of a list such as a size "32x48", of a dict "alpha=1.0"; None for a number that does not fit."""
    if value is None:
        return None
    if kind == pa.float64():
        finite = isinstance(value, (int, float)) and abs(value) < 1e308
        return float(value) if finite else None
    if kind != pa.string():
        plain = bool if kind == pa.bool_() else int
        return plain(value) if isinstance(value, plain) and abs(value) < 2**63 else None
    if isinstance(value, dict):
        return " ".join(f"{k}={v}" for k, v in value.items())
    text = "x".join(map(str, value)) if isinstance(value, list) else str(value)
    return text.encode(errors="backslashreplace").decode()


def joined(tables: Iterable[pa.Table]) -> pa.Table:
    """Tables below each other; a column that one lacks is null there."""
    tables = [t for t in tables if t.num_rows]
    if not tables:
        return pa.table({})
    return ordered(pa.concat_tables(tables, promote_options="default"))


def ordered(table: pa.Table) -> pa.Table:
    """Fixed columns first, then stages and scores by name."""
    order = {name: i for i, name in enumerate(FIXED)}
    key = lambda n: (order.get(n, len(order)), n.startswith("score_"), n)  # noqa: E731
    return table.select(sorted(table.column_names, key=key))


def values_of(table: pa.Table, name: str) -> list[Any]:
    """A column as a list; None for each row where there is no such column."""
    return table[name].to_pylist() if name in table.column_names else [None] * len(table)


def shown(table: pa.Table) -> pa.Table:
    """Without the columns of the index; a column without any value has no type."""
    columns = {n: table[n] for n in table.column_names if n not in INDEX_COLUMNS}
    empty = pa.nulls(table.num_rows)
    return pa.table(
        {n: empty if c.null_count == table.num_rows else c for n, c in columns.items()}
    )
