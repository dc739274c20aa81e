"""What the galleries show: comparable runs, the prompts that they share, frames and crops.

No notebook: `galleries.py` draws what is chosen here. Rows are those of `experiments/clips.py`.
"""

from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import torch
from clips import CLIP, GROUP, WINDOW_KNOBS, is_done, read_records
from missing import USUAL

from s2flow.store import clip_key, load_records
from s2flow.video import Undecodable, luminance, read_frames

METHODS = ("native", "bicubic", "diffusehigh", "hiflow", "macs", "cascade", "s2flow")


def group_with_most(runs):
    """(backbone, steps, height, width, frames) with the most methods, then clips; and its rows."""
    groups = defaultdict(list)
    for row in filter(is_done, read_records(load_records(runs))):
        groups[tuple(row[k] for k in GROUP)].append(row)
    if not groups:
        return None, []
    return max(groups.items(), key=lambda kv: (len({r["method"] for r in kv[1]}), len(kv[1])))


def run_of(rows, **asked):
    """The row of a run with these knobs: the nearest to run.py's defaults, with most clips."""
    runs = defaultdict(list)
    for row in rows:
        runs[row["run_id"]].append(row)
    t_i = Counter(found[0]["t_i"] for found in runs.values() if found[0]["t_i"]).most_common(1)
    usual = USUAL | {"t_i": t_i[0][0] if t_i else None}
    fitting = [v for v in runs.values() if all(v[0][k] == x for k, x in asked.items())]

    def nearness(found):
        return sum(found[0][k] == x for k, x in usual.items()), len(found)

    return max(fitting, key=nearness, default=[None])[0]


def figure4_runs(rows):
    """{method: row}: LR is shown beside them."""
    return {name: row for name in METHODS if (row := run_of(rows, method=name))}


def figure5_runs(rows):
    """{label: row} of (a) cascade, (b) and (c) s2flow of orders 1 and 2 with the same windows."""
    c = run_of(rows, method="s2flow", solver="lri", order=2, windows="adaptive")
    alike = {k: c[k] for k in (*WINDOW_KNOBS, "t_i")} if c else {"windows": "adaptive"}
    found = {
        "(a) full attention, order 1": run_of(rows, method="cascade"),
        "(b) windows, order 1": run_of(rows, method="s2flow", solver="lri", order=1, **alike),
        "(c) windows, order 2": c,
    }
    return {label: row for label, row in found.items() if row}


def shared_clips(rows, chosen, most):
    """Rows of clips to show, those that most of the chosen runs have first."""
    ids = {row["run_id"] for row in chosen.values()}
    mine = [r for r in rows if r["run_id"] in ids]
    having = Counter(tuple(r[k] for k in CLIP) for r in mine)
    first = {tuple(r[k] for k in CLIP): r for r in reversed(mine)}
    order = sorted(having, key=lambda clip: (-having[clip], clip[2], clip[0]))
    return [first[clip] for clip in order[:most]]


def middle_frame(runs, run_id, clip, low=False):
    """The middle frame of a clip's video, (H, W, 3) uint8; None if there is none to decode."""
    key = clip_key(clip["prompt"], clip["seed"], clip["original_prompt"])
    path = Path(runs) / run_id / "clips" / f"{key}{'.low' * low}.mp4"
    try:
        frames = read_frames(path)
    except Undecodable:
        return None
    return frames[len(frames) // 2].numpy()


def crop_of(frame, share=4):
    """(top, left, height, width) of the part, 1/share of each side, with the most detail."""
    y = luminance(torch.from_numpy(frame)).numpy()
    detail = np.abs(np.diff(y, axis=0, append=y[-1:])) + np.abs(
        np.diff(y, axis=1, append=y[:, -1:])
    )
    h, w = (max(n // share, 1) for n in y.shape)
    total = np.pad(detail.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    inside = total[h:, w:] - total[:-h, w:] - total[h:, :-w] + total[:-h, :-w]
    top, left = np.unravel_index(inside.argmax(), inside.shape)
    return int(top), int(left), h, w
