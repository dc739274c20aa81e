"""Notebooks of tables, runtime, tradeoff and solver: they run on any store, and draw what is stored."""

import contextlib
import functools
import importlib
import io
import json
import runpy
import sys
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
from finished import finished_run

pytest.importorskip("matplotlib", reason="the notebooks draw: pip install s2flow[analysis]")

from s2flow.costs import paper, yours
from s2flow.store import write_json

ROOT = Path(__file__).parents[2]
ANALYSIS, EXPERIMENTS = ROOT / "analysis", ROOT / "experiments"
NOTEBOOKS = ("tables", "runtime", "tradeoff", "solver")
OWN = ("world_agreement", "detail")
PROMPTS = [(f"p{i}", 0) for i in range(7)]
MADE = {"device": "cpu, some CPU", "threads": 2, "batch": 1, "outcome": "ok"}
COMMON = {"backbone": "micro", "steps": 20, "shift": 1.5, "guidance": 4.0, "negative_prompt": ""}
WINDOWS = {"sparsity": 0.5, "density": "volume", "windows": {"name": "adaptive"}}
S2FLOW = COMMON | WINDOWS | {"method": "s2flow", "low": [16, 24], "t_i": 12, "handoff": "x0"}
S2FLOW |= {"noise": "fresh", "solver": "lri", "order": 2, "stencil": "grid", "lr_time": "sigma"}
FULL = {"windows": {"name": "full"}, "sparsity": None, "density": None}


def add_run(runs, run_id, recipe, of_clip, clips=PROMPTS):
    """A finished run of this recipe; of_clip(i): what its record has beyond the usual."""
    folder = finished_run(runs, clips, run_id, method=recipe["method"])
    for path in (folder / "records").iterdir():
        record = json.loads(path.read_text())
        record["recipe"] |= recipe
        i = [prompt for prompt, _ in clips].index(record["prompt"])
        write_json(path, record | MADE | of_clip(i))


def s2flow_run(runs, run_id, f=0.5, score=0.6, hr=2.0, more=(), **changed):
    """Of Tables 2-4; agreement is score + i / 100, HR takes hr seconds."""
    recipe = {k: v for k, v in (S2FLOW | changed).items() if v is not None}
    record = {
        **{"windows": recipe["windows"]["name"], "density": {"12": f, "1": f}},
        "derivative_cosine": {"lri": {"11": 0.1, "2": 0.3}, "history": {"11": 0.7, "2": 0.9}},
        "seconds": {"lr": 1.0, "hr": hr, "decode": 0.5},
    }
    scored = {"world_agreement": score, "detail": score / 2}

    def of_clip(i):
        return record | {"scores": {k: v + i / 100 for k, v in scored.items()}} | dict(more)

    add_run(runs, run_id, recipe, of_clip)


def figure6_runs(runs, device="cpu, some CPU", prefix="6"):
    """Native and both readings of s, 50 steps; the second reading reused the first one's LR flow."""
    native = COMMON | {"method": "native", "steps": 50}
    own = S2FLOW | {"steps": 50, "t_i": 30}
    high = {str(n): 0.2 for n in range(50, 0, -1)}
    flows = {"hr": {str(n): n / 100 for n in range(30, 0, -1)}}
    low = {"lr": {str(n): 0.01 for n in range(50, 0, -1)}}
    seconds = {"text": 0.01, "lr": 0.5, "plan": 0.02, "handoff": 0.1, "hr": 4.65, "decode": 0.2}
    seconds |= {"write": 0.3, "preview": 0.03, "score": 9.0}

    def clip(**record):
        return lambda i: {"device": device} | record

    hr = {"hr": 10.0, "decode": 0.2}
    step = {"step_seconds": {"hr": high}, "density": {"50": 1.0}}
    add_run(runs, f"{prefix}0", native, clip(seconds=hr, **step), PROMPTS[:2])
    for name, reading, f, timed in (("1", "volume", 0.5, low), ("2", "per_axis", 0.125, {})):
        step = {"step_seconds": flows | timed, "density": {"30": f}, "low_flow_reused": not timed}
        step |= {"windows": "adaptive", "seconds": seconds}
        add_run(runs, prefix + name, own | {"density": reading}, clip(**step), PROMPTS[:2])


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Tables 1-4 in part, and Figure 6."""
    runs = tmp_path_factory.mktemp("runs")
    steps = {"step_seconds": {"hr": {"1": 1.0}, "lr": {"1": 1.0}}}  # of 20, not Figure 6's 50
    s2flow_run(runs, "half", more=steps)
    s2flow_run(runs, "quarter", f=0.26, score=0.4, sparsity=0.25, hr=1.0)
    s2flow_run(runs, "fixed", score=0.5, windows={"name": "fixed"})
    s2flow_run(runs, "full", f=1.0, score=0.7, hr=5.0, **FULL)
    s2flow_run(runs, "third", order=3)
    s2flow_run(runs, "late", score=0.3, t_i=4)
    scores = {"scores": {"world_agreement": 0.2, "detail": 0.9}, "density": {"20": 1.0}}
    native = COMMON | {"method": "native"}
    hr = {"hr": 8.0, "decode": 0.5}
    add_run(runs, "native", native, lambda i: scores | {"seconds": hr})
    figure6_runs(runs)
    return runs


@pytest.fixture(scope="module")
def notebook(tmp_path_factory):
    """notebook("tables", runs): the names it leaves behind, its folder of figures, what it said."""
    with pytest.MonkeyPatch.context() as patch:
        others = [p for p in sys.path if Path(p) not in (ANALYSIS, EXPERIMENTS)]
        patch.setattr(sys, "path", [str(EXPERIMENTS), str(ANALYSIS), *others])
        for name in ("tables", "stored", "timed", "solver"):  # both folders have one of that name
            patch.delitem(sys.modules, name, raising=False)
        style = importlib.import_module("style")
        patch.setattr(paper, "paper_clock", functools.cache(paper.paper_clock))
        patch.setattr(yours, "model", functools.cache(yours.model))

        def run(name, runs):
            out, said = tmp_path_factory.mktemp(name), io.StringIO()
            patch.setattr(sys, "argv", [f"{name}.py", "--runs", str(runs), "--out", str(out)])
            patch.setitem(style.plt.rcParams, "savefig.dpi", 60)  # for speed
            with contextlib.redirect_stdout(said):
                names = runpy.run_path(str(ANALYSIS / f"{name}.py"), run_name="__main__")
            return names, out, said.getvalue()

        yield run


@pytest.fixture(scope="module")
def shown(notebook, store):
    """shown("tables"): of the whole store, run once."""
    return functools.cache(lambda name: notebook(name, store))


def pictures(out):
    """Names of figures, each written in both formats."""
    names = {p.stem for p in out.glob("*.pdf")}
    assert names == {p.stem for p in out.glob("*.png")}
    assert all(p.stat().st_size > 1000 for p in out.glob("*.p*"))
    return names


def missing(said):
    return [line for line in said.splitlines() if line.startswith("missing")]


# -- any store --------------------------------------------------------------------------------


def test_tables_shows_every_table_and_draws_its_differences(shown, store):
    names, out, said = shown("tables")
    assert pictures(out) == {f"table{n}_micro_differences" for n in (1, 2, 3, 4)}
    assert "left out: Table 2, sparsity: backbone micro, 50 steps" in said  # Figure 6's
    assert "Embedded backbone `micro`, a toy" in said and "| s=0.25 adaptive" in said
    first, *_ = missing(said)
    assert "table1 of micro, diffusehigh (0 of 7 clips)" in first
    assert "make it with: python run.py experiment=table1" in first and str(store) in first
    table = names["tables_of"]("table2", names["frame"], store)["micro"]
    figure = names["difference_figure"](table, ["own world_agreement"])
    dots = [line.get_xdata()[0] for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert dots == [d["own world_agreement"].mean for d in table.differences.values()]
    assert dots[0] == pytest.approx(-0.2)  # a quarter minus half
    assert list(table.differences) == [t.get_text() for t in figure.axes[0].get_yticklabels()]


def test_tradeoff_draws_quality_and_time_of_both_tables(shown, store):
    names, out, said = shown("tradeoff")
    kinds = [f"{kind}_micro_{s}" for kind in ("sparsity", "methods") for s in OWN]
    assert pictures(out) == {f"tradeoff_{kind}" for kind in kinds}
    assert "CAUTION" not in said and any("experiment=table2" in line for line in missing(said))


def test_solver_draws_errors_orders_and_cosines(shown, store):
    names, out, said = shown("solver")
    errors = {
        p.stem.replace("=", "") for p in (EXPERIMENTS / "results").glob("*solver_error*.json")
    }
    assert errors and pictures(out) == errors | {"solver_orders_micro", "solver_cosines_micro_20"}
    assert any("order 1 (0 of 7 clips)" in line for line in missing(said))


def test_runtime_draws_blocks_and_stages(shown):
    _, out, said = shown("runtime")
    assert pictures(out) == {"figure6_blocks", "figure6_stages"}
    assert not missing(said) and "| native, published |  | 733 | 1.00 |" in said


@pytest.mark.parametrize("name", ["tables", "runtime", "solver"])
def test_an_empty_store_is_said_with_the_command_that_fills_it(
    name, notebook, tmp_path, monkeypatch
):
    monkeypatch.setattr(sys.modules["stored"], "RESULTS", tmp_path)
    _, out, said = notebook(name, tmp_path)
    experiment = {"runtime": "figure6", "solver": "table3"}.get(name, "table1")
    lines = [line for line in missing(said) if f"experiment={experiment}" in line]
    assert lines and all(f"runs_dir={tmp_path}" in line for line in lines)
    assert pictures(out) == ({"figure6_blocks", "figure6_stages"} if name == "runtime" else set())
    results = {"tables": "experiments/claims.py --run", "solver": "experiments/solver_error.py"}
    assert any(results.get(name, "") in line for line in missing(said))


def test_a_store_that_is_not_there_is_one_line(notebook, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        notebook("tables", tmp_path / "no")
    assert capsys.readouterr().err.splitlines()[-1].endswith("make clips first, python run.py")


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_it_opens_as_a_notebook_that_begins_with_what_it_shows(name):
    jupytext = pytest.importorskip("jupytext", reason="pip install s2flow[analysis]")
    cells = jupytext.read(ANALYSIS / f"{name}.py").cells
    assert cells[0].cell_type == "markdown" and cells[0].source.startswith("# ")
    assert "python run.py experiment=" in cells[0].source
    assert {c.cell_type for c in cells[1:]} == {"markdown", "code"}


# -- what is drawn is what is stored ------------------------------------------------------------


def test_blocks_are_sums_of_ten_steps_and_a_reused_lr_flow_is_looked_up(shown, store):
    names, _, _ = shown("runtime")
    ((title, found),) = names["timed"].items()
    assert title.startswith("micro, 32×48, 3 frames\ncpu, some CPU, threads 2")
    assert list(found) == ["native", "s2flow, f = 0.5", "s2flow, f = 0.125"]
    blocks = dict(names["panels"][title])
    assert blocks["native"] == [("HR", pytest.approx(2.0))] * 5
    tens = [sum(range(top - 9, top + 1)) / 100 for top in (30, 20, 10)]
    ours = [("LR", pytest.approx(0.1))] * 5 + [("HR", pytest.approx(s)) for s in tens]
    assert blocks["s2flow, f = 0.5"] == blocks["s2flow, f = 0.125"] == ours
    twice = {"a": found["native"], "b": found["native"]}
    assert list(names["labelled"](twice)) == ["native", "native (b)"]
    alone = names["flow_blocks"](found["s2flow, f = 0.125"], found["s2flow, f = 0.125"])
    assert [side for side, _ in alone] == ["HR"] * 3  # nobody timed its LR flow
    stages = names["stages"][title]["s2flow, f = 0.5"]
    assert stages == {
        **{"LR flow": 0.5, "plan": 0.02, "hand-off": 0.1, "HR flow": 4.65, "decode": 0.2},
        **{"write": 0.3, "other": pytest.approx(0.04)},
    }


def test_the_papers_bars_are_its_published_seconds_and_the_models(shown, store):
    names, _, _ = shown("runtime")
    rows = dict(names["paper_rows"](names["clock"]))
    total = {name: sum(s for _, s in blocks) for name, blocks in rows.items()}
    assert total["native, published"] == pytest.approx(5 * 733.0)
    assert total["s2flow, published"] == pytest.approx(5 * 51.0 + 3 * 96.4)
    model = 5 * 51.0 + 3 * names["clock"].predicted(0.125)
    assert total["s2flow, model f = 0.125"] == pytest.approx(model)
    (model,) = [s for title, s in names["stages"].items() if "runtime model" in title]
    assert model["s2flow, f = 0.125"]["HR flow"] < model["s2flow, f = 0.5"]["HR flow"]
    assert model["native"].keys() == {"other", "HR flow", "decode"}


def test_two_machines_never_share_a_panel(notebook, tmp_path):
    figure6_runs(tmp_path)
    figure6_runs(tmp_path, "cuda, some GPU", "7")
    names, _, _ = notebook("runtime", tmp_path)
    ours = [title for title in names["panels"] if title.startswith("micro")]
    assert [("CPU" in t, "GPU" in t) for t in ours] == [(True, False), (False, True)]
    assert len(names["blocks_figure"](names["panels"]).axes) == 3
    assert len(names["stages_figure"](names["stages"]).axes) == 3


def test_points_are_means_over_prompts_with_intervals_and_times_are_of_native(shown, store):
    names, _, _ = shown("tradeoff")
    table = names["tables_of"]("table2", names["frame"], store)["micro"]
    points = {p["setting"]: p for p in names["points"](table, "own world_agreement", "seconds hr")}
    mean, low, high = points["s=0.25 adaptive"]["q"]
    assert mean == pytest.approx(0.43) and low < mean < high < 0.47
    assert points["s=0.25 adaptive"]["f"] == pytest.approx(0.26)
    figure = names["sparsity_figure"](table, "own world_agreement", 8.0)
    chain = figure.axes[2].lines[0].get_xydata()
    assert chain == pytest.approx(np.array([[0.26, 1 / 8], [0.5, 2 / 8], [1, 5 / 8]]))
    assert figure.axes[3].lines[0].get_xydata()[1] == pytest.approx([0.5, 1 / 4])  # the paper's
    methods = names["methods"]["micro"]
    assert names["native_seconds"]([methods], table.group, "seconds hr") == 8.0
    assert names["native_seconds"]([methods], table.group | {"steps": 9}, "seconds hr") is None


def test_unequal_threads_are_a_caution(shown, capsys):
    names, _, _ = shown("tradeoff")
    names["raw"]["slow"] = [r | {"threads": 9} for r in names["raw"]["half"]]
    assert names["differing"]("Table 2", ("half", "full")) == ""
    assert names["differing"]("Table 2", ("half", "slow")) == "threads 2, 9"
    assert capsys.readouterr().out.startswith("CAUTION: Table 2: seconds do not compare")


def test_real_vbench_means_take_the_place_of_the_worlds_scores(notebook, tmp_path):
    six = dict.fromkeys(paper.reported()["aggregates"]["temporal"], 0.9)
    six |= dict.fromkeys(paper.reported()["aggregates"]["visual"], 0.6)
    s2flow_run(tmp_path, "half", more={"scores": six | {"world_agreement": 1.0}})
    s2flow_run(tmp_path, "quarter", sparsity=0.25, more={"scores": six})
    names, out, _ = notebook("tradeoff", tmp_path)
    assert pictures(out) == {"tradeoff_sparsity_micro_Mean", "tradeoff_methods_micro_Mean"}
    table = names["tables_of"]("table2", names["frame"], tmp_path)["micro"]
    point, *_ = names["points"](table, "Mean", "seconds hr")
    assert point["q"][0] == pytest.approx(0.8)


def test_cosines_are_means_over_prompts_of_the_run_nearest_to_the_paper(shown, store):
    names, _, _ = shown("solver")
    run, clips = names["best"]["micro", 20]
    assert run == "half" and len(clips) == 7
    assert names["cosines"](clips, "lri") == {11: pytest.approx((0.1,) * 3), 2: (0.3, 0.3, 0.3)}
    changed = [dict(r, derivative_cosine={"lri": {"2": i / 10}}) for i, r in enumerate(clips)]
    mean, low, high = names["cosines"](changed, "lri")[2]
    assert mean == pytest.approx(fmean(range(7)) / 10) and low < mean < high
    table = names["tables_of"]("table3", names["frame"], store)["micro"]
    assert names["order_rows"](table, "own detail")["order 3"][0] == pytest.approx(0.33)


# -- votes --------------------------------------------------------------------------------------


def test_votes_in_the_store_become_win_rates(notebook, tmp_path):
    runs = {x: {"label": f"run {x}", "method": "s2flow", "recipe": {}} for x in "abc"}
    pairs = [("a", "b"), ("b", "c"), ("a", "c")]
    votes = [
        {"prompt": f"p{i}", "original": None, "seed": 0, "left": x, "right": y}
        | {"choice": ("left", "left", "right")[i % 3], "seconds": 1.0, "at": ""}
        for i in range(9)
        for x, y in pairs
    ]
    said = {"format": "s2flow votes 1", "session": "s", "voter": "me", "runs": runs}
    (tmp_path / "votes-me.json").write_text(json.dumps(said | {"votes": votes}))
    _, out, said = notebook("tables", tmp_path)
    assert pictures(out) == {"win_rates"} and "27 votes" in said and "theta" in said
    (tmp_path / "votes-me.json").write_text("{")
    assert "holds no votes" in notebook("tables", tmp_path)[2]
