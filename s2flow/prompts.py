"""Where the prompts come from: `prompts=demo|world|file|vbench`, subsets of them, and shards.

    demo    six held-out captions of the embedded world, chosen by hand: one per background
    world   held-out captions of the embedded world (never trained on), in a seeded order
    file    your own: .txt (one prompt a line), .csv (column `prompt`), .json, .jsonl
    vbench  the 946 entries of `VBench_full_info.json`; the paper scores a random half, 473

The list is cut in this order: `subset`, then `count` (the first n; of `world`, how many are drawn
at all), then `shard` (every n-th of what is left, so that shards are disjoint and together
complete). An entry keeps the index it has in its uncut source: 944 of VBench's 946 texts are
distinct, so entries are told apart by index, and the runner merges clips by text. Text is taken
literally: nothing in it is interpolated, and only the line end is stripped.

Deviation: the paper does not say which 473 prompts it drew; ours follow `prompts.subset_seed`.
"""

import csv
import difflib
import importlib.util
import io
import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from s2flow.errors import UserError

SOURCES = ("demo", "world", "file", "vbench")
SUBSETS = ("smoke", "half", "full")
SMOKE = 8
WORLD_COUNT = 16  # captions when `prompts=world` gives no count
VBENCH_FILE = "VBench_full_info.json"
INSTALL_VBENCH = "python -m pip install --no-deps vbench==0.1.5"  # its pins exclude diffusers

DEMO = (
    "a large orange striped ring moves right over a cloudy sky",
    "a large white star moves down in the night sky",
    "a large red ball moves left on grass",
    "a large purple ring grows on sand",
    "a large blue square moves down before a brick wall",
    "a large yellow star spins on a tiled floor",
)


@dataclass(frozen=True)
class Prompt:
    """One entry: its place in the uncut source, its text, its VBench dimensions (if any)."""

    index: int
    text: str
    dimensions: tuple[str, ...] = ()


def load_prompts(
    source: str,
    *,
    file: str | None,
    subset: str,
    seed: int,
    shard: str,
    count: int | None,
    world: str = "micro",
) -> list[Prompt]:
    """The prompts of one job, sorted by index.

    `subset` is "full", "half" (drawn by `seed`), "smoke" (8, evenly spread) or, for VBench, the
    name of a dimension. `shard` is "k/n", 1-based; with more shards than prompts the last ones
    are empty lists. `world` names the embedded world, and `seed` also orders its captions.

    Raises `UserError` for anything that the user can mend.
    """
    if count is not None and count < 1:
        raise UserError(
            f"prompts.count={count} asks for no prompt; type 1 or more, or null for all"
        )
    if source not in SOURCES:
        raise UserError(f"prompts={source} is unknown{_nearest(source, SOURCES)}")
    if file is not None and source not in ("file", "vbench"):
        raise UserError(
            f"prompts={source} reads no file, but prompts.file={file} is set; "
            f"type prompts=file prompts.file={file}"
        )
    k, n = parse_shard(shard)
    if source == "file":
        prompts = _numbered(_read_file(file))
    elif source == "vbench":
        prompts = _read_vbench(file)
    elif source == "world":
        # here `count` says how many captions are drawn, before any subset
        prompts = _numbered(_world_captions(world, WORLD_COUNT if count is None else count, seed))
    else:
        prompts = _numbered(DEMO)
    return select(prompts, subset, seed)[:count][k - 1 :: n]


def select(prompts: list[Prompt], subset: str, seed: int) -> list[Prompt]:
    """The entries of one subset, in the list's order. The half of 946 is 473, of 5 is 3."""
    size = len(prompts)
    if subset == "full":
        return prompts
    if subset == "half":
        kept = random.Random(seed).sample(range(size), (size + 1) // 2)
        return [prompts[i] for i in sorted(kept)]
    if subset == "smoke":
        wanted = min(SMOKE, size)
        return [prompts[(2 * i + 1) * size // (2 * wanted)] for i in range(wanted)]
    dimensions = sorted({d for p in prompts for d in p.dimensions})
    if subset not in dimensions:
        hint = "" if dimensions else " here (dimensions belong to prompts=vbench)"
        known = (*SUBSETS, *dimensions)
        raise UserError(f"prompts.subset={subset} is unknown{hint}{_nearest(subset, known)}")
    return [p for p in prompts if subset in p.dimensions]


# -- sources ----------------------------------------------------------------------------------


def _numbered(texts: Any) -> list[Prompt]:
    return [Prompt(index, text) for index, text in enumerate(texts)]


def _world_captions(world: str, count: int, seed: int) -> list[str]:
    from s2flow.backbones.tiny import world as worlds  # imports torch; other sources need none

    known = {"micro": worlds.MICRO, "tiny": worlds.TINY}
    if world not in known:
        raise UserError(
            f"prompts=world has no captions for world {world!r}; it knows {', '.join(known)}: "
            "type backbone=micro, or another prompts="
        )
    return worlds.held_out_captions(known[world], count, seed)


def _read_vbench(file: str | None) -> list[Prompt]:
    path = Path(file).expanduser() if file is not None else _installed_vbench_file()
    entries = _parse_json(_read_text(path), path)
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{path} holds no list of VBench entries; type a path to {VBENCH_FILE}")
    prompts = []
    for index, entry in enumerate(entries):
        fields = entry if isinstance(entry, dict) else {}
        dimensions = fields.get("dimension")
        if "prompt_en" not in fields or not isinstance(dimensions, list):
            raise UserError(
                f"{path}, entry {index}: no prompt_en and list of dimension, so this is not "
                f"{VBENCH_FILE}; for prompts of your own type prompts=file prompts.file={path}"
            )
        text = _checked(fields["prompt_en"], path, f"entry {index}")
        prompts.append(Prompt(index, text, tuple(str(d) for d in dimensions)))
    return prompts


def _installed_vbench_file() -> Path:
    """The JSON inside the installed package, found but not imported (slow, and needs CLIP)."""
    spec = importlib.util.find_spec("vbench")
    for folder in (spec and spec.submodule_search_locations) or ():
        if (Path(folder) / VBENCH_FILE).is_file():
            return Path(folder) / VBENCH_FILE
    raise UserError(
        "prompts=vbench reads its prompts from the vbench package, which is not installed; "
        f"type {INSTALL_VBENCH} (or prompts.file=path/to/{VBENCH_FILE})"
    )


# -- files ------------------------------------------------------------------------------------


def _read_file(file: str | None) -> list[str]:
    if file is None:
        raise UserError("prompts=file needs a file; type prompts=file prompts.file=prompts.txt")
    path = Path(file).expanduser()
    readers = {".txt": _lines, ".csv": _csv_rows, ".json": _json_items, ".jsonl": _json_lines}
    if path.suffix.lower() not in readers:
        raise UserError(
            f"prompts.file={file} has a format that is not read here; "
            f"type the name of a {', '.join(readers)} file"
        )
    read = readers[path.suffix.lower()]
    prompts = [_checked(value, path, where) for where, value in read(_read_text(path), path)]
    if not prompts:
        raise UserError(f"{path} holds no prompt; write at least one, or type prompts=demo")
    return prompts


def _read_text(path: Path) -> str:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"prompts.file={path} does not exist below {Path.cwd()}") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 (byte {error.start}); save it as UTF-8 and type the same again"
        ) from None
    except OSError as error:
        raise UserError(f"prompts.file={path} cannot be read: {error.strerror}") from None
    if not text.strip():
        raise UserError(f"{path} is empty; write at least one prompt, or type prompts=demo")
    return text


def _split_lines(text: str) -> list[str]:
    """Lines without their ends. Not `splitlines`: it also cuts at form feeds and at U+2028."""
    return re.split(r"\r\n|\n", text.rstrip("\r\n"))


def _lines(text: str, path: Path) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(_split_lines(text), 1):
        yield f"line {number}", line


def _csv_rows(text: str, path: Path) -> Iterator[tuple[str, Any]]:
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = next(rows)
        if "prompt" not in header:
            raise UserError(f"{path} has the columns {header}; name one of them prompt")
        for row in rows:
            if not row:
                continue  # a blank line
            if len(row) != len(header):
                raise UserError(
                    f"{path}, line {rows.line_num}: {len(row)} fields where the header has "
                    f"{len(header)}; put prompts that hold commas in double quotes"
                )
            yield f"line {rows.line_num}", row[header.index("prompt")]
    except csv.Error as error:
        raise UserError(
            f"{path}, line {rows.line_num}: {error}; double a quote that is inside quotes"
        ) from None


def _json_items(text: str, path: Path) -> Iterator[tuple[str, Any]]:
    items = _parse_json(text, path)
    if not isinstance(items, list):
        raise UserError(
            f'{path} is no list; write ["a prompt", ...] or [{{"prompt": "..."}}, ...]'
        )
    for number, item in enumerate(items):
        yield f"entry {number}", _prompt_of(item, path, f"entry {number}")


def _json_lines(text: str, path: Path) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(_split_lines(text), 1):
        item = _parse_json(line, path, f", line {number}")
        yield f"line {number}", _prompt_of(item, path, f"line {number}")


def _prompt_of(item: Any, path: Path, where: str) -> Any:
    if not isinstance(item, dict):
        return item
    if "prompt_en" in item and "prompt" not in item:
        raise UserError(f"{path} is a VBench list; type prompts=vbench prompts.file={path}")
    if "prompt" not in item:
        raise UserError(f'{path}, {where}: an object without "prompt"; write {{"prompt": "..."}}')
    return item["prompt"]


def _parse_json(text: str, path: Path, where: str = "") -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = where or f", line {error.lineno}"
        raise UserError(
            f"{path}{where}, column {error.colno} is not JSON: {error.msg}; mend it there"
        ) from None


# -- checks -----------------------------------------------------------------------------------


def _checked(value: Any, path: Path, where: str) -> str:
    if not isinstance(value, str):
        raise UserError(f"{path}, {where}: {value!r} is no text; write the prompt as a string")
    if not value.strip():
        raise UserError(f"{path}, {where}: the prompt is empty; write one there or remove it")
    if any("\ud800" <= c <= "\udfff" for c in value):  # half an emoji, escaped in JSON
        raise UserError(f"{path}, {where}: {value!r} holds half a character; write it as UTF-8")
    return value


def parse_shard(shard: str) -> tuple[int, int]:
    """(k, n) of "k/n", 1-based. Raises UserError for anything else."""
    match = re.fullmatch(r"([0-9]+)/([0-9]+)", str(shard).strip())
    k, n = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= k <= n:
        raise UserError(
            f"shard={shard} is no share; type shard=k/n with 1 <= k <= n, as in shard=1/8"
        )
    return k, n


def _nearest(word: str, known: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else f"; type one of {', '.join(known)}"
