"""Runs read from disk for the page: finished clips, errors of failed ones, broken files."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from s2flow.errors import UserError
from s2flow.store import read_record
from s2flow.store.files import read_json
from s2flow.store.recipes import VERSION
from s2flow.store.scorebook import ScoreBook
from s2flow.store.verify import refuse_single_run

# prompt, seed, the entry that an augmented prompt replaces (one may replace two)
Row = tuple[str, int, str | None]


@dataclass(frozen=True)
class Run:
    """A run's folder."""

    folder: Path
    recipe: dict[str, Any]  # flat: windows.name, windows.exponents
    records: dict[Row, dict[str, Any]]
    failures: dict[Row, str]
    broken: dict[str, str]  # clip key -> file

    @property
    def id(self) -> str:
        """The folder's name."""
        return self.folder.name

    @property
    def shown(self) -> bool:
        """Whether any of its clips was finished or failed."""
        return bool(self.records or self.failures)


def read_runs(runs_dir: Path) -> list[Run]:
    """The runs of a folder, by name. Raises UserError if they hold no finished clip."""
    refuse_single_run(runs_dir)
    try:
        folders = sorted(p for p in runs_dir.iterdir() if (p / "records").is_dir())
    except OSError as error:
        raise UserError(f"{runs_dir}: {error.strerror}; type the folder of the runs") from None
    runs = [_read_run(folder) for folder in folders]
    if not any(run.records for run in runs):
        held = f"{len(runs)} run(s) but" if runs else "no run and"
        raise UserError(f"{runs_dir} holds {held} no finished clip; python run.py makes one")
    return runs


def _read_run(folder: Path) -> Run:
    recipe, book = read_json(folder / "recipe.json") or {}, ScoreBook(folder)
    records, failures, broken = {}, {}, {} if recipe else {"recipe": "recipe.json"}
    for path in sorted(folder.glob("failures/[!.]*.json")):
        match read_json(path):
            case {"prompt": str(prompt), "seed": int(seed), **rest}:
                prompt = prompt.encode("utf-8", "replace").decode()
                failures[prompt, seed, rest.get("original_prompt")] = str(rest.get("error"))
            case _:
                broken[path.stem] = f"failures/{path.name}"
    for path in sorted(folder.glob("records/[!.]*.json")):
        record = read_record(path)
        if record is not None and _sound(record):
            row = record["prompt"], record["seed"], record.get("original_prompt")
            records[row] = book.joined(record)
            recipe = {"version": recipe.get("version", VERSION), **record["recipe"]}
        else:
            broken[path.stem] = f"records/{path.name}"
    flat: dict[str, Any] = {}
    for name, value in recipe.items():
        nested = isinstance(value, dict)
        flat |= {f"{name}.{k}": v for k, v in value.items()} if nested else {name: value}
    return Run(folder, flat, records, failures, broken)


def _sound(record: dict[str, Any]) -> bool:
    """Whether a record holds the fields of the page, with the expected types."""
    try:
        record["prompt"].encode()
        Path(record["video"])
        height, width = record["recipe"].get("low", (1, 1))
        integers = [record[k] for k in ("seed", "height", "width", "bytes")]
        integers += [height, width, record.get("prompt_index", [0])[0]]
        numbers = [*record["seconds"].values(), *(record.get("density") or {}).values()]
        numbers += [s for s in record.get("scores", {}).values() if s is not None]
        rates = [record.get("frames", 1), record.get("fps", 1)]
        sound = all(map(math.isfinite, numbers + rates)) and min(rates) > 0
        return sound and all(isinstance(x, int) for x in integers)
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError):
        return False
