# %% [markdown]
"""
# Tables 1-4

The paper's four tables from the runs of this store, beside the published numbers; the paired
differences behind the marks, as figures; the claims, decided; and blind votes, if there are any.

The clips are made by `python run.py experiment=table1` ... `table4`, the claims by
`python experiments/claims.py --run`. Votes are files `votes*.json` of the gallery page's blind mode,
put into the store's folder.

Embedded backbones are toys: their scores are their own world's (`own ...`), and their levels say
nothing about the paper's model. Compare how rows differ, not how high they are.
"""

# %%
from style import COLUMN, folders, intervals, plt, save, show

# isort: split

from sheet import FORMATS
from stored import RESULTS, chosen, name_of, tables_of

from s2flow.errors import UserError
from s2flow.report.preferences import left_share, ranking, read_votes, win_rates
from s2flow.store import load_records

runs, out = folders(__doc__)
frame = load_records(runs)


# %%
def difference_figure(table, scores):
    """Rows minus the reference row, prompt by prompt."""
    labels = list(table.differences)
    size = (COLUMN, 0.65 + 0.17 * len(labels))
    figure, axes = plt.subplots(1, len(scores), figsize=size, sharey=True, squeeze=False)
    for ax, score in zip(axes[0], scores, strict=True):
        of = [table.differences[label][score] for label in labels]
        intervals(ax, [(d.mean, d.low, d.high) for d in of], [d.is_real for d in of])
        ax.axvline(0, color="black", lw=0.6)
        ax.set_xlabel(name_of(score))
    axes[0, 0].set_yticks(range(len(labels)), labels)
    group = table.group
    what = f"{table.title.split(':')[0]}, {group['backbone']}: minus {table.reference}, 95 % intervals"
    figure.suptitle(what, x=0.01, ha="left", fontsize=7)
    figure.tight_layout(pad=0.3)
    return figure


def show_table(name):
    """The tables of all backbones and sizes, with a file of each format and figures."""
    tables = tables_of(name, frame, runs)
    if not tables:
        return
    pages = {form: FORMATS[form](list(tables.values())) for form in ("text", "md", "html")}
    show(pages["text"], pages["html"])
    for form in ("md", "html"):
        (out / f"{name}.{form}").write_text(pages[form], encoding="utf-8")
    for which, table in tables.items():
        scores = chosen(table)
        if scores and table.differences:
            save(difference_figure(table, scores), out / f"{name}_{which}_differences")


# %% [markdown]
"""
In the figures a dot is the mean difference over prompts, a line its 95 % interval. Full blue dots are
those whose interval leaves out 0 while at least six prompts differ. Each stands alone: of twenty
differences that are none, about one is blue all the same.

## Table 1: methods
"""

# %%
show_table("table1")

# %% [markdown]
"""
## Table 2: sparsity

The paper's seconds fit windows of `s` along every axis better than windows of `s` of the volume
(`analysis/runtime.py`); column f is what was really computed here.
"""

# %%
show_table("table2")

# %% [markdown]
"""
## Table 3: order of the solver

Rows beside the paper's are solvers that borrow nothing from the LR flow (`analysis/solver.py`).
"""

# %%
show_table("table3")

# %% [markdown]
"""
## Table 4: hand-off step

The paper's t_i counts 50 steps; rows are matched by the fraction.
"""

# %%
show_table("table4")

# %% [markdown]
"""
## Claims

Each sentence of the paper, decided by a rule that was written down before: confirmed, refuted, or
undecided where the interval or the runs do not suffice.
"""


# %%
CLAIMS = sorted(RESULTS.glob("claims_*.md"))  # of experiments/claims.py, one per backbone
if not CLAIMS:
    print("missing: the claims; decide them with: python experiments/claims.py --run")
for file in CLAIMS:
    show(file.read_text(encoding="utf-8"))

# %% [markdown]
"""
## Blind votes

Win rate of `a`: mean over prompts, a tie is half a win, with a bootstrap interval over prompts. Of
more than two, theta is Bradley and Terry's strength in log odds, mean 0.
"""


# %%
def votes_figure(rates):
    """Win rates of every two that met."""
    figure, ax = plt.subplots(figsize=(COLUMN, 0.7 + 0.17 * len(rates)))
    rows = [(r.rate, r.low, r.high) for r in rates.itertuples()]
    intervals(ax, rows, list(rates["decided"]))
    ax.axvline(0.5, color="black", lw=0.6)
    ax.set_yticks(range(len(rates)), [f"{r.a} over {r.b}" for r in rates.itertuples()])
    ax.set_xlim(0, 1)
    ax.set_xlabel("win rate, share of votes of a prompt")
    return figure


def show_votes():
    """What people preferred, if they were asked."""
    files = sorted(runs.glob("votes*.json"))
    if not files:
        print(f"no votes: vote on the page of python -m s2flow.report {runs}, save to {runs}")
        return
    try:
        votes = read_votes(*files)
        rates = win_rates(votes)
        share, low, high = left_share(votes)
        print(f"{len(votes)} votes; the left side won {share:.2f} [{low:.2f}, {high:.2f}]")
        show(rates.to_string(index=False), rates.to_html(index=False))
        save(votes_figure(rates), out / "win_rates")
        if len({*rates["a"], *rates["b"]}) > 2:
            best = ranking(votes)
            show(best.to_string(index=False), best.to_html(index=False))
    except UserError as error:
        print(error)


show_votes()
