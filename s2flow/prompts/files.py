"""Lists of prompts in files: .txt (one a line), .csv (column `prompt`), .json, .jsonl.

Text is taken literally. Any error in a file is one `UserError` that names the line; `knob` is the
option that named the file.
"""

import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from s2flow.errors import UserError


def read_list(file: str | None, knob: str) -> list[str]:
    """The prompts of a file, at least one."""
    if file is None:
        raise UserError("prompts=file needs a file; type prompts=file prompts.file=prompts.txt")
    path = Path(file).expanduser()
    readers = {".txt": _lines, ".csv": _csv_rows, ".json": _json_items, ".jsonl": _json_lines}
    if path.suffix.lower() not in readers:
        raise UserError(
            f"{knob}={file} has an unsupported format; "
            f"type the name of a {', '.join(readers)} file"
        )
    read = readers[path.suffix.lower()]
    prompts = [checked(value, path, where) for where, value in read(read_text(path, knob), path)]
    if not prompts:
        raise UserError(f"{path} holds no prompt; write at least one, or type prompts=demo")
    return prompts


def read_text(path: Path, knob: str) -> str:
    """A file's text, which is UTF-8 and not empty."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{knob}={path} does not exist below {Path.cwd()}") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 (byte {error.start}); save it as UTF-8 and try again"
        ) from None
    except OSError as error:
        raise UserError(f"{knob}={path} cannot be read: {error.strerror}") from None
    if not text.strip():
        raise UserError(f"{path} is empty; write at least one prompt, or type prompts=demo")
    return text


def _lines(text: str, path: Path) -> Iterator[tuple[str, Any]]:
    """Not by `splitlines`, which also cuts at form feeds and at U+2028."""
    for number, line in enumerate(re.split(r"\r\n|\n", text.rstrip("\r\n")), 1):
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
    items = parse_json(text, path)
    if not isinstance(items, list):
        raise UserError(
            f'{path} is no list; write ["a prompt", ...] or [{{"prompt": "..."}}, ...]'
        )
    for number, item in enumerate(items):
        yield f"entry {number}", _prompt_of(item, path, f"entry {number}")


def _json_lines(text: str, path: Path) -> Iterator[tuple[str, Any]]:
    for where, line in _lines(text, path):
        yield where, _prompt_of(parse_json(line, path, f", {where}"), path, where)


def _prompt_of(item: Any, path: Path, where: str) -> Any:
    if not isinstance(item, dict):
        return item
    if "prompt_en" in item and "prompt" not in item:
        raise UserError(f"{path} is a VBench list; type prompts=vbench prompts.file={path}")
    if "prompt" not in item:
        raise UserError(f'{path}, {where}: an object without "prompt"; write {{"prompt": "..."}}')
    return item["prompt"]


def parse_json(text: str, path: Path, where: str = "") -> Any:
    """Parsed JSON; where: its position in the file, if it is not the whole."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = where or f", line {error.lineno}"
        raise UserError(
            f"{path}{where}, column {error.colno} is not JSON: {error.msg}; correct it there"
        ) from None


def checked(value: Any, path: Path, where: str) -> str:
    """A prompt: text that is not empty and can be written as UTF-8."""
    if not isinstance(value, str):
        raise UserError(f"{path}, {where}: {value!r} is no text; write the prompt as a string")
    if not value.strip():
        raise UserError(f"{path}, {where}: the prompt is empty; write one there or remove it")
    if any("\ud800" <= c <= "\udfff" for c in value):  # as in an escaped half of an emoji
        raise UserError(f"{path}, {where}: {value!r} holds a lone surrogate; write it as UTF-8")
    return value
