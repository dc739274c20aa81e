"""What the galleries show: comparable runs, the prompts that they share, frames and crops.

No notebook: `galleries.py` draws what is chosen here. Runs are those of `experiments/clips.py`.
"""

from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import torch
from clips import DEFAULTS, GROUP, WINDOW_KNOBS, read_runs

from s2flow.store import clip_key, load_records
from s2flow.video import Undecodable, luminance, read_frames

METHODS = ("native", "bicubic", "diffusehigh", "hiflow", "macs", "cascade", "s2flow")


def group_with_most(runs_dir):
    """(backbone, steps, height, width, frames) with the most methods, then clips; and its runs."""
    groups = defaultdict(list)
    for run in read_runs(load_records(runs_dir)):
        if len(run.done):
            groups[tuple(run.knobs[k] for k in GROUP)].append(run)

    def size(group):
        runs = groups[group]
        return len({r.knobs["method"] for r in runs}), sum(len(r.done) for r in runs)

    best = max(groups, key=size, default=None)
    return best, groups[best] if groups else []


def run_of(runs, **asked):
    """The run with these knobs: the nearest to run.py's defaults, with most clips; or None."""
    t_i = Counter(r.knobs["t_i"] for r in runs if r.knobs["t_i"]).most_common(1)
    usual = DEFAULTS | {"t_i": t_i[0][0] if t_i else None}
    fitting = [r for r in runs if all(r.knobs[k] == x for k, x in asked.items())]

    def nearness(run):
        return sum(run.knobs[k] == x for k, x in usual.items()), len(run.done)

    return max(fitting, key=nearness, default=None)


def figure4_runs(runs):
    """{method: run}: LR is shown beside them."""
    return {name: run for name in METHODS if (run := run_of(runs, method=name))}


def figure5_runs(runs):
    """{label: run} of (a) cascade, (b) and (c) s2flow of orders 1 and 2 with the same windows."""
    c = run_of(runs, method="s2flow", solver="lri", order=2, windows="adaptive")
    alike = {k: c.knobs[k] for k in (*WINDOW_KNOBS, "t_i")} if c else {"windows": "adaptive"}
    chosen = {
        "(a) full attention, order 1": run_of(runs, method="cascade"),
        "(b) windows, order 1": run_of(runs, method="s2flow", solver="lri", order=1, **alike),
        "(c) windows, order 2": c,
    }
    return {label: run for label, run in chosen.items() if run}


def shared_clips(chosen, most):
    """(prompt, seed, key) of clips to show, those that most of the chosen runs have first."""
    having = Counter(clip for run in chosen.values() for clip in run.clip_keys())
    order = sorted(having, key=lambda clip: (-having[clip], clip[1], clip[0][0]))
    return [(p, seed, clip_key(p, seed, original)) for (p, original), seed in order[:most]]


def middle_frame(runs_dir, run_id, key, low=False):
    """The middle frame of a clip's video, (H, W, 3) uint8; None if there is none to decode."""
    path = Path(runs_dir) / run_id / "clips" / f"{key}{'.low' * low}.mp4"
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
