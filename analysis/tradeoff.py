# %% [markdown]
"""
# Sparsity, quality, time

What quality and what time cost each other: along Table 2's share of attention that is kept, and over
Table 1's methods; beside the paper's numbers, in panels of their own. The clips are made by
`python run.py experiment=table1` and `experiment=table2`.

Quality is VBench's Mean where it is real; else the scores of the embedded world, and the axis says so.
"""

# %%
from style import BLACK, BLUE, COLUMN, GREEN, GREY, ORANGE, PINK, RED, SKY, folders, plt, save

# isort: split
from functools import cache

from stored import PAPER_NUMBERS, chosen, name_of, records_by_run, score_of, tables_of

from s2flow.store import load_records

runs, out = folders(__doc__)
frame, raw = load_records(runs), records_by_run(runs)
LOOKS = {"native": ("o", BLACK), "diffusehigh": ("^", GREEN), "hiflow": ("v", SKY)}
LOOKS |= {"macs": ("D", ORANGE), "cascade": ("s", PINK), "s2flow": ("p", RED)}
LOOKS |= {"bicubic": ("x", GREY)}  # method -> marker, colour
UNEVEN = "unequal threads, batch or device"
WINDOWS = {
    "adaptive": {"marker": "o", "color": BLUE},
    "fixed": {"marker": "s", "color": GREY, "mfc": "white"},
    "other": {"marker": "D", "color": PINK, "mfc": "white"},
}
ASIDE = 0.02  # of f: fixed windows stand so far right of adaptive ones, to be seen beside them


# %%
def points(table, score, seconds):
    """Rows with clips: setting, f, seconds (a column), and (mean, low, high) of the score."""
    rows = []
    for row in table.rows:
        d = score_of(table.runs[row["setting"]], score) if row["run"] else None
        if d is not None and None not in (d.mean, row[seconds]):
            about = {"setting": row["setting"], "f": row["f"], "s": row[seconds]}
            rows.append(about | {"q": (d.mean, d.low, d.high)})
    return rows


def native_seconds(tables, group, column):
    """Of the native row of Table 1 that has the same backbone, steps and size; None: not there."""
    rows = [row for t in tables if t.group == group for row in t.rows]
    return next((row[column] for row in rows if row["setting"] == "native"), None)


@cache
def differing(title, run_ids):
    """In what the clips of a table differ that decides their seconds; printed, once."""
    clips = [r for run in run_ids for r in raw.get(run, [])]
    values = {k: sorted({str(r.get(k)) for r in clips}) for k in ("device", "threads", "batch")}
    words = "; ".join(f"{k} {', '.join(v)}" for k, v in values.items() if len(v) > 1)
    if words:
        print(f"CAUTION: {title}: seconds do not compare, clips differ in {words}")
    return words


def caution(table):
    """What stands over seconds that do not compare."""
    return UNEVEN if differing(table.title, tuple(run.id for run in table.runs.values())) else ""


def draw_interval(ax, x, q, **look):
    """One point with its interval."""
    mean, low, high = q
    ends = None if low is None else [[mean - low], [high - mean]]
    ax.errorbar([x], [mean], ends, elinewidth=0.8, ls="none", **look)


# %% [markdown]
"""
## Along the sparsity

Left ours, over the realised density f, with 95 % intervals over prompts; the dashed line is full
attention, open squares are one window for all heads, open diamonds other policies such as `oracle`
(both moved right by a hair). Right the paper's, over its `s` as published: it is
not said there whether `s` is a share of the volume or of every axis.
"""


# %%
def kind(point):
    """Which windows a row of Table 2 has: adaptive (full attention is their end), fixed or other."""
    setting = point["setting"]
    if "adaptive" in setting or "full" in setting:
        return "adaptive"
    return "fixed" if "fixed" in setting else "other"


def draw_lines(axes, lines, full, form):
    """Quality above time: a line of (x, quality, time), and full attention's dashed."""
    for ax, i in zip(axes, (1, 2), strict=True):
        ax.plot([p[0] for p in lines], [p[i] for p in lines], form, color=BLUE)
        if full:
            ax.axhline(full[i], color=BLACK, ls="--", lw=0.7)


def sparsity_figure(table, score, native):
    """Two columns: ours and the paper's; quality above time."""
    rows = [p for p in points(table, score, "seconds hr") if p["f"] is not None]
    ours = {p["setting"]: (p["f"], p["q"][0], p["s"] / (native or 1)) for p in rows}
    full = next((x for setting, x in ours.items() if setting.startswith("s=1 ")), None)
    chain = [ours[p["setting"]] for p in rows if kind(p) == "adaptive"]
    figure, axes = plt.subplots(2, 2, figsize=(COLUMN, 3), sharex="col")
    draw_lines(axes[:, 0], sorted(chain, key=lambda x: (x is full, x)), full, "-")
    for p in rows:
        x, look = p["f"] + ASIDE * (kind(p) != "adaptive"), WINDOWS[kind(p)]
        draw_interval(axes[0, 0], x, p["q"], **look)
        axes[1, 0].plot(x, ours[p["setting"]][2], ls="none", **look)
    paper = [r for r in PAPER_NUMBERS["table2_sparsity"] if r.get("mean") is not None]
    paper = [(r["sparsity"], r["mean"], 1 / r["speedup"]) for r in paper]  # as published
    draw_lines(axes[:, 1], paper, paper[-1], "o-")
    axes[0, 0].set(ylabel=name_of(score), title=f"{table.group['backbone']}, ours")
    axes[1, 0].set(ylabel="HR seconds / native's" if native else "HR seconds")
    axes[1, 0].set(xlabel="realised density f", title=caution(table))
    axes[0, 1].set(ylabel=name_of("Mean"), title="HunyuanVideo, the paper")
    axes[1, 1].set(ylabel="time / full attention's", xlabel="s as published")
    for ax in axes.flat:
        ax.grid(True)
        ax.set_xlim(0, 1.05)
    for ax in axes[1]:
        ax.set_ylim(0)
    keys = {"adaptive windows": plt.Line2D([], [], color=BLUE, marker="o")}
    keys["full attention"] = plt.Line2D([], [], color=BLACK, ls="--")
    shown = {name: WINDOWS[name] for name in ("fixed", "other") if name in map(kind, rows)}
    keys |= {name: plt.Line2D([], [], ls="none", **look) for name, look in shown.items()}
    look = {"columnspacing": 1, "handletextpad": 0.4}
    figure.legend(keys.values(), keys, ncols=4, loc="lower center", **look)
    figure.tight_layout(pad=0.3, rect=(0, 0.06, 1, 1))
    return figure


methods = tables_of("table1", frame, runs)
for which, table in tables_of("table2", frame, runs).items():
    native = native_seconds(methods.values(), table.group, "seconds hr")
    if native is None:
        print(f"{table.title}: no native run, so HR seconds stand for themselves")
    for score in chosen(table):
        name = f"{which}_{score.split()[-1]}"
        save(sparsity_figure(table, score, native), out / f"tradeoff_sparsity_{name}")

# %% [markdown]
"""
## Over the methods

Up is better, left is faster. Whole clips, from prompt to decoded video, the LR flow counted in full.
"""


# %%
def methods_figure(table, score, native):
    """Ours above, the paper's below, one mark per method."""
    figure, axes = plt.subplots(2, figsize=(COLUMN, 3.6))
    for p in points(table, score, "seconds total"):
        mark, colour = LOOKS.get(p["setting"], ("P", GREY))
        x = p["s"] / (native or 1)
        draw_interval(axes[0], x, p["q"], fmt=mark, color=colour, label=p["setting"])
    unit = "seconds / native's" if native else "seconds"
    axes[0].set(ylabel=name_of(score), xlabel=f"{unit} per clip")
    axes[0].set_title(
        "; ".join(filter(None, (f"{table.group['backbone']}, ours", caution(table))))
    )
    rows = PAPER_NUMBERS["table1"]
    for r in rows:
        mark, colour = LOOKS[r["method"]]
        axes[1].plot(r["minutes"] / rows[0]["minutes"], r["mean"], mark, color=colour)
    axes[1].set(ylabel=name_of("Mean"), xlabel="minutes / native's per clip")
    axes[1].set_title("HunyuanVideo, the paper")
    for ax in axes:
        ax.grid(True)
        ax.set_xlim(0)
    axes[0].legend(loc="center left", bbox_to_anchor=(1, 0.5), handletextpad=0.2)
    figure.tight_layout(pad=0.3)
    return figure


for which, table in methods.items():
    native = native_seconds([table], table.group, "seconds total")
    for score in chosen(table):
        name = f"{which}_{score.split()[-1]}"
        save(methods_figure(table, score, native), out / f"tradeoff_methods_{name}")
