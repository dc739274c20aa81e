"""Tables as markdown, LaTeX, CSV and HTML: marks, the paper's own rows, origins, what is missing."""

import csv
import io
import re
from html.parser import HTMLParser

import notes
import pandas as pd
import pytest
import sheet
import tables
import yaml
from test_conf import CONF, recipes
from test_tables import PAPER, by_setting, clips, make, make_tables, run_main, sparsity_sweep

from s2flow import metrics

REAL = {
    "backbone": "hunyuan",
    "height": 1536,
    "width": 2560,
    "frames": 117,
    "steps": 50,
    "t_i": 30,
}


def of_the_paper(name):
    """Clips of the paper's model whose scores are the paper's rows; where it prints only Temporal and
    Visual, these stand for each of their dimensions."""
    found = []
    for row in PAPER[tables.TABLES[name].rows]:
        if name == "table1":
            dimensions = {d: row[d] for d in metrics.SIX}
        elif "mean" in row:
            dimensions = dict.fromkeys(metrics.TEMPORAL, row["temporal"])
            dimensions |= dict.fromkeys(metrics.VISUAL, row["visual"])
        else:
            continue
        knobs = {k: row[k] for k in ("method", "sparsity", "order", "t_i") if k in row}
        scores = {f"score_{d}": x for d, x in dimensions.items()}
        found += clips(**{**REAL, "score_world_agreement": None, **knobs, **scores})
    return found


# -- the paper's rows -------------------------------------------------------------------------


@pytest.mark.parametrize("name", tables.TABLES)
def test_the_papers_rows_come_out_of_the_same_code_within_1e_4(name):
    (table,) = make(name, of_the_paper(name))
    compared = 0
    for row in table.rows:
        for title in ("Temporal", "Visual", "Mean"):
            theirs = row.get(notes.PAPER + title)
            if row["clips"] and theirs is not None:
                assert row[title] == pytest.approx(theirs, abs=1e-4 + 1e-9)
                assert abs(row[sheet.MINUS + title]) < 1e-4 + 1e-9
                compared += 1
    assert compared == {"table1": 5, "table2": 12, "table3": 9, "table4": 12}[name]
    assert not notes.embedded_note(table.group)


def test_a_missing_dimension_leaves_blanks_also_in_the_difference():
    records = [r | {"score_imaging_quality": None} for r in of_the_paper("table2")]
    (table,) = make("table2", records)
    for row in table.rows:
        assert row["Visual"] is None and row["Mean"] is None
        assert row[sheet.MINUS + "Mean"] is None
        if row["clips"]:
            assert row["Temporal"] == pytest.approx(row[notes.PAPER + "Temporal"], abs=1e-9)
    assert table.counts["s=0.5 adaptive"]["Mean"] == 0
    assert table.counts["s=0.5 adaptive"]["Temporal"] == 2


def test_clips_are_counted_of_the_papers_473_or_of_what_was_asked_for():
    (table,) = make("table2", of_the_paper("table2"))
    assert by_setting(table)["s=0.5 adaptive"]["clips"] == "2 of 473"
    assert any("473" in note and "--of" in note for note in table.notes)
    (other,) = make_tables("table2", pd.DataFrame(of_the_paper("table2")), of=8)
    assert by_setting(other)["s=0.5 adaptive"]["clips"] == "2 of 8"
    (toy,) = make("table2", sparsity_sweep())
    assert by_setting(toy)["s=0.5 adaptive"]["clips"] == "2 of 2"


# -- an embedded backbone ---------------------------------------------------------------------


def test_embedded_backbones_are_those_of_the_family_tiny():
    confs = {p.stem: yaml.safe_load(p.read_text()) for p in CONF.glob("backbone/*.yaml")}
    tiny = {name for name, conf in confs.items() if conf.get("family") == "tiny"}
    assert tiny == set(notes.EMBEDDED)


@pytest.mark.parametrize("form", ["text", "md", "tex", "html"])
def test_a_table_of_an_embedded_backbone_says_so_and_takes_no_difference_to_the_paper(form):
    toy, real = make("table2", sparsity_sweep()), make("table2", of_the_paper("table2"))
    assert "toy model" in tables.FORMATS[form](toy)
    assert "ours minus" not in tables.FORMATS[form](toy)
    assert "toy model" not in tables.FORMATS[form](real)
    assert "ours minus its Mean" in tables.FORMATS[form](real)


# -- marks ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "cells", "expected"),
    [
        ("Mean", [0.3, 0.1, 0.2], ["best", "", "second"]),
        ("repetition", [0.3, 0.1, 0.2], ["", "best", "second"]),  # lower is better
        ("minutes", [61, 44, 46], ["", "best", "second"]),
        ("detail", [1.3, 0.9, 0.6], ["second", "best", ""]),  # that of a true render is 1
        ("Mean", [0.3, 0.30004, 0.2], ["best", "best", "second"]),  # alike as printed
        ("Mean", [0.3, 0.2, 0.2], ["best", "second", "second"]),
        ("Mean", [0.3, 0.3, 0.3], ["", "", ""]),
        ("Mean", [0.3, None, "fail"], ["", "", ""]),  # alone, nothing is best
        ("f", [0.3, 0.2, 0.1], ["", "", ""]),  # no better end
        ("seconds hr", [0.3, 0.2, 0.1], ["", "", ""]),
    ],
)
def test_best_and_second_best(column, cells, expected):
    assert sheet.marks(column, cells, [4] * len(cells)) == expected
    for fewer in (0, 1):  # a mean over fewer clips is not ranked
        assert sheet.marks("Mean", [0.9, 0.3, 0.2], [fewer, 4, 4]) == ["", "best", "second"]


def test_ours_and_the_papers_are_ranked_apart():
    (table,) = make("table2", of_the_paper("table2"))
    grid = sheet.grids(table)[0]
    for column in ("Mean", notes.PAPER + "Mean"):
        found = [row[grid.head.index(column)] for row in grid.rows]
        assert [c[0].rstrip("*") for c in found if c[1] == "best"] == ["0.7416"]
        assert [c[0].rstrip("*") for c in found if c[1] == "second"] == ["0.7404"]


# -- origins ----------------------------------------------------------------------------------


class Cells(HTMLParser):
    """Rows of every table of a page, as text; and all tags."""

    def __init__(self, page):
        super().__init__()
        self.rows, self.tags, self.open = [], [], False
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self.open = True

    def handle_endtag(self, tag):
        self.open = self.open and tag not in ("td", "th")

    def handle_data(self, data):
        if self.open:
            self.rows[-1][-1] += data


def test_every_number_of_ours_is_traced_to_a_run_and_its_clips():
    (table,) = make("table2", sparsity_sweep(), clips(3, windows="fixed"))
    grid = sheet.grids(table)[-1]
    run_of = {row["setting"]: row["run"] for row in table.rows}
    traced = {
        row[0][0]: dict(zip(grid.head, (c for c, _ in row), strict=True)) for row in grid.rows
    }
    for row in table.rows:
        numbers = [c for c, x in row.items() if isinstance(x, float) and "HunyuanVideo" not in c]
        for column in numbers:
            if not column.startswith("seconds"):
                assert traced[row["setting"]][column] == row["clips"].split()[0]
        if row["clips"]:
            assert traced[row["setting"]]["run"] == run_of[row["setting"]]
    page = Cells(tables.FORMATS["html"]([table])).rows
    assert ["s=0.5 fixed", run_of["s=0.5 fixed"]] == [
        r[:2] for r in page if r[:1] == ["s=0.5 fixed"]
    ][-1]
    line = next(
        r
        for r in csv.DictReader(io.StringIO(tables.FORMATS["csv"]([table])))
        if r["clips"] == "3 of 3"
    )
    assert line["run"] == run_of["s=0.5 fixed"] and line["own world_agreement clips"] == "3"
    assert line["embedded"] == "1"
    for form in ("md", "tex"):
        assert run_of["s=0.5 fixed"] in tables.FORMATS[form]([table])


# -- escapes ----------------------------------------------------------------------------------

NASTY = r"""<script>alert("x")</script> & 50% $x$ #1 a_b {c} ~ ^ \d | `e` [f] ²Δ—"""


@pytest.fixture
def nasty():
    rows = [r for v in (NASTY, None) for r in clips(method="hiflow", variant=v)]
    return make("table1", clips(), rows)


def test_html_shows_text_as_text(nasty):
    page = Cells(tables.FORMATS["html"](nasty))
    assert "script" not in page.tags
    assert f"hiflow {NASTY}" in {row[0] for row in page.rows}


def test_markdown_keeps_its_columns(nasty):
    for block in tables.FORMATS["md"](nasty).split("\n\n"):
        lines = [line for line in block.splitlines() if line.startswith("|")]
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) <= 1
    assert "<script" not in tables.FORMATS["md"](nasty).replace("\\<script", "")


def test_latex_is_balanced_and_escaped(nasty):
    text = tables.FORMATS["tex"]([*nasty, *make("table2", of_the_paper("table2"))])
    bare = re.sub(r"\\[\\&%$#_{}]", "", text)
    depth = 0
    for c in bare:
        depth += {"{": 1, "}": -1}.get(c, 0)
        assert depth >= 0
    assert depth == 0 and bare.count("$") % 2 == 0
    opened = re.findall(r"\\begin\{(\w+\*?)\}", text)
    assert sorted(opened) == sorted(re.findall(r"\\end\{(\w+\*?)\}", text))
    for part in re.findall(r"\\begin\{tabular\}\{(\w+)\}(.*?)\\end\{tabular\}", text, re.DOTALL):
        columns, body = part
        lines = [x for x in body.split(r"\\" + "\n") if "&" in x]
        assert {len(re.findall(r"(?<!\\)&", line)) + 1 for line in lines} == {len(columns)}
    for line in bare.splitlines()[1:]:
        assert not re.search(
            r"[#%~^]|(?<!\{tabular)_",
            line.replace("{!}{%", "").replace("^2", "").replace("^3", "").replace(r"^\circ", ""),
        )
    assert "²" not in text and "Δ" in text  # known symbols; letters are kept


# -- what is missing --------------------------------------------------------------------------


def test_missing_rows_are_named_with_the_command_that_makes_them(monkeypatch, tmp_path, capsys):
    frame = pd.DataFrame([*sparsity_sweep(), *clips(1, windows="fixed")])
    assert run_main(monkeypatch, tmp_path, frame, "table2") == 0
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "s=0.75 adaptive (0 of 2 clips)" in err
    assert "s=0.5 fixed (1 of 2 clips)" in err and "s=0.25" not in err
    assert "python run.py experiment=table2 prompts.count=2" in err
    assert f"runs_dir={tmp_path}" in err
    assert run_main(monkeypatch, tmp_path, frame, "table2", "--strict") == 1
    whole = [r for s in (0.25, 0.5, 0.75, 1.0) for r in clips(sparsity=s)]
    frame = pd.DataFrame([*whole, *clips(windows="fixed")])
    capsys.readouterr()
    assert run_main(monkeypatch, tmp_path, frame, "table2", "--strict") == 0
    assert not capsys.readouterr().err


@pytest.mark.parametrize("name", tables.TABLES)
def test_the_printed_command_makes_rows_of_this_very_table(name):
    """What it would make is what the table holds: composed by Hydra, compared knob by knob."""
    own = {"density": "per_axis", "noise": "aligned", "steps": 40, "t_i": 24, "order": 3}
    (table,) = make(name, clips(**own), clips(**(own | {"windows": "fixed"})))
    sweep = "-m " if name == "table4" else ""  # its t_i takes the place of the experiment's own
    made = recipes(sweep + table.command.removeprefix("python run.py "))
    varied = tables.TABLES[name].varied
    s2flow = [r for r in made if r.method == "s2flow"]
    assert s2flow and all(r.steps == 40 for r in made)
    for r in s2flow:
        assert r.noise == "aligned" and (r.density == "per_axis" or r.sparsity == 1)
        assert "order" in varied or r.order == 3
        assert "t_i" in varied or r.t_i == 24
    if name == "table4":
        assert {r.t_i for r in s2flow} == {32, 24, 16, 8}


def test_asking_for_no_prompts_is_refused(capsys):
    with pytest.raises(SystemExit):
        tables.main(["table1", "--of", "0"])
    assert "--of 0" in capsys.readouterr().err
