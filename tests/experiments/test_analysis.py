"""Notebooks: they run on any store, headless, and draw what is stored."""

import contextlib
import functools
import io
import itertools
import json
import os
import re
import runpy
import sys
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
import torch
from finished import finished_run

pytest.importorskip("matplotlib", reason='pip install -e ".[test]"')
pytest.importorskip("jupytext", reason='pip install -e ".[test]"')
pytest.importorskip("nbconvert", reason='pip install -e ".[test]"')
pytest.importorskip("ipykernel", reason='pip install -e ".[test]"')

import export
import figure3
import gallery_clips
import jupytext
import nbformat
import stored
import style
import tables
import timed
from test_conf import composed

from s2flow.costs import paper
from s2flow.coverage import axis_windows
from s2flow.grid import brick_of_token
from s2flow.report.windowmap import COLOURS, RARER, in_words, read_windows
from s2flow.run import runner
from s2flow.store import read_run, write_json
from s2flow.video import read_frames

ROOT = Path(__file__).parents[2]
ANALYSIS, EXPERIMENTS = ROOT / "analysis", ROOT / "experiments"
NOTEBOOKS = sorted(p.stem for p in ANALYSIS.glob("*.py") if p.read_text().startswith("# %%"))
OWN = ("world_agreement", "detail")

# -- a store of records, without a model --------------------------------------------------------

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
    for name, reading, f, made in (("1", "volume", 0.5, low), ("2", "per_axis", 0.125, {})):
        step = {"step_seconds": flows | made, "density": {"30": f}, "low_flow_reused": not made}
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


# -- a store of clips, made by the embedded backbone --------------------------------------------


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """What Figures 3 to 5 ask for, at a reduced size."""
    runs = tmp_path_factory.mktemp("clips") / "runs"
    small = ("steps=4", "t_i=3", "frames=2", "device=cpu", "progress=off", "scorer=[none]")
    methods = ("native", "bicubic", "diffusehigh", "hiflow", "macs", "cascade", "s2flow")
    words = [*(f"method={m}" for m in methods), "order=1", "steps=8", "windows=oracle"]
    for word in words:  # two clips where means are checked
        count = f"prompts.count={1 + (word == 'windows=oracle')}"
        runner.run(composed([*small, count, word, f"runs_dir={runs}"]))
    return runs


@pytest.fixture(scope="module")
def notebook(tmp_path_factory):
    """notebook("tables", runs): the names it leaves behind, its folder of figures, what it said."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paper, "paper_clock", functools.cache(paper.paper_clock))
        patch.setattr(timed, "model", functools.cache(timed.model))

        def run(name, runs):
            out, said = tmp_path_factory.mktemp(name), io.StringIO()
            patch.setattr(sys, "argv", [f"{name}.py", "--runs", str(runs), "--out", str(out)])
            patch.setitem(style.plt.rcParams, "savefig.dpi", 40)  # for speed
            with contextlib.redirect_stdout(said):
                names = runpy.run_path(str(ANALYSIS / f"{name}.py"), run_name="__main__")
            return names, out, said.getvalue()

        yield run


@pytest.fixture(scope="module")
def shown(notebook, store):
    """shown("tables"): of the store of records, run once."""
    return functools.cache(lambda name: notebook(name, store))


def pictures(out):
    """Names of figures, each written in both formats."""
    names = {p.stem for p in out.glob("*.pdf")}
    assert names == {p.stem for p in out.glob("*.png")}
    assert all(p.read_bytes()[:4] in (b"%PDF", b"\x89PNG") for p in out.glob("*.p*"))
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


ERRORS = {p.stem.replace("=", "") for p in EXPERIMENTS.glob("results/*solver_error*.json")}
SCORED = [f"{kind}_micro_{s}" for kind in ("sparsity", "methods") for s in OWN]


@pytest.mark.parametrize(
    ("name", "figures", "words"),
    [
        ("tradeoff", {f"tradeoff_{x}" for x in SCORED}, "make it with: python run.py experiment="),
        ("solver", ERRORS | {"solver_orders_micro", "solver_cosines_micro_20"}, "order 1 (0 of 7"),
        ("runtime", {"figure6_blocks", "figure6_stages"}, "| native, published |  | 733 | 1.00 |"),
    ],
)
def test_a_notebook_draws_its_figures_and_names_what_is_missing(name, figures, words, shown):
    _, out, said = shown(name)
    assert ERRORS and pictures(out) == figures and words in said
    assert "CAUTION" not in said and bool(missing(said)) == (name != "runtime")


@pytest.mark.parametrize(
    ("name", "figures"),
    [
        ("attention_maps", {"attention_locality", "attention_of_one_query"}),
        ("window_maps", {"window_coverage", "windows_chosen", "window_regret"}),
        ("galleries", {"gallery_methods", "gallery_order"}),
    ],
)
def test_figures_3_to_5_are_drawn_from_clips(name, figures, notebook, clips):
    _, out, said = notebook(name, clips)
    assert pictures(out) == figures and "make" not in said and "Warning" not in said


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_an_empty_store_is_said_with_the_command_that_fills_it(
    name, notebook, tmp_path, monkeypatch
):
    monkeypatch.setattr(stored, "RESULTS", tmp_path)
    _, out, said = notebook(name, tmp_path)
    experiment = {"runtime": "figure6", "solver": "table3", "galleries": "figure5"}
    experiment |= dict.fromkeys(("attention_maps", "window_maps"), "figure3")
    lines = [x for x in said.splitlines() if f"experiment={experiment.get(name, 'table1')}" in x]
    assert lines and all(f"runs_dir={tmp_path}" in line for line in lines)
    assert pictures(out) == ({"figure6_blocks", "figure6_stages"} if name == "runtime" else set())
    results = {"tables": "experiments/claims.py --run", "solver": "experiments/solver_error.py"}
    assert results.get(name, "") in said and not list(tmp_path.iterdir())


def test_a_store_that_is_not_there_is_one_line(notebook, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        notebook("tables", tmp_path / "no")
    assert capsys.readouterr().err.splitlines()[-1].endswith("make clips first, python run.py")


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_it_opens_as_a_notebook_that_begins_with_what_it_shows(name):
    cells = jupytext.read(ANALYSIS / f"{name}.py").cells
    assert cells[0].cell_type == "markdown" and cells[0].source.startswith("# ")
    assert "python run.py experiment=" in cells[0].source
    assert {c.cell_type for c in cells[1:]} == {"markdown", "code"}


@pytest.mark.parametrize("name", ["table1", "table2", "table3", "table4"])
def test_every_table_of_the_store_is_built_in_every_format(name, store, capsys):
    for form in tables.FORMATS:
        assert tables.main([name, "--runs", str(store), "--format", form]) == 0
        out = capsys.readouterr().out
        assert form == "csv" or "toy model" in out
        assert "half" in out


@pytest.mark.parametrize("name", [*NOTEBOOKS, "export"])
def test_without_what_draws_or_exports_a_script_says_what_to_install(name, monkeypatch):
    blocked = ("matplotlib", "jupytext")
    for module in [m for m in sys.modules if m.partition(".")[0] in (*blocked, "style")]:
        monkeypatch.delitem(sys.modules, module)
    for module in blocked:
        monkeypatch.setitem(sys.modules, module, None)  # importing it fails
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ANALYSIS / f"{name}.py"), run_name="__main__")
    assert stop.value.code.startswith("error: ") and stop.value.code.count("\n") == 0
    assert 'type pip install -e ".[analysis]"' in stop.value.code  # text: exit status 1


# -- exported -----------------------------------------------------------------------------------


def test_exported_notebooks_show_what_they_draw_and_one_that_fails_stops_none(
    clips, monkeypatch, tmp_path, capsys
):
    assert list(export.notebooks()) == NOTEBOOKS
    bad, out = tmp_path / "bad.py", tmp_path / "made by it"
    bad.write_text("# %%\nprint('as far as here')\n\n# %%\nraise ValueError('a bad\\nday')\n")
    shown = NOTEBOOKS if os.environ.get("S2FLOW_SLOW") == "1" else ["galleries"]
    own = {"bad": bad} | {name: ANALYSIS / f"{name}.py" for name in shown}
    monkeypatch.setattr(export, "notebooks", lambda: own)
    monkeypatch.setattr(sys, "argv", ["export.py", "--runs", str(clips), "--out", str(out)])
    for key in ("S2FLOW_RUNS", "S2FLOW_OUT"):
        monkeypatch.setenv(key, "elsewhere")  # and put back afterwards
    assert export.main() == 1
    assert capsys.readouterr().err.splitlines()[-1] == "failed: bad: ValueError: a bad"
    assert "as far as here" in (out / "bad.ipynb").read_text()
    for name in shown:
        cells = nbformat.read(out / f"{name}.ipynb", as_version=4).cells
        outputs = [o for cell in cells for o in cell.get("outputs", [])]
        said = "".join(o.text for o in outputs if o.output_type == "stream")
        assert "Warning" not in said and "Traceback" not in said
        assert all(c.cell_type != "code" or c.execution_count for c in cells)  # ran through
        pictured = [o for o in outputs if "image/png" in o.get("data", {})]
        figures = re.findall(r"^wrote (.*\.pdf) and", said, re.M)
        assert figures and len(pictured) == len(figures), said
        assert {Path(path).parent for path in figures} == {out.resolve()}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["galery"], "galery is no notebook; there are attention_maps"),
        (["--runs", "nowhere"], "--runs nowhere: no such folder; make clips first, python run.py"),
        (["--runs", ".", "--out", "README.md/x"], "--out README.md/x cannot be made"),
    ],
)
def test_what_cannot_be_exported_is_one_line(words, said, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["export.py", *words])
    with pytest.raises(SystemExit) as stop:
        export.main()
    assert stop.value.code == 2 and said in capsys.readouterr().err.splitlines()[-1]


# -- what is drawn is what is stored ------------------------------------------------------------


def test_blocks_are_sums_of_ten_steps_and_a_reused_lr_flow_is_looked_up(shown, store):
    names, _, _ = shown("runtime")
    ((title, found),) = names["found"].items()
    assert title.startswith("micro, 32×48, 3 frames\ncpu, some CPU, threads 2")
    assert list(found) == ["native", "s2flow, f = 0.5", "s2flow, f = 0.125"]
    blocks = dict(names["panels"][title])
    assert blocks["native"] == [("HR", pytest.approx(2.0))] * 5
    tens = [sum(range(top - 9, top + 1)) / 100 for top in (30, 20, 10)]
    ours = [("LR", pytest.approx(0.1))] * 5 + [("HR", pytest.approx(s)) for s in tens]
    assert blocks["s2flow, f = 0.5"] == blocks["s2flow, f = 0.125"] == ours
    twice = {"a": found["native"], "b": found["native"]}
    assert list(timed.labelled(twice)) == ["native", "native (b)"]
    alone = timed.flow_blocks(found["s2flow, f = 0.125"], found["s2flow, f = 0.125"])
    assert [side for side, _ in alone] == ["HR"] * 3  # nobody timed its LR flow
    stages = names["stages"][title]["s2flow, f = 0.5"]
    assert stages == {
        **{"LR flow": 0.5, "plan": 0.02, "hand-off": 0.1, "HR flow": 4.65, "decode": 0.2},
        **{"write": 0.3, "other": pytest.approx(0.04)},
    }


def test_the_papers_bars_are_its_published_seconds_and_the_models(shown, store):
    names, _, _ = shown("runtime")
    rows = dict(timed.paper_rows(names["clock"]))
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


# -- the numbers of Figure 3 --------------------------------------------------------------------


@pytest.fixture(scope="module")
def clip(clips):
    """(record, LR flow, windows) of the clip that Figure 3 shows."""
    found = figure3.clip_to_show(clips)
    assert None not in found
    return found


def test_the_candidate_that_is_marked_is_the_one_that_ran(clip, clips):
    record, flow, windows = clip
    recipe = record["recipe"]
    assert (recipe["sparsity"], recipe["density"], recipe["order"]) == (0.5, "volume", 2)
    own = read_windows(clips / record["run_id"], record)
    assert all(np.array_equal(own[k], windows[k]) for k in own)
    assert len(flow.flow.z) == recipe["steps"] + 1
    for i, n in enumerate(windows["steps"]):
        boxes, of_each, chosen = figure3.candidates_at(record, flow, int(n))
        assert np.array_equal(np.array(boxes)[chosen], windows["boxes"][i])
        best = np.take_along_axis(of_each, chosen[..., None], -1)[..., 0]
        assert (of_each.max(-1) == best).all()


def test_attention_that_is_drawn_covers_what_the_lr_flow_recorded(clip):
    """From the model put to work again, all rows: Eq. 8 of every box, beside the cached coverage."""
    record, flow, _ = clip
    tokens, rows, A = figure3.attention_at(record, flow, 2)
    assert len(rows) == np.prod(tokens) and A.sum(-1) == pytest.approx(1, abs=1e-5)
    where = brick_of_token(tokens, (1, 1, 1))
    for box in ((2, 2, 3), (1, 4, 6), (2, 1, 1)):
        inside = torch.ones(len(where), len(where))
        for axis, (g, w) in enumerate(zip(tokens, box, strict=True)):
            at = where[:, axis]
            inside *= axis_windows(g)[:, w - 1][at][:, at]
        covered = (A * inside.numpy()).sum(-1).mean(-1)
        kept = flow.coverage[2, :, 0][..., box[0] - 1, box[1] - 1, box[2] - 1].numpy()
        assert covered == pytest.approx(kept, abs=2e-3)


def test_distance_is_measured_against_an_average_key():
    tokens, rows = (2, 3, 4), np.arange(24)
    even = np.full((1, 1, 24, 24), 1 / 24)
    itself = np.eye(24)[None, None]
    for axis, n in enumerate(tokens):
        assert figure3.by_distance(tokens, rows, even, axis) == pytest.approx(np.ones((1, 1, n)))
        near = figure3.by_distance(tokens, rows, itself, axis)[0, 0]
        assert near[0] == pytest.approx(n) and not near[1:].any()


def test_heads_are_named_for_what_they_do():
    tokens, rows = (3, 3, 3), np.arange(27)
    where = np.indices(tokens).reshape(3, -1)
    same = [where[a][:, None] == where[a][None] for a in range(3)]
    maps = np.array([[same[1], same[2]], [same[0], np.ones((27, 27))]], float)
    named = figure3.telling_heads(tokens, rows, maps / maps.sum(-1, keepdims=True))
    expected = {"local in t": (1, 0), "local in h": (0, 0), "local in w": (0, 1)}
    assert named == expected | {"most even": (1, 1)}


def test_the_best_box_of_a_volume():
    r = np.array([[[0.2, 0.5]], [[0.6, 1.0]]])  # 1x1x1, 1x1x2, 2x1x1, 2x1x2
    volume, covered = figure3.best_by_volume(r)
    assert volume.tolist() == [0.25, 0.5, 1] and covered.tolist() == [0.2, 0.6, 1]


def test_regret_and_coverage_are_means_of_the_records(clips):
    chosen = figure3.oracle_clips(clips)
    assert len(chosen) == 2 and len({r["run_id"] for r in chosen}) == 1
    steps, layers, regret = figure3.regret_table(chosen)
    assert steps == [3, 2, 1] and regret.shape == (len(layers), 3)
    for (i, layer), (j, n) in itertools.product(enumerate(layers), enumerate(steps)):
        own = [r["oracle"]["regret_by_layer"][str(n)][str(layer)] for r in chosen]
        assert regret[i, j] == pytest.approx(sum(own) / 2)
    best, guided, f = figure3.coverage_lines(chosen, steps)
    assert best - guided == pytest.approx(regret.mean(0), abs=1e-5)  # by layer and by step agree
    assert f[0] == pytest.approx(sum(r["density"]["3"] for r in chosen) / 2)
    with_one = [r | {"oracle": {"regret_by_layer": {"1": {"0": 0.5}}}} for r in chosen[:1]]
    assert figure3.regret_table(with_one)[2].tolist() == [[0.5]]


def test_windows_have_the_colours_of_the_picture():
    boxes = np.arange(1, 11)[:, None, None, None] * np.ones((1, 1, 1, 3), int)
    windows = {"steps": np.arange(10, 0, -1), "boxes": boxes, "grid": np.full((10, 3), 10)}
    words, colour, legend = in_words(windows)
    assert words[0, 0, 0] == "1x1x1" and words[-1, 0, 0] == "whole grid"
    assert sorted(colour.values()) == sorted(COLOURS)
    assert legend[-1] == (RARER, "2 others  20%") and len(legend) == 9


# -- galleries ----------------------------------------------------------------------------------


def test_galleries_compare_like_with_like(clips):
    group, fitting = gallery_clips.group_with_most(clips)
    assert group == ("micro", 4, 64, 96, 2)  # where most methods are, not the 8 steps
    usual = gallery_clips.figure4_runs(fitting)
    assert list(usual) == list(gallery_clips.METHODS)
    own = usual["s2flow"].knobs
    assert (own["sparsity"], own["windows"], own["order"], own["t_i"]) == (0.5, "adaptive", 2, 3)
    a, b, c = (run.knobs for run in gallery_clips.figure5_runs(fitting).values())
    assert (a["method"], b["order"], c["order"]) == ("cascade", 1, 2)
    for knob in ("sparsity", "windows", "density", "t_i"):
        assert b[knob] == c[knob]
    without = [r for r in fitting if r.knobs["order"] != 2]
    assert [label[:3] for label in gallery_clips.figure5_runs(without)] == ["(a)", "(b)"]


def test_galleries_show_the_pixels_of_the_files(clips):
    _, fitting = gallery_clips.group_with_most(clips)
    chosen = gallery_clips.figure4_runs(fitting)
    ((prompt, _, key),) = gallery_clips.shared_clips(chosen, most=1)
    for run in chosen.values():
        (record,) = [r for r in read_run(clips / run.id) if r["prompt"] == prompt]
        frames = read_frames(clips / run.id / record["video"]).numpy()
        assert np.array_equal(gallery_clips.middle_frame(clips, run.id, key), frames[1])
    assert gallery_clips.middle_frame(clips, "no such run", key) is None
    low = gallery_clips.middle_frame(clips, chosen["cascade"].id, key, low=True)
    assert low.shape == (32, 48, 3)


def test_the_crop_is_where_the_detail_is():
    frame = np.zeros((64, 96, 3), np.uint8)
    frame[30:40, 70:80] = np.random.default_rng(0).integers(0, 255, (10, 10, 3))
    top, left, height, width = gallery_clips.crop_of(frame)
    assert (height, width) == (16, 24)
    assert top <= 30 and top + height >= 40 and left <= 70 and left + width >= 80


def test_a_long_sheet_of_indices_is_thinned_evenly():
    assert style.spread(4, 8).tolist() == [0, 1, 2, 3]
    assert style.spread(41, 5).tolist() == [0, 10, 20, 30, 40]
