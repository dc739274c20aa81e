"""Every notebook runs headless, every table is built: from a small store of the embedded backbone."""

import csv
import importlib
import io
import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir

from s2flow.coverage import axis_windows
from s2flow.grid import brick_of_token
from s2flow.report.windowmap import COLOURS, RARER, in_words, read_windows
from s2flow.run import runner
from s2flow.store import load_records, read_run

for needed in ("matplotlib", "jupytext", "nbconvert", "ipykernel"):
    pytest.importorskip(needed, reason=f'{needed} is missing: pip install -e ".[test]"')

ROOT = Path(__file__).parents[2]
ANALYSIS = ROOT / "analysis"
sys.path += [str(ROOT / "experiments"), str(ANALYSIS)]  # as style.py has them, in this order
export, figure3, gallery_clips, style, tables, nbformat = map(
    importlib.import_module,
    ("export", "figure3", "gallery_clips", "style", "tables", "nbformat"),
)

NOTEBOOKS = sorted(p.stem for p in ANALYSIS.glob("*.py") if p.read_text().startswith("# %%"))
LONG = os.environ.get("S2FLOW_SLOW") == "1"
EXPORTED = NOTEBOOKS if LONG else ["galleries"]
SMALL = ("steps=5", "t_i=3", "frames=2", "prompts.count=2", "device=cpu", "progress=off")
SWEEPS = (
    ("method=native,bicubic,diffusehigh,hiflow,macs,cascade",),  # Table 1, Figures 4 and 5
    ("sparsity=0.25,0.5,0.75",),
    ("windows=fixed", "sparsity=0.5"),
    ("windows=oracle", "sparsity=0.5"),  # Figure 3
    ("order=1,3",),
    ("t_i=4,2,1",),
    ("method=native,s2flow", "steps=50", "t_i=30", "prompts.count=1"),  # Figure 6
)


def made(runs_dir, *words):
    """Every combination of these overrides, as a sweep would make them."""
    for one in itertools.product(*(_each(word) for word in words)):
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            runner.run(compose("config", [*SMALL, *one, f"runs_dir={runs_dir}"]))


def _each(word):
    key, values = word.split("=")
    return [f"{key}={value}" for value in values.split(",")]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A store with what every table and figure asks for, at a reduced size."""
    runs_dir = tmp_path_factory.mktemp("analysis") / "runs"
    for words in SWEEPS:
        made(runs_dir, *words)
    return runs_dir


def script(*words, env=()):
    return subprocess.run(
        [sys.executable, *map(str, words)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | dict(env),
    )


@pytest.fixture(scope="module")
def exported(runs, tmp_path_factory):
    """The folder of `python analysis/export.py`: a kernel per notebook, so not of all in CI."""
    out = tmp_path_factory.mktemp("exported") / "made by it"
    done = script(ANALYSIS / "export.py", *EXPORTED, "--runs", runs, "--out", out)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def scripts(runs_dir, out, names=NOTEBOOKS):
    """{name: what it prints} of notebooks as scripts, in one process."""
    each = [str(ANALYSIS / f"{name}.py") for name in names]
    code = (
        "import runpy, sys\n"
        f"sys.path.insert(0, {str(ANALYSIS)!r})\n"
        f"for path in {each!r}:\n"
        f"    sys.argv = [path, '--runs', {str(runs_dir)!r}, '--out', {str(out)!r}]\n"
        "    print('==', path)\n"
        "    runpy.run_path(path, run_name='__main__')\n"
    )
    done = script("-c", code)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    return dict(zip(names, done.stdout.split("== ")[1:], strict=True))


@pytest.fixture(scope="module")
def printed(runs, tmp_path_factory):
    """{name: what it prints} of all notebooks on this store, and where their figures are."""
    out = tmp_path_factory.mktemp("scripts")
    return scripts(runs, out), out


# -- notebooks ----------------------------------------------------------------------------------


def test_what_is_a_notebook():
    assert {"attention_maps", "window_maps", "galleries"} <= set(NOTEBOOKS)
    assert not {"style", "export", "figure3", "gallery_clips"} & set(NOTEBOOKS)
    assert list(export.notebooks()) == NOTEBOOKS


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs_headless_and_writes_its_figures(name, printed):
    said, out = printed
    assert "Warning" not in said[name]
    figures = [Path(path) for path in re.findall(r"^wrote (.*\.pdf) and", said[name], re.M)]
    assert figures, said[name]
    check_figures(figures, out)


@pytest.mark.parametrize("name", EXPORTED)
def test_an_exported_notebook_shows_what_it_draws(name, exported):
    notebook = nbformat.read(exported / f"{name}.ipynb", as_version=4)
    assert notebook.cells[0].cell_type == "markdown" and notebook.cells[0].source.startswith("# ")
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", [])]
    assert not [o for o in outputs if o.output_type == "error"]
    said = "".join(o.text for o in outputs if o.output_type == "stream")
    assert "Warning" not in said and "Traceback" not in said
    for cell in notebook.cells:  # ran through
        assert cell.cell_type != "code" or cell.execution_count
    shown = [o for o in outputs if "image/png" in o.get("data", {})]
    figures = [Path(path) for path in re.findall(r"^wrote (.*\.pdf) and", said, re.M)]
    assert figures and len(shown) == len(figures), said
    check_figures(figures, exported)


def check_figures(figures, out):
    for path in figures:
        assert path.parent == out.resolve()
        assert path.read_bytes()[:5] == b"%PDF-"
        assert path.with_suffix(".png").read_bytes()[1:4] == b"PNG"


def test_figure_3_is_whole_in_this_store(printed):
    _, out = printed
    names = ("attention_locality", "attention_of_one_query", "window_coverage")
    for name in (*names, "windows_chosen", "window_regret", "gallery_methods", "gallery_order"):
        assert (out / f"{name}.pdf").exists(), name


def test_an_empty_store_is_said_with_the_command(tmp_path):
    empty, out = tmp_path / "no runs yet", tmp_path / "out"
    empty.mkdir()
    said = scripts(empty, out, NOTEBOOKS if LONG else ["solver", "tables"])
    for path, text in said.items():
        assert "python run.py experiment=" in text, path
    assert not list(empty.iterdir())


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


def test_a_notebook_that_fails_leaves_the_others_going(monkeypatch, tmp_path, capsys):
    bad, good = tmp_path / "bad.py", tmp_path / "good.py"
    bad.write_text("# %%\nprint('as far as here')\n\n# %%\nraise ValueError('a bad\\nday')\n")
    good.write_text("# %%\nimport os\nprint(os.environ['S2FLOW_RUNS'])\n")
    monkeypatch.setattr(export, "notebooks", lambda: {"bad": bad, "good": good})
    monkeypatch.setattr(export, "HERE", tmp_path)
    monkeypatch.setattr(
        sys, "argv", ["export.py", "--runs", str(tmp_path), "--out", str(tmp_path)]
    )
    for key in ("S2FLOW_RUNS", "S2FLOW_OUT"):
        monkeypatch.setenv(key, "elsewhere")  # and put back afterwards
    assert export.main() == 1
    assert capsys.readouterr().err.splitlines()[-1] == "failed: bad: ValueError: a bad"
    read = [nbformat.read(tmp_path / f"{n}.ipynb", as_version=4) for n in ("bad", "good")]
    assert "as far as here" in str(read[0].cells[0].outputs)
    assert str(tmp_path) in str(read[1].cells[0].outputs)


# -- the numbers of Figure 3 --------------------------------------------------------------------


@pytest.fixture(scope="module")
def clip(runs):
    """(record, LR flow, windows) of the clip that Figure 3 shows."""
    found = figure3.clip_to_show(runs)
    assert None not in found
    return found


def test_the_clip_shown_has_its_own_flow_and_windows(clip, runs):
    record, flow, windows = clip
    recipe = record["recipe"]
    assert (recipe["sparsity"], recipe["density"], recipe["order"]) == (0.5, "volume", 2)
    assert len(flow.flow.z) == recipe["steps"] + 1
    own = read_windows(runs / record["run_id"], record)
    assert all(np.array_equal(own[k], windows[k]) for k in own)


def test_the_candidate_that_is_marked_is_the_one_that_ran(clip):
    record, flow, windows = clip
    for i, n in enumerate(windows["steps"]):
        boxes, of_each, chosen = figure3.candidates_at(record, flow, int(n))
        assert np.array_equal(np.array(boxes)[chosen], windows["boxes"][i])
        assert (
            of_each.max(-1) == np.take_along_axis(of_each, chosen[..., None], -1)[..., 0]
        ).all()


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
    assert named == {
        "local in t": (1, 0),
        "local in h": (0, 0),
        "local in w": (0, 1),
        "most even": (1, 1),
    }


def test_the_best_box_of_a_volume():
    r = np.array([[[0.2, 0.5]], [[0.6, 1.0]]])  # 1x1x1, 1x1x2, 2x1x1, 2x1x2
    volume, covered = figure3.best_by_volume(r)
    assert volume.tolist() == [0.25, 0.5, 1] and covered.tolist() == [0.2, 0.6, 1]


def test_regret_and_coverage_are_means_of_the_records(runs):
    clips = figure3.oracle_clips(runs)
    assert len(clips) == 2 and len({r["run_id"] for r in clips}) == 1
    steps, layers, regret = figure3.regret_table(clips)
    assert steps == [3, 2, 1] and regret.shape == (len(layers), 3)
    for (i, layer), (j, n) in itertools.product(enumerate(layers), enumerate(steps)):
        own = [r["oracle"]["regret_by_layer"][str(n)][str(layer)] for r in clips]
        assert regret[i, j] == pytest.approx(sum(own) / 2)
    best, guided, f = figure3.coverage_lines(clips, steps)
    assert best - guided == pytest.approx(regret.mean(0), abs=1e-5)  # by layer and by step agree
    assert f[0] == pytest.approx(sum(r["density"]["3"] for r in clips) / 2)
    with_one = [r | {"oracle": {"regret_by_layer": {"1": {"0": 0.5}}}} for r in clips[:1]]
    assert figure3.regret_table(with_one)[2].tolist() == [[0.5]]


def test_windows_have_the_colours_of_the_picture():
    boxes = np.arange(1, 11)[:, None, None, None] * np.ones((1, 1, 1, 3), int)
    windows = {"steps": np.arange(10, 0, -1), "boxes": boxes, "grid": np.full((10, 3), 10)}
    words, colour, legend = in_words(windows)
    assert words[0, 0, 0] == "1x1x1" and words[-1, 0, 0] == "whole grid"
    assert sorted(colour.values()) == sorted(COLOURS)
    assert legend[-1] == (RARER, "2 others  20%") and len(legend) == 9


# -- galleries ----------------------------------------------------------------------------------


def test_galleries_compare_like_with_like(runs):
    group, fitting = gallery_clips.group_with_most(runs)
    assert group == ("micro", 5, 64, 96, 2)  # where most methods are, not the 50 steps
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


def test_galleries_show_the_pixels_of_the_files(runs):
    from s2flow.video import read_frames

    _, fitting = gallery_clips.group_with_most(runs)
    chosen = gallery_clips.figure4_runs(fitting)
    ((prompt, _, key),) = gallery_clips.shared_clips(chosen, most=1)
    for run in chosen.values():
        (record,) = [r for r in read_run(runs / run.id) if r["prompt"] == prompt]
        frames = read_frames(runs / run.id / record["video"]).numpy()
        assert np.array_equal(gallery_clips.middle_frame(runs, run.id, key), frames[1])
    assert gallery_clips.middle_frame(runs, "no such run", key) is None
    low = gallery_clips.middle_frame(runs, chosen["cascade"].id, key, low=True)
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


# -- tables -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["table1", "table2", "table3", "table4"])
@pytest.mark.parametrize("form", tables.FORMATS)
def test_every_table_is_built(name, form, runs, capsys):
    assert tables.main([name, "--runs", str(runs), "--format", form]) == 0
    out = capsys.readouterr().out
    ids = {r.name for r in runs.iterdir() if (r / "records").exists()}
    if form == "csv":
        rows = [r for r in csv.DictReader(io.StringIO(out)) if r["run"]]
        assert len(rows) >= 3 and {r["backbone"] for r in rows} == {"micro"}
        frame = load_records(runs)
        for row in rows:
            assert row["run"] in ids
            own = frame[frame["run_id"] == row["run"]]["score_detail"].mean()
            assert float(row["own detail"]) == pytest.approx(own)
    else:
        assert "toy model" in out
        assert sum(run in out for run in ids) >= 3
