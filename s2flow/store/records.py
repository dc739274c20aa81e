"""Records: the metadata of a finished clip, one JSON file each."""

import hashlib
from pathlib import Path
from typing import Any

from s2flow.store.files import read_json
from s2flow.store.scorebook import ScoreBook

STAGES = ("text", "lr", "plan", "handoff", "hr", "decode")  # from prompt to decoded video
# fields of every record, with the types that its readers rely on
REQUIRED = {"run_id": str, "recipe": dict, "prompt": str, "seed": int, "video": str, "bytes": int}
REQUIRED |= {"seconds": dict}


def clip_key(prompt: str, seed: int, original: str | None = None) -> str:
    """Sixteen hexadecimal digits of (prompt, seed): the clip's name within its run.

    original: the entry that an augmented prompt replaces. It decides no pixel, but it is what the clip
    is scored with, so two entries with one augmented prompt are two clips.
    """
    entry = "" if original in (None, prompt) else f"\0{original}"
    text = f"{seed}\0{prompt}{entry}".encode(errors="surrogatepass")
    return hashlib.sha256(text).hexdigest()[:16]


def key_of(record: dict[str, Any]) -> str:
    """The key that a record's clip should have."""
    return clip_key(record["prompt"], record["seed"], record.get("original_prompt"))


def read_record(path: Path) -> dict[str, Any] | None:
    """A complete record, or None; its scores are in the score book."""
    record = read_json(path)
    if record is None or record.get("status") != "ok":
        return None
    return record if all(isinstance(record.get(k), t) for k, t in REQUIRED.items()) else None


def read_run(folder: Path) -> list[dict[str, Any]]:
    """The records of a run's finished clips with their scores, by name."""
    records = map(read_record, sorted((folder / "records").glob("[!.]*.json")))  # no temporaries
    book = ScoreBook(folder)
    return [book.joined(record) for record in records if record is not None]


def generation_seconds(record: dict[str, Any]) -> float | None:
    """Seconds from prompt to decoded video, without writing, scoring and diagnostics.

    The LR flow counts in full even where a sweep reused it, since it is part of a clip's cost.
    None for a clip that was made elsewhere.
    """
    if not record["seconds"]:
        return None
    return sum(record["seconds"].get(stage, 0.0) for stage in STAGES)
