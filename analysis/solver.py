# %% [markdown]
"""
# The solver (Eqs. 10-12, Table 3)

Does a derivative borrowed from the LR flow make the HR flow's steps better? Three views: the global
error of every solver over the number of steps, with full attention; the scores of Table 3; and, step
by step, the cosine between the borrowed v' and the HR flow's own. The errors are measured by
`python experiments/solver_error.py`, the clips are made by `python run.py experiment=table3`.
"""

# %%
from style import BLACK, BLUE, COLUMN, GREY, ORANGE, folders, intervals, plt, save

# isort: split
import json

from error_plot import LOOK, drawn
from stored import (
    PAPER_NUMBERS,
    RESULTS,
    chosen,
    from_zero,
    lacking,
    name_of,
    records_by_run,
    score_of,
    tables_of,
)

from s2flow.store import load_records

runs, out = folders(__doc__)
frame, raw = load_records(runs), records_by_run(runs)

# %% [markdown]
"""
## Global error

Relative error of the HR flow's end against a far finer grid, from one hand-off state, mean over
prompts. Beside each solver stands its slope over the last doubling: -1 is first order. `gaussian` is
a pair of closed-form flows, where the LR flow knows the HR flow as well as it ever could.
"""


# %%
FILES = sorted(RESULTS.glob("*solver_error*.json"))
if not FILES:
    print("missing: solver errors; measure them with: python experiments/solver_error.py")
for file in FILES:
    result = json.loads(file.read_text(encoding="utf-8"))
    rows = result["rows"]
    if not rows or any(row["error"].keys() < LOOK.keys() for row in rows):
        print(f"{file.name}: other solvers; measure them again with: {result['command']}")
        continue
    print(f"{file.name}: {result['command']}")
    figure = drawn(rows)
    figure.suptitle(file.stem.replace("_solver_error", " "), x=0.01, ha="left", fontsize=7)
    save(figure, out / file.stem.replace("=", ""))

# %% [markdown]
"""
## Scores by order

Left ours with 95 % intervals over prompts, right the paper's Mean. Intervals of neighbours overlap more
than their difference is unsure, since prompts are shared: the differences stand in
`analysis/tables.py`. `ab2` and `lri_cv` are ours: a history of the HR flow itself, and a regression of
it on the LR flow.
"""


# %%
def order_rows(table, score):
    """Setting -> (mean, low, high), of rows that are scored."""
    scored = {name: score_of(run, score) for name, run in table.runs.items()}
    return {name: (d.mean, d.low, d.high) for name, d in scored.items() if d.mean is not None}


def order_figure(table, scores):
    """One panel per score, and the paper's."""
    panels = {f"{table.group['backbone']}, {name_of(s)}": order_rows(table, s) for s in scores}
    paper = {f"order {r['order']}": (r["mean"], None, None) for r in PAPER_NUMBERS["table3_order"]}
    panels[f"paper, {name_of('Mean')}"] = paper
    labels = list(dict.fromkeys(label for rows in panels.values() for label in rows))
    size = (COLUMN, 0.6 + 0.17 * len(labels))
    figure, axes = plt.subplots(1, len(panels), figsize=size, sharey=True)
    for ax, (title, rows) in zip(axes, panels.items(), strict=True):
        intervals(ax, [rows.get(label, (None, None, None)) for label in labels])
        ax.set_xlabel(title.replace(", ", "\n"))
        ax.locator_params(axis="x", nbins=2)
    means = [mean for mean, _, _ in paper.values()]
    axes[-1].set_xticks([min(means), max(means)])
    axes[-1].margins(x=0.2)
    axes[0].set_yticks(range(len(labels)), labels)
    figure.tight_layout(pad=0.3)
    return figure


for which, table in tables_of("table3", frame, runs).items():
    scores = chosen(table)
    if scores:
        save(order_figure(table, scores), out / f"solver_orders_{which}")

# %% [markdown]
"""
## Is the borrowed derivative the right one?

Cosine of v' with the HR flow's own central difference, over the steps that remain, mean over prompts
with 95 % intervals. `LR` is what Eq. 12 borrows; `own past` is the HR flow's last difference, which
costs as little. Of two vectors of equal length borrowing helps from 0.5 on (the dashed line).
"""

# %%
SOURCES = {"lri": ("LR (Eq. 12)", ORANGE, "s"), "history": ("own past (AB2)", BLUE, "o")}
SETTING = PAPER_NUMBERS["setting"]
USUAL = {"solver": "lri", "density": "volume"} | {k: SETTING[k] for k in ("order", "sparsity")}


def cosines(clips, source):
    """Steps remaining -> (mean, low, high) over prompts of a run's records."""
    by_step = {}
    for r in clips:
        key = ((r["prompt"], r.get("original_prompt")), r["seed"])
        for n, x in ((r.get("derivative_cosine") or {}).get(source) or {}).items():
            by_step.setdefault(int(n), {})[key] = x
    means = {n: from_zero(by_step[n]) for n in sorted(by_step, reverse=True)}
    return {n: (d.mean, d.low, d.high) for n, d in means.items() if d.mean is not None}


def cosine_runs(by_run):
    """(Backbone, steps) -> the run nearest to the paper's setting, then the one with most clips."""
    ranked = []
    for run, clips in by_run.items():
        if clips := [r for r in clips if r.get("derivative_cosine")]:
            recipe = clips[0]["recipe"]
            usual = sum(recipe.get(k) == v for k, v in USUAL.items())
            usual += recipe["t_i"] * SETTING["steps"] == SETTING["t_i"] * recipe["steps"]
            key = (recipe["backbone"], recipe["steps"])
            ranked.append(((usual, len(clips), run), key, clips))
    ranked.sort(key=lambda each: each[0])  # the best of a key comes last
    return {key: (rank[-1], clips) for rank, key, clips in ranked}


def cosine_figure(clips, title):
    """Both sources over the steps, from noise to video."""
    figure, ax = plt.subplots(figsize=(COLUMN, 2))
    for source, (name, colour, mark) in SOURCES.items():
        ends = cosines(clips, source)
        means = [mean for mean, _, _ in ends.values()]
        ax.plot(list(ends), means, color=colour, marker=mark, label=name)
        ends = {n: e for n, e in ends.items() if e[1] is not None}
        low, high = ([e[i] for e in ends.values()] for i in (1, 2))
        ax.fill_between(list(ends), low, high, color=colour, alpha=0.25, lw=0)
    ax.axhline(0.5, color=BLACK, ls="--", lw=0.7)
    ax.axhline(0, color=GREY, lw=0.6)
    ax.set(xlabel="steps remaining n", ylabel="cosine with HR's v'", title=title)
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.invert_xaxis()
    ax.set_ylim(top=1)
    ax.grid(True)
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    figure.tight_layout(pad=0.3)
    return figure


best = cosine_runs(raw)
for (backbone, steps), (run, clips) in best.items():
    knobs = (f"{k} {clips[0]['recipe'].get(k)}" for k in ("solver", "order", "t_i"))
    title = f"{backbone}, {', '.join(knobs)}; {len(clips)} clips of {run}"
    save(cosine_figure(clips, title), out / f"solver_cosines_{backbone}_{steps}")
if not best:
    lacking("clips with cosines of v'", "experiment=table3", runs)
