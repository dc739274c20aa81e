# %% [markdown]
"""
# Runtime (Figure 6)

Seconds of the LR and HR flows in blocks of 10 steps, stacked to whole clips, and what every stage of a
clip takes: measured here, published by the paper, and predicted by the runtime model
(`python -m s2flow.costs`). The clips are made by `python run.py experiment=figure6`.

One panel per machine and backbone, never two on one axis.
"""

# %%
from style import BLACK, BLUE, COLUMN, GREEN, ORANGE, PINK, RED, SKY, folders, plt, save

# isort: split
import json
from statistics import fmean

from stored import PAPER_NUMBERS, lacking, records_by_run, show_markdown

from s2flow.costs import rates_of
from s2flow.costs.paper import READINGS, figure6, paper_clock
from s2flow.costs.yours import model
from s2flow.recipe import LOW
from s2flow.windows import fraction_of_volume

runs, out = folders(__doc__)
SETTING = PAPER_NUMBERS["setting"]
STAGES = {"LR flow": ["lr"], "plan": ["plan"], "hand-off": ["handoff"], "HR flow": ["hr"]}
STAGES |= {"decode": ["decode"], "write": ["write"], "other": ["text", "preview", "diagnostics"]}
COLOURS, MARKS = {"LR": SKY, "HR": ORANGE}, ("o", "s", "D", "^", "v", "P")
TONES = (BLACK, BLUE, RED, GREEN, PINK, ORANGE)


# %%
def is_figure6(recipe):
    """Native HR, or S2Flow, at the paper's steps, t_i, sparsity and order."""
    names = ("steps",) if recipe["method"] == "native" else ("steps", "t_i", "sparsity", "order")
    wanted = {"native": None, "s2flow": "adaptive"}
    windows = (recipe.get("windows") or {}).get("name")
    fits = recipe["method"] in wanted and windows == wanted[recipe["method"]]
    return fits and all(recipe.get(k) == SETTING[k] for k in names)


def machine(r):
    """Whose seconds share an axis, in words."""
    size = "×".join(map(str, r["recipe"]["high"]))
    on = f"{r['device']}, threads {r.get('threads')}, batch {r.get('batch')}"
    return f"{r['recipe']['backbone']}, {size}, {r['recipe']['frames']} frames\n{on}"


def timed_runs(by_run):
    """Machine -> run id -> its records that have the seconds of every step."""
    found = {}
    for run, records in by_run.items():
        for r in records:
            if r.get("step_seconds") and is_figure6(r["recipe"]):
                found.setdefault(machine(r), {}).setdefault(run, []).append(r)
    return found


def density(records):
    """The share f of query-key pairs that a run really computed."""
    return fmean(fmean(r["density"].values()) for r in records)


def label(records):
    """Method, and of S2Flow its f."""
    method = records[0]["recipe"]["method"]
    return method if method == "native" else f"{method}, f = {density(records):.3g}"


def in_tens(seconds):
    """Seconds by steps remaining -> sums over blocks of 10, from noise to video."""
    steps = [seconds[n] for n in sorted(seconds, key=int, reverse=True)]
    return [sum(steps[i : i + 10]) for i in range(0, len(steps), 10)]


def low_key(r):
    """Clips that share an LR flow."""
    knobs = (r["recipe"].get(k) for k in (*LOW, "brick_low", "coverage_rows"))
    return json.dumps([r["prompt"], r["seed"], *knobs])


def flow_blocks(records, others):
    """("LR" or "HR", seconds) of every block of 10 steps, mean over clips.

    An LR flow that was reused was timed where it was made: by one of `others`.
    """
    made = {low_key(r): r["step_seconds"]["lr"] for r in others if "lr" in r["step_seconds"]}
    low = [in_tens(made[low_key(r)]) for r in records if low_key(r) in made]
    high = [in_tens(r["step_seconds"]["hr"]) for r in records]
    if records[0]["recipe"]["method"] == "native":
        low = []
    sides = {"LR": low, "HR": high}
    return [(side, fmean(b)) for side, bs in sides.items() for b in zip(*bs, strict=True)]


def paper_rows(clock):
    """(label, blocks) of the paper's clips: as published, and by the runtime model."""
    low, native, *ours = figure6(clock)
    N, t_i = SETTING["steps"] // 10, SETTING["t_i"] // 10
    steps = {"published": "reported_seconds", "model": "predicted_seconds"}
    rows = [(f"native, {word}", [("HR", native[key])] * N) for word, key in steps.items()]
    cascade = [("LR", low["reported_seconds"])] * N
    rows.append(("s2flow, published", cascade + [("HR", ours[0]["reported_seconds"])] * t_i))
    for row in ours:
        blocks = cascade + [("HR", row["predicted_seconds"])] * t_i
        rows.append((f"s2flow, model f = {row['f']:g}", blocks))
    return rows


def digits(seconds):
    """Three of them."""
    return f"{seconds:#.3g}".rstrip(".") if seconds < 1000 else f"{seconds:.0f}"


# %%
def draw_blocks(ax, rows, title):
    """One bar per clip, in blocks of 10 steps, each with its seconds where they fit."""
    longest = max(sum(s for _, s in blocks) for _, blocks in rows)
    for y, (name, blocks) in enumerate(rows):
        at = 0
        for side, s in blocks:
            look = {"hatch": "////", "alpha": 0.55} if "model" in name else {}
            ax.barh(y, s, 0.7, at, color=COLOURS[side], edgecolor="white", lw=0.6, **look)
            if s > 0.075 * longest and not look:
                ax.text(at + s / 2, y, digits(s), ha="center", va="center", fontsize=5.5)
            at += s
        ax.text(at + 0.01 * longest, y, digits(at), va="center")
    ax.set_yticks(range(len(rows)), [name for name, _ in rows])
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.set_xlim(0, 1.13 * longest)
    ax.set_title(title)


def blocks_figure(panels):
    """panels: title -> (label, blocks) of every clip."""
    heights = [len(rows) + 1.5 for rows in panels.values()]
    size = (COLUMN, 0.25 + 0.24 * sum(heights))
    figure, axes = plt.subplots(len(panels), figsize=size, squeeze=False, height_ratios=heights)
    for ax, (title, rows) in zip(axes[:, 0], panels.items(), strict=True):
        draw_blocks(ax, rows, title)
    axes[-1, 0].set_xlabel("seconds of the flows of one clip, in blocks of 10 steps")
    keys = [plt.Rectangle((0, 0), 1, 1, color=c) for c in COLOURS.values()]
    axes[-1, 0].legend(keys, COLOURS, loc="lower right", handlelength=1)  # by the short bars
    figure.tight_layout(pad=0.3)
    return figure


timed = timed_runs(records_by_run(runs))
clock = paper_clock()
panels = {}
for title, found in timed.items():
    every = sorted(found.values(), key=density, reverse=True)  # native first
    timed[title] = {label(rs): rs for rs in every}
    panels[title] = [(label(rs), flow_blocks(rs, sum(every, []))) for rs in every]
if not timed:
    lacking("runs of Figure 6 with the seconds of every step", "experiment=figure6", runs)
size = "×".join(map(str, reversed(SETTING["high_resolution"])))
title = f"{SETTING['backbone']}, {size}, {SETTING['frames']} frames\n{SETTING['gpus']} (the paper)"
panels[title] = paper_rows(clock)
save(blocks_figure(panels), out / "figure6_blocks")

# %% [markdown]
"""
Orange is HR, blue LR; hatched bars are the model's. The model takes the paper's 51 s of 10 LR steps as
its yardstick and counts FLOPs: it meets the published native clip, and says under which reading of
"50 %" the published S2Flow time is possible at all. An embedded backbone has so few tokens at HR that
attention is a small share of a step, and windows that skip it cannot save what is not there.
"""


# %%
def per_ten(rows):
    """Mean seconds of 10 steps at LR and HR, and how often HR fits into native's."""
    found, native = [], None
    for name, blocks in rows:
        low, high = ([s for side, s in blocks if side == k] for k in COLOURS)
        native = fmean(high) if name.startswith("native") else native
        gain = f"{native / fmean(high):.2f}" if native else ""
        cells = (name, digits(fmean(low)) if low else "", digits(fmean(high)), gain)
        found.append("| " + " | ".join(cells) + " |")
    return found


for name, rows in panels.items():
    head = ["", name.replace("\n", ", "), "", "| seconds of 10 steps | LR | HR | native HR / HR |"]
    show_markdown("\n".join([*head, "|---" * 4 + "|", *per_ten(rows), ""]))

# %% [markdown]
"""
## Stages of a clip

Seconds of each stage, on a logarithmic axis; `other` is text, preview and diagnostics. Here coverage is
recorded inside the LR flow, so `plan` is only the choice of windows; in the model `plan` is coverage.
The model's clip runs on the paper's GPUs at the rate that the paper's LR steps achieve, with the
autoencoder in float32 on one of them, as this implementation does it: compare its hand-off and
decoding with what Table 1 leaves for everything beside the transformer, printed below. Writing is not
in the model.
"""


# %%
def stage_seconds(records):
    """Mean seconds of each stage that a run has."""
    mean = {k: fmean(r["seconds"].get(k, 0) for r in records) for k in records[0]["seconds"]}
    found = {name: sum(mean.get(k, 0) for k in keys) for name, keys in STAGES.items()}
    return {name: s for name, s in found.items() if s > 0}


def model_stages(clock):
    """The same of the runtime model, of native and both readings of the sparsity."""
    rate = clock.utilisation(clock.low_seconds, clock.low.flops())
    yours = model("hunyuan", "H800", rates_of("H800", tflops=rate), clock.gpus)
    names = {keys[0]: name for name, keys in STAGES.items()}
    whole = {names[row["stage"]]: row["seconds"] for row in yours.stages()}
    steps, t_i = yours.recipe.steps / 10, yours.recipe.t_i / 10
    few = {k: whole[k] for k in ("decode", "other")}
    found = {"native": few | {"HR flow": steps * yours.ten_steps(yours.high)}}
    for reading in READINGS:
        f = fraction_of_volume(yours.recipe.sparsity, reading)
        high = {"HR flow": t_i * yours.ten_steps(yours.high, f)}
        found[f"s2flow, f = {f:g}"] = whole | high
    return found


def stages_figure(panels):
    """Dots on a logarithmic axis, one row per stage."""
    size = (COLUMN, 1.75 * len(panels) + 0.1)
    figure, axes = plt.subplots(len(panels), figsize=size, squeeze=False)
    for ax, (title, by_run) in zip(axes[:, 0], panels.items(), strict=True):
        for mark, colour, (name, found) in zip(MARKS, TONES, by_run.items(), strict=False):
            y = [list(STAGES).index(k) for k in found]
            ax.semilogx([*found.values()], y, mark, color=colour, mfc="none", label=name)
        ax.set_yticks(range(len(STAGES)), STAGES)
        ax.set_ylim(len(STAGES) - 0.5, -0.5)
        ax.grid(True)
        ax.set_title(title)
        ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), handletextpad=0.2)
    axes[-1, 0].set_xlabel("seconds per clip")
    figure.tight_layout(pad=0.3)
    return figure


stages = {
    name: {who: stage_seconds(rs) for who, rs in found.items()} for name, found in timed.items()
}
stages[title.replace("(the paper)", "(runtime model)")] = model_stages(clock)
save(stages_figure(stages), out / "figure6_stages")
for name, by_run in stages.items():
    head = ["", name.replace("\n", ", "), "", f"| stage, s | {' | '.join(by_run)} |"]
    head.append("|---" * (len(by_run) + 1) + "|")
    cells = ((k, *(digits(f[k]) if k in f else "" for f in by_run.values())) for k in STAGES)
    show_markdown("\n".join([*head, *("| " + " | ".join(row) + " |" for row in cells), ""]))
print(f"beside the transformer, by Table 1: {60 * clock.rest:.0f} s (MACS), ", end="")
print(f"{60 * clock.rest_of_s2flow:.0f} s (S2Flow)")
