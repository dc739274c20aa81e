"""Figure 3's numbers: which clips it shows, where their attention goes, what windows cover and lose.

No notebook: `attention_maps.py` and `window_maps.py` draw what is worked out here. Records are those of
`s2flow.store.read_run`; LR flows are read from runs/lr_cache.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from s2flow.coverage import attention_rows, sample_rows
from s2flow.embedded import backbone as tiny
from s2flow.embedded.world import WORLDS
from s2flow.report.windowmap import read_windows
from s2flow.store import read_run
from s2flow.store.lowflow import find_flow
from s2flow.windows import candidates, choose, fraction_of_volume

AXES = ("t", "h", "w")


def s2flow_clips(runs, policy):
    """Records of clips whose windows this policy chose, those with the paper's setting first."""
    records = [r for p in sorted(Path(runs).glob("*/records")) for r in read_run(p.parent)]
    records = [r for r in records if (r["recipe"].get("windows") or {}).get("name") == policy]
    usual = {"sparsity": 0.5, "density": "volume", "solver": "lri", "order": 2}
    return sorted(records, key=lambda r: -sum(r["recipe"].get(k) == v for k, v in usual.items()))


def clip_to_show(runs, most=64):
    """(record, LR flow, windows): a clip with all three if there is one, else with what there is."""
    clips = s2flow_clips(runs, "adaptive")[:most]
    kept = [(r, read_windows(Path(runs) / r["run_id"], r)) for r in clips]
    kept.sort(key=lambda pair: pair[1] is None)
    for record, windows in kept:
        about = (record["prompt"], record["seed"], record["recipe"])
        flow = find_flow(Path(runs) / "lr_cache", *about)
        if flow is not None:
            return record, flow, windows
    return (kept[0][0], None, kept[0][1]) if kept else (None, None, None)


def has_its_model(record):
    """Whether the weights that made a clip are those of an embedded backbone of this installation."""
    name = record["recipe"]["backbone"]
    return name in WORLDS and tiny.weights_hash(name) == record["recipe"]["weights"]


def attention_at(record, flow, n, most=512):
    """(tokens, query rows, attention (layers, heads, rows, L)) with n LR steps remaining."""
    recipe, seen = record["recipe"], []
    backbone = tiny.load(recipe["backbone"], "cpu")
    z, sigma = flow.flow.z[n], float(flow.flow.sigma[n])
    tokens = backbone.token_grid(tuple(z.shape[1:]))
    rows = sample_rows(int(np.prod(tokens)), most, seed=0)
    words = (recipe["negative_prompt"], recipe["guidance"])
    condition = backbone.encode_prompt([record["prompt"]], *words)

    with backbone.router.observing(lambda layer, q, k: seen.append((q, k))):
        backbone.velocity(z, sigma, condition)
    of = (rows, int(np.prod(tokens)), backbone.router.text)
    return tokens, rows.numpy(), torch.stack([attention_rows(*qk, *of)[0] for qk in seen]).numpy()


def by_distance(tokens, rows, A, axis):
    """(layers, heads, distances): attention of a key at a distance, over that of an average key."""
    where = np.indices(tokens).reshape(3, -1)[axis]
    distance = abs(where[rows][:, None] - where[None])  # (rows, L)
    mean = A.mean((-1, -2), keepdims=True)[..., 0]
    shares = [A[..., distance == d].mean(-1) for d in range(tokens[axis])]
    return np.stack(shares, -1) / mean


def telling_heads(tokens, rows, A):
    """{what it is: (layer, head)}: most local in t, h and w, then the most even; all different."""
    local = [by_distance(tokens, rows, A, axis)[..., 0] for axis in range(3)]
    even = -(A * np.log(A + 1e-12)).sum(-1).mean(-1)
    heads = {}
    named = {f"local in {AXES[i]}": x for i, x in enumerate(local)} | {"most even": even}
    for name, x in named.items():
        order = [tuple(map(int, np.unravel_index(i, x.shape))) for i in x.argsort(axis=None)[::-1]]
        heads[name] = next((pair for pair in order if pair not in heads.values()), order[0])
    return heads


def candidates_at(record, flow, n):
    """(boxes, coverage (layers, heads, boxes), index of the chosen (layers, heads)); Eqs. 8-9."""
    recipe = record["recipe"]
    f = fraction_of_volume(recipe["sparsity"], recipe["density"])
    boxes = candidates(f, recipe["windows"]["exponents"], flow.bricks)
    r = flow.coverage[n, :, 0]  # (layers, heads, g_t, g_h, g_w)
    of_each = torch.stack([r[..., a - 1, b - 1, c - 1] for a, b, c in boxes], -1)
    chosen = (choose(r, boxes)[..., None, :] == torch.tensor(boxes)).all(-1).int().argmax(-1)
    return boxes, of_each.numpy(), chosen.numpy()


def best_by_volume(r):
    """(volumes, coverage): of one head (g_t, g_h, g_w), the most that a box up to a volume covers."""
    bricks = np.prod(np.indices(r.shape) + 1, axis=0).ravel()
    volumes = np.unique(bricks)
    most = np.array([r.ravel()[bricks == volume].max() for volume in volumes])
    return volumes / r.size, np.maximum.accumulate(most)


def regret_table(clips):
    """(HR steps remaining, layers, regret (layers, steps)): means over the clips that have it."""
    cells = [pd.DataFrame(r["oracle"]["regret_by_layer"]).stack() for r in clips]
    mean = pd.concat(cells, axis=1).mean(axis=1).unstack()
    mean.index, mean.columns = mean.index.astype(int), mean.columns.astype(int)
    mean = mean.sort_index().sort_index(axis=1, ascending=False)
    return mean.columns.tolist(), mean.index.tolist(), mean.to_numpy()


def coverage_lines(clips, steps):
    """(HR's own choice, LR's choice, realised density): means over clips, per step."""
    keys = [str(n) for n in steps]
    tables = [{**r["oracle"], "density": r["density"]} for r in clips]
    own, lost, f = (
        np.array([[table[name][n] for n in keys] for table in tables]).mean(0)
        for name in ("coverage", "regret", "density")
    )
    return own, own - lost, f


def oracle_clips(runs):
    """Clips that chose by HR's own attention and say the regret by layer: those of one run."""
    clips = s2flow_clips(runs, "oracle")
    clips = [r for r in clips if "regret_by_layer" in (r.get("oracle") or {})]
    return [r for r in clips if r["run_id"] == clips[0]["run_id"]]
