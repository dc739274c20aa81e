"""Clips from elsewhere as a run of the store, and a run in VBench's layout: what either calls a clip.

    0001.mp4               by its place in a list of prompts; the first is 1, or 0 where a 0 exists
    {prompt}-{index}.mp4   VBench's naming: the prompt is the name's own

`imported` copies a folder of mp4s into a run with method "foreign", so that scorers, tables and the
page work on it unchanged. Its recipe is a hash of the clips with their prompts: the same folder is the
same run, a changed one another. The seed is VBench's index, else 0, 1, ... of places with one text.

`export_vbench` copies the clips of a run to `{prompt}-{index}.mp4`. The index counts the seeds of a
prompt, from the least; foreign clips keep theirs. Of an augmented prompt it is the list's own entry.
"""

import hashlib
import json
import re
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from s2flow.errors import UserError
from s2flow.prompts.files import checked, read_list
from s2flow.store.files import copy_whole, sha256_of
from s2flow.store.recipes import VERSION, id_of
from s2flow.store.records import clip_key, read_record
from s2flow.store.run import Store
from s2flow.store.verify import fault
from s2flow.video import Undecodable, stated_rate, stated_size

METHOD = "foreign"
VBENCH_NAME = re.compile(r"(.+)-(\d+)", re.DOTALL | re.ASCII)
LONGEST = 255  # bytes of a file name
SHOWN = 3  # names in an error

Record = dict[str, Any]


def imported(videos: Path, prompts: str | None, runs_dir: Path) -> str:
    """Copy the mp4s of a folder into a run below `runs_dir`; prints a line, returns the run's id.

    prompts: a file of prompts (`s2flow.prompts.files`). Raises UserError before anything is written for
    a name that matches no prompt, two that are one clip, and a file that is no video.
    """
    try:
        files = sorted(p for p in videos.iterdir() if p.is_file() and p.name[0] != ".")
    except OSError as error:
        raise UserError(
            f"videos={videos}: {error.strerror}; type the folder of the clips"
        ) from None
    clips = [p for p in files if p.suffix.lower() == ".mp4"]
    if not clips:
        raise UserError(f"videos={videos} holds no .mp4 ({len(files)} other files)")
    texts = None if prompts is None else read_list(prompts, "prompts")
    records = [_described(*named) for named in _named(clips, texts)]
    known = sorted([r["prompt"], r["seed"], r["sha256"]] for r in records)
    digest = hashlib.sha256(json.dumps(known).encode()).hexdigest()
    recipe = {"backbone": METHOD, "method": METHOD, "clips": digest}
    run_id, name = id_of(VERSION, recipe), videos.resolve().name
    store = Store(runs_dir, run_id, {"version": VERSION, **recipe})
    try:
        for path, record in zip(clips, records, strict=True):
            key = clip_key(record["prompt"], record["seed"])
            if store.record(key) is None:
                copy_whole(path, store.path("clips", f"{key}.mp4"), record["sha256"])
                own = {"run_id": run_id, "recipe": recipe, "variant": name, "at": time.time()}
                store.commit(key, record | own | {"video": f"clips/{key}.mp4"})
    except OSError as error:
        raise UserError(f"{store.folder} is incomplete: {error.strerror or error}") from None
    others, unused = (
        len(files) - len(clips),
        len({*(texts or ())} - {r["prompt"] for r in records}),
    )
    more = f"; left out, since no .mp4: {others} files" if others else ""
    more += f"; {unused} prompts of {prompts} have no clip" if unused else ""
    example = f"{clips[0].name} is {records[0]['prompt']!r}"
    print(f"{len(clips)} clips of {videos} are run {run_id} in {runs_dir} ({example}){more}")
    return run_id


def _named(clips: list[Path], texts: list[str] | None) -> list[tuple[Path, str, int, int]]:
    """(file, prompt, seed, place in the list) of every clip."""
    place = {text: i for i, text in reversed([*enumerate(texts or ())])}
    numbers = {p: int(p.stem) for p in clips if texts is not None and p.stem.isdecimal()}
    first, named, lost = (0 if 0 in numbers.values() else 1), [], []
    for path in clips:
        match, i = VBENCH_NAME.fullmatch(path.stem), numbers.get(path, 0) - first
        if path in numbers and i < len(texts):
            seed = sum(texts[n - first] == texts[i] for n in numbers.values() if n < i + first)
            named.append((path, texts[i], seed, i))
        elif path not in numbers and match and (texts is None or match[1] in place):
            text = checked(match[1], path, "its name")
            at = place.setdefault(text, len(place))
            named.append((path, text, int(match[2]), at))
        else:
            lost.append(path.name)
    if lost:
        wanted = "names of prompts=FILE" if texts is None else f"of the {len(texts)} prompts"
        raise UserError(
            f"{len(lost)} of {len(clips)} clips have no prompt: {some(lost)}; name them "
            f"'{{prompt}}-{{index}}.mp4', or 0001.mp4 by place, {wanted}; nothing was copied"
        )
    count = Counter(clip[1:3] for clip in named)
    if twice := [path.name for path, *clip, _ in named if count[tuple(clip)] > 1]:
        raise UserError(f"{some(twice)} are one clip by their names; rename or remove one of them")
    return named


def _described(path: Path, prompt: str, seed: int, place: int) -> Record:
    """What the record of a foreign clip holds of its file."""
    try:
        size, fps = stated_size(path), stated_rate(path)
    except Undecodable as error:
        raise UserError(f"{error}; remove it or make it again; nothing was copied") from None
    if not size[0]:
        raise UserError(f"{path} states no number of frames; rewrite it: ffmpeg -i IN -c copy OUT")
    record = {"status": "ok", "prompt": prompt, "prompt_index": [place], "seed": seed}
    record |= {"file": path.name, "sha256": sha256_of(path), "bytes": path.stat().st_size}
    record |= dict(zip(("frames", "height", "width"), size, strict=True))
    return record | ({"fps": fps} if fps else {}) | {"seconds": {}, "peak_mib": {}}


def vbench_names(records: Iterable[Record]) -> dict[str, str]:
    """{key of a clip: `{prompt}-{index}`} for the records of one run."""
    names, counted = {}, Counter()
    for record in sorted(records, key=lambda r: (r["seed"], r["prompt"])):
        text = record.get("original_prompt") or record["prompt"]
        own = record["recipe"].get("method") == METHOD
        names[Path(record["video"]).stem] = f"{text}-{record['seed'] if own else counted[text]}"
        counted[text] += 1
    return names


def export_vbench(run: Path, to: Path) -> tuple[int, list[str]]:
    """Copy a run's clips to `{prompt}-{index}.mp4`: how many, and a line for each that stays behind.

    Raises UserError if this is no run, or if other files have these names, before anything is copied.
    """
    paths = sorted((run / "records").glob("[!.]*.json"))
    if not paths:
        raise UserError(f"{run} is no run with finished clips; type runs/RUN, a line of `ls`")
    read = [(path, read_record(path)) for path in paths]
    names, copies, left = vbench_names(r for _, r in read if r is not None), [], []
    for path, record in read:
        if (wrong := fault(path, record, fast=False)) is not None:
            left.append(f"{wrong[0]}: {wrong[1]}")
        elif why := _no_name(name := f"{names[path.stem]}.mp4"):
            left.append(f"{run / record['video']}: its prompt {why}: {name[:-4]!r}")
        else:
            copies.append((run / record["video"], to / name, record["sha256"]))
    taken = [t.name for _, t, sha256 in copies if t.exists() and sha256_of(t) != sha256]
    if taken:
        raise UserError(f"{to} holds other files named {some(taken)}; type another folder")
    for source, target, sha256 in copies:
        copy_whole(source, target, sha256)
    return len(copies), left


def _no_name(name: str) -> str:
    """Why a text can be no file name; "" if it can."""
    bad = [c for c in ("/", "\0") if c in name]
    size = len(name.encode())
    return f"holds {bad[0]!r}" if bad else f"needs {size} bytes of {LONGEST}" * (size > LONGEST)


def some(names: list[str]) -> str:
    """The first few of a list of names."""
    return ", ".join(map(repr, names[:SHOWN])) + ", ..." * (len(names) > SHOWN)
