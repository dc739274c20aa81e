"""Sources of prompts, `prompts=demo|world|file|vbench`, their subsets, and shards.

    demo    six captions of the embedded world, chosen by hand, one per background; the first, which
            a bare `python run.py` makes, is a training caption, the others are held out
    world   held-out captions of the embedded world (never trained on), in a seeded order
    file    your own: .txt (one prompt a line), .csv (column `prompt`), .json, .jsonl
    vbench  the 946 entries of `VBench_full_info.json`; the paper scores a random half, 473

The list is reduced in this order: `subset`, then `count` (the first n; for `world`, the number that
is drawn), then `shard` (every n-th of the rest, so that shards are disjoint and together complete).
An entry keeps its index in the full source, since only 944 of VBench's 946 texts are distinct. Text is
taken literally: nothing in it is interpolated, and only the line end is stripped.

`augmented` names a second list, as long as the full source: the model gets its entry i in place of
entry i (such as VBench's long prompts). Scorers still get entry i of the source (`Prompt.original`;
`original_prompt` in a record).

    python -m s2flow.prompts vbench half [--seed 0] [--out FILE]      # any subset with its hash

Deviation: the paper does not say which 473 prompts it drew; ours follow `prompts.subset_seed`, and
the half of seed 0 is published in `vbench_half.json`, as indices with hashes.
"""

import difflib
import hashlib
import importlib.util
import random
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from s2flow.embedded import world as worlds
from s2flow.errors import UserError
from s2flow.prompts.files import checked, parse_json, read_list, read_text

SOURCES = ("demo", "world", "file", "vbench")
SUBSETS = ("smoke", "half", "full")
SMOKE = 8
WORLD_COUNT = 16  # captions when `prompts=world` gives no count
VBENCH_FILE = "VBench_full_info.json"
VBENCH = {  # the list that the published half was drawn from
    "package": "vbench==0.1.5",
    "file": VBENCH_FILE,
    "sha256": "5dd2de80ee43cda750b2b72ea7023657c0b90d3702041c7e4608c65dbe50dccd",
    "entries": 946,
}
# its pins exclude diffusers
INSTALL_VBENCH = f"python -m pip install --no-deps {VBENCH['package']}"

DEMO = (
    "a large green striped square moves right over a cloudy sky",
    "a large white star moves down in the night sky",
    "a large red ball moves left on grass",
    "a large purple ring grows on sand",
    "a large blue square moves down before a brick wall",
    "a large yellow star spins on a tiled floor",
)


@dataclass(frozen=True)
class Prompt:
    """One entry: its index in the full source, the input of the model, its VBench dimensions.

    original: the entry's own text for scorers, where the model gets another one; else None.
    """

    index: int
    text: str
    dimensions: tuple[str, ...] = ()
    original: str | None = None


def load_prompts(
    source: str,
    *,
    file: str | None,
    subset: str,
    seed: int,
    shard: str,
    count: int | None,
    world: str = "micro",
    augmented: str | None = None,
) -> list[Prompt]:
    """The prompts of one job, sorted by index.

    `subset` is "full", "half" (drawn by `seed`), "smoke" (8, evenly spread) or, for VBench, the
    name of a dimension. `shard` is "k/n", 1-based; with more shards than prompts the last ones
    are empty lists. `world` names the embedded world, and `seed` also orders its captions.
    `augmented` is a file of texts for the model, one per entry of the full source.

    Raises `UserError` for anything that the user can correct.
    """
    if count is not None and count < 1:
        raise UserError(f"prompts.count={count} gives no prompt; type 1 or more, or null for all")
    if source not in SOURCES:
        raise UserError(f"prompts={source} is unknown{_nearest(source, SOURCES)}")
    if file is not None and source not in ("file", "vbench"):
        raise UserError(
            f"prompts={source} reads no file, but prompts.file={file} is set; "
            f"type prompts=file prompts.file={file}"
        )
    k, n = parse_shard(shard)
    if source == "file":
        texts = read_list(file, "prompts.file")
    elif source == "world":  # `count` captions are drawn, before any subset
        texts = _world_captions(world, WORLD_COUNT if count is None else count, seed)
    else:
        texts = DEMO
    prompts = [Prompt(index, text) for index, text in enumerate(texts)]
    if source == "vbench":
        prompts = _read_vbench(file)
    if augmented is not None:
        prompts = _augment(prompts, augmented)
    return select(prompts, subset, seed)[:count][k - 1 :: n]


def _augment(prompts: list[Prompt], file: str) -> list[Prompt]:
    """The same entries, each with the text of the same index in `file` for the model."""
    texts = read_list(file, "prompts.augmented")
    if len(texts) != len(prompts):
        raise UserError(
            f"prompts.augmented={file} holds {len(texts)} prompts, the full source {len(prompts)}; "
            "write one for each entry of the source, in its order, before any subset"
        )
    return [
        p if text == p.text else replace(p, text=text, original=p.text)
        for p, text in zip(prompts, texts, strict=True)
    ]


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


def _world_captions(world: str, count: int, seed: int) -> list[str]:
    known = worlds.WORLDS
    if world not in known:
        raise UserError(
            f"prompts=world has no captions for world {world!r}; it knows {', '.join(known)}: "
            "type backbone=micro, or another prompts="
        )
    return worlds.held_out_captions(known[world], count, seed)


def _read_vbench(file: str | None) -> list[Prompt]:
    path = Path(file).expanduser() if file is not None else installed_vbench_file()
    text = read_text(path, "prompts.file")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != VBENCH["sha256"]:
        print(
            f"warning: {path} is not the list of {VBENCH['package']} (sha256 {digest[:12]}, not "
            f"{VBENCH['sha256'][:12]}): its indices and halves differ from those of other runs",
            file=sys.stderr,
        )
    entries = parse_json(text, path)
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
        text = checked(fields["prompt_en"], path, f"entry {index}")
        prompts.append(Prompt(index, text, tuple(str(d) for d in dimensions)))
    return prompts


def installed_vbench_file() -> Path:
    """The JSON inside the installed package, located without importing it (slow, needs CLIP)."""
    spec = importlib.util.find_spec("vbench")
    for folder in (spec and spec.submodule_search_locations) or ():
        if (Path(folder) / VBENCH_FILE).is_file():
            return Path(folder) / VBENCH_FILE
    raise UserError(
        "prompts=vbench reads its prompts from the vbench package, which is not installed; "
        f"type {INSTALL_VBENCH} (or prompts.file=path/to/{VBENCH_FILE})"
    )


def parse_shard(shard: str) -> tuple[int, int]:
    """(k, n) of "k/n", 1-based. Raises UserError for anything else."""
    match = re.fullmatch(r"([0-9]+)/([0-9]+)", str(shard).strip())
    k, n = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= k <= n:
        raise UserError(
            f"shard={shard} is not valid; type shard=k/n with 1 <= k <= n, as in shard=1/8"
        )
    return k, n


def _nearest(word: str, known: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else f"; type one of {', '.join(known)}"
