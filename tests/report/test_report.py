"""The report: every clip with its scores, texts as texts, no request, and notes for broken files."""

import base64
import fnmatch
import hashlib
import json
import re
import tomllib
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from finished import encoded, finished_run
from PIL import Image

from s2flow import report
from s2flow.report.__main__ import main
from s2flow.report.content import labels, text_of
from s2flow.store import Store, clip_key, read_record
from s2flow.store.recipes import ADDED_FIELDS, LOW_FIELDS
from s2flow.store.scorebook import ScoreBook

ROOT = Path(__file__).parents[2]
EVIL = "<script>alert(1)</script> \"q\" 's' & {{ 7 * 7 }} $x"
RECIPE = {"backbone": "micro", "weights": "abc", "method": "s2flow", "steps": 20, "shift": 1.5}
RECIPE |= {"frames": 2, "high": [64, 96], "low": [32, 48], "guidance": 4.0, "negative_prompt": ""}
RECIPE |= {"t_i": 12, "sparsity": 0.5, "density": "volume", "solver": "lri", "order": 2}
RECIPE |= {"windows": {"name": "adaptive", "exponents": [[1.0, 0.0, 0.0]]}}
ALWAYS = ("backbone", "weights", "method", "steps", "high", "guidance")


class Page(HTMLParser):
    """A page: tags with attributes, scripts and styles, and the data that scripts show as text."""

    def __init__(self, text):
        super().__init__()
        self.source, self.tags, self.inside = text, [], {}
        self.feed(text)
        self.data = json.loads(self.inside["script", "application/json"])

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.cdata_elem:
            key = (self.cdata_elem, self.tags[-1][1].get("type"))
            self.inside[key] = self.inside.get(key, "") + data

    @property
    def cells(self):
        return [cell for row in self.data["rows"] for cell in row["cells"]]

    @property
    def addresses(self):
        """Whatever the page could fetch."""
        named = [a[k] for _, a in self.tags for k in ("src", "href") if k in a]
        return named + [c[k] for c in self.cells for k in ("src", "poster") if k in c]

    @property
    def videos(self):
        return [cell["src"] for cell in self.cells if "src" in cell]

    def label(self, cell):
        return cell["label"] if cell["run"] is None else self.data["runs"][cell["run"]]["label"]

    def scores(self, cell):
        return dict(zip(self.data["scores"], cell["scores"], strict=True))


def clip(runs, run_id, prompt, seed=0, low=b"low", scores=None, recipe=None, **other):
    """Write a clip and its record, as the runner does; the video's bytes name run and prompt."""
    recipe, key = RECIPE | (recipe or {}), clip_key(prompt, seed)
    store = Store(runs, run_id, {"version": 1, **recipe})
    video = f"{run_id} {prompt} {seed}".encode()
    store.path("clips", f"{key}.mp4").write_bytes(video)
    if low:
        store.path("clips", f"{key}.low.mp4").write_bytes(low)
    else:  # a method without LR flow
        recipe = {k: v for k, v in recipe.items() if k in ALWAYS}
        other |= {"windows": None, "density": {}}
    record = {
        **{"status": "ok", "run_id": run_id, "recipe": recipe, "prompt": prompt, "seed": seed},
        **{"prompt_index": [0], "video": f"clips/{key}.mp4", "bytes": len(video)},
        **{"height": 64, "width": 96, "windows": "adaptive", "density": {"2": 0.5, "1": 0.25}},
        **{"seconds": {"lr": 1.0, "hr": 2.0, "decode": 0.5, "write": 9.0}, "device": "cpu"},
        **{"scores": {"detail": 0.7} if scores is None else scores, "commit": "abc", **other},
    }
    store.commit(key, record)
    return store, key, record


def make(runs, **options):
    report.write_report(runs, **options)
    return Page((options.get("output") or runs / "report.html").read_text(encoding="utf-8"))


@pytest.fixture
def runs(tmp_path):
    """Two runs of two prompts, and one without an LR flow."""
    folder = tmp_path / "runs"
    for i, prompt in enumerate(("a cat", "a dog")):
        for j, s in enumerate((0.5, 0.25)):
            scores = {"detail": 0.111 * (1 + i + 2 * j), "world_agreement": None}
            clip(folder, f"run{j}", prompt, scores=scores, recipe={"sparsity": s})
        scores = {"detail": 0.9, "only_native": 0.123}
        clip(folder, "run2", prompt, low=None, scores=scores, recipe={"method": "native"})
    return folder


def test_every_clip_is_shown_with_its_scores_and_seconds_and_the_lr_clip_once_a_row(runs):
    page = make(runs)
    ours = {str(p.relative_to(runs)) for p in runs.glob("run*/clips/*.mp4") if "low" not in p.name}
    shown = [v for v in page.videos if "low" not in v]
    assert set(shown) == ours and len(shown) == 6
    assert sum("low" in v for v in page.videos) == 2
    assert [page.label(c).split()[0] for c in page.cells] == ["LR", "native", *["s2flow,"] * 2] * 2
    assert page.label(page.cells[3]) == page.label(page.cells[7]) == "s2flow, adaptive s=0.5"
    assert page.scores(page.cells[3])["detail"] == 0.111
    assert page.scores(page.cells[6])["detail"] == 0.444
    assert [c["total"] for c in page.cells if c["run"] is not None] == [3.5] * 6  # without writing
    assert page.cells[3]["seconds"] == [None, 1.0, None, None, 2.0, 0.5]
    assert page.scores(page.cells[3])["world_agreement"] is None  # not measured, so no zero
    assert page.cells[3]["f"] == 0.375 and page.cells[1]["f"] is None


def test_the_table_holds_means_over_the_clips_that_have_a_value(runs):
    clip(runs, "run2", "a cow", low=None, scores={}, recipe={"method": "native"})
    page = make(runs)
    by_id = {run["id"]: run for run in page.data["runs"]}
    detail = page.data["scores"].index("detail")
    assert by_id["run0"]["clips"] == 2 and by_id["run0"]["density"] == [0.375, 4]
    assert by_id["run0"]["scores"][detail] == [0.1665, 2]
    assert by_id["run2"]["clips"] == 3 and by_id["run2"]["density"][1] == 0
    assert by_id["run2"]["scores"][detail] == [0.9, 2]
    mean, low, high, prompts = by_id["run0"]["intervals"][detail]
    assert low < 0.111 + 0.05 and high > 0.222 - 0.05 and (mean, prompts) == (0.1665, 2)
    assert any("(2 are in all of them)" in note for note in page.data["notes"])


def test_labels_hold_only_what_differs_and_the_page_names_toy_backbones(tmp_path, capsys):
    for run_id, changed in {"a": {}, "b": {"sparsity": 0.25}, "c": {"order": 3}}.items():
        clip(tmp_path / "runs", run_id, "a cat", recipe=changed)
    assert labels(report.read_runs(tmp_path / "runs")) == {
        "a": "adaptive s=0.5, lri K=2",
        "b": "adaptive s=0.25, lri K=2",
        "c": "adaptive s=0.5, lri K=3",
    }
    assert "micro (embedded, of a toy world: no number" in make(tmp_path / "runs").data["about"]
    only = tmp_path / "only"
    clip(only, "a", "a cat", recipe={"backbone": "wan_14b"})
    assert labels(report.read_runs(only)) == {"a": "s2flow"}
    main([str(only)])
    assert capsys.readouterr().out == f"{only / 'report.html'}: 1 run(s), 1 row(s)\n"
    assert make(only).data["about"].endswith("; backbone wan_14b")


OTHER_LOW = {  # one other value for all that decides an LR flow
    **{"backbone": "tiny", "weights": "def", "steps": 8, "shift": 3.0, "frames": 4},
    **{"guidance": 5.0, "negative_prompt": "blur", "dtype": "bfloat16", "fp8": True},
    **{"guidance_2": 2.0, "low": [48, 48], "input": "0123456789ab"},
    "pipeline": {"adapters": [["transformer", "style", 1.0, "abc"]]},
}


@pytest.mark.parametrize("knob", LOW_FIELDS)
def test_runs_with_other_lr_flows_show_their_own_lr_clips(tmp_path, knob):
    clip(tmp_path, "a", "a cat")
    clip(tmp_path, "b", "a cat", recipe={"sparsity": 0.25, "brick_low": [1, 2, 2]})
    clip(tmp_path, "c", "a cat", low=b"other", recipe={knob: OTHER_LOW[knob]})
    page = make(tmp_path)
    lows = [cell for cell in page.cells if cell["run"] is None]
    shown = {cell["label"]: (tmp_path / cell["src"]).read_bytes() for cell in lows}
    assert sorted(shown.values()) == [b"low", b"other"]
    (own,) = [words for words, found in shown.items() if found == b"other"]
    said = text_of(OTHER_LOW[knob])
    assert own.startswith("LR 48×48" if knob == "low" else f"LR 32×48, {knob}={said}")
    if knob in ADDED_FIELDS:  # old records have no such field
        first = next(iter(shown.keys() - {own}))
        assert first == f"LR 32×48, {knob}={text_of(ADDED_FIELDS[knob])}"


def test_order_follows_prompts_and_values_and_nothing_else(tmp_path):
    clips = [("x", "b", 12, 0), ("y", "b", 8, 0), ("y", "a", 8, 1), ("x", "a", 12, 1)]
    for name, order in (("one/runs", clips), ("two/runs", clips[::-1])):
        for run_id, prompt, t_i, index in order:
            clip(tmp_path / name, run_id, prompt, recipe={"t_i": t_i}, prompt_index=[index])
    first, second = make(tmp_path / "one/runs"), make(tmp_path / "two/runs")
    assert first.source == second.source
    assert [first.label(c).split()[0] for c in first.cells][:3] == ["LR", "t_i=8", "t_i=12"]
    assert unquote(first.videos[1]).endswith(f"{clip_key('b', 0)}.mp4")  # its list puts b first


def test_a_prompt_is_text_whatever_it_holds(tmp_path):
    clip(tmp_path, "run", EVIL, scores={EVIL: 0.5}, recipe={"negative_prompt": EVIL}, device=EVIL)
    clip(tmp_path, "other", EVIL, recipe={"negative_prompt": "x"})
    page = make(tmp_path)
    assert page.data["rows"][0]["prompt"] == EVIL and EVIL in page.data["scores"]
    assert [tag for tag, _ in page.tags].count("script") == 2  # the data, and the page's own
    assert page.source.count("alert(1)") == json.dumps(page.data).count("alert(1)")
    assert not re.search("[<>&\u2028\u2029]", page.inside["script", "application/json"])
    assert all(len(v) < 200 and "alert" not in v for v in page.videos)


def test_paths_with_any_character_lead_to_the_clips(tmp_path):
    runs = tmp_path / 'my "runs" #1 50% <b>&\'é'
    name = "x'\"#?% <i>&:é"
    clip(runs, name, "a cat")
    for output in (None, tmp_path / "other place" / "page.html"):
        page = make(runs, output=output)
        base = output.parent if output else runs
        found = [(base / unquote(v)).resolve() for v in page.videos]
        assert found and all(p.parent == runs / name / "clips" and p.exists() for p in found)
        assert not any(set(v) & set("\"'<>#?: ") for v in page.videos)
        assert name in [run["id"] for run in page.data["runs"]]


@pytest.mark.parametrize("embed", [False, True])
def test_no_network_is_used_and_an_embedding_page_holds_its_videos(runs, embed):
    page = make(runs, embed=embed)
    assert not re.search(
        r"https?:(?!//www.w3.org/2000/svg)|url\(|@import|fetch\(|XMLHttp|WebSocket", page.source
    )
    assert all(a.startswith("data:") or ":" not in a for a in page.addresses)
    assert not any(a.startswith("/") for a in page.addresses) and len(page.videos) == 8
    if embed:
        content = {base64.b64decode(v.removeprefix("data:video/mp4;base64,")) for v in page.videos}
        assert content == {p.read_bytes() for p in runs.glob("*/clips/*.mp4")}
        assert not any(".mp4" in a for a in page.addresses)


def test_only_the_template_s_own_script_may_run(runs):
    page = make(runs)
    (policy,) = [a["content"] for _, a in page.tags if "http-equiv" in a]
    for tag, kind in (("script", "module"), ("style", None)):
        digest = hashlib.sha256(page.inside[tag, kind].encode()).digest()
        assert f"{tag}-src 'sha256-{base64.b64encode(digest).decode()}'" in policy
    assert "default-src 'none'" in policy


def test_a_folder_holds_copies_and_can_be_moved(runs, tmp_path):
    data = encoded()
    for path in runs.glob("run0/clips/*.mp4"):  # only these are videos
        path.write_bytes(data)
    for path in runs.glob("run0/records/*.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"bytes": len(data)}))
    report.write_report(runs, tmp_path / "page")
    (tmp_path / "page").rename(tmp_path / "moved")
    page = Page((tmp_path / "moved/index.html").read_text(encoding="utf-8"))
    found = [(tmp_path / "moved" / unquote(v)).resolve() for v in page.addresses if "." in v]
    assert len(found) == 8 + 2 and all(p.is_relative_to(tmp_path / "moved") for p in found)
    posters = [p for p in found if p.suffix == ".jpg"]
    assert len(posters) == 2 and all(Image.open(p).size == (48, 32) for p in posters)
    copied = {p.read_bytes() for p in found if p.suffix == ".mp4"}
    assert copied == {p.read_bytes() for p in runs.glob("*/clips/*.mp4")}


def test_a_page_made_again_copies_only_what_changed(runs, tmp_path):
    report.write_report(runs, tmp_path / "page")
    copies = sorted((tmp_path / "page").rglob("*.mp4"))
    before = [p.stat().st_ino for p in copies]
    changed = runs / "run1/clips" / f"{clip_key('a dog', 0)}.mp4"
    changed.write_bytes(b"x" * changed.stat().st_size)
    report.write_report(runs, tmp_path / "page")
    again = [p for p, inode in zip(copies, before, strict=True) if p.stat().st_ino != inode]
    assert [p.relative_to(tmp_path / "page/clips") for p in again] == [Path("run1", changed.name)]
    assert again[0].read_bytes() == changed.read_bytes()


def test_no_page_is_written_over_another_s_or_into_a_run(runs, tmp_path, capsys):
    (tmp_path / "site").mkdir()
    (tmp_path / "site/index.html").write_text("mine")
    assert "was not written by this command" in exits(capsys, runs, "-o", tmp_path / "site")
    assert (tmp_path / "site/index.html").read_text() == "mine"
    assert "is a run's folder" in exits(capsys, runs, "-o", runs / "run0")


def test_what_is_wrong_stands_in_the_place_of_the_clip_and_the_rest_survives(runs):
    key = clip_key("a cat", 0)
    (runs / f"run0/records/{key}.json").write_text('{"status": "ok", "pro')
    (runs / f"run1/clips/{key}.mp4").unlink()
    (runs / f"run1/clips/{key}.low.mp4").write_bytes(b"")
    (runs / f"run2/clips/{key}.mp4").write_bytes(b"half")
    (runs / "run2/records/0123456789abcdef.json").write_text("[]")
    (runs / "run2/recipe.json").unlink()
    failure = {"prompt": "a cow", "seed": 0, "error": "Oops('<b>')"}
    Store(runs, "run0", {}).fail(clip_key("a cow", 0), failure)
    (runs / "run0/failures/other.json").write_text("{}")
    (runs / "run0/failures/surrogate.json").write_text(r'{"prompt": "\ud800", "seed": 0}')
    (runs / "begun/records").mkdir(parents=True)
    page = make(runs)
    notes = {c["note"] for c in page.cells if c.get("note")}
    assert notes == {
        f"records/{key}.json cannot be read",
        f"clips/{key}.mp4: No such file or directory",
        f"clips/{key}.low.mp4 is half-written (0 bytes)",
        f"clips/{key}.mp4 is half-written (4 bytes)",
        "failed: Oops('<b>')",
        "failed: None",  # a failure that does not say why
    }
    lost = ("run0/failures/other", "run2/records/0123456789abcdef", "run2/recipe")
    lost = {f"{name}.json cannot be read." for name in lost}
    assert {"begun has no finished clip."} | lost < set(page.data["notes"])
    other = clip_key("a dog", 0)
    assert {v for v in page.videos if other in v} == set(page.videos)
    assert len(page.videos) == 4


WRONG = [
    *({k: None} for k in ("prompt", "seed", "video", "recipe", "scores", "seconds", "height")),
    *({"seconds": {"lr": v}} for v in ("x", None, float("nan"))),
    *({"scores": {"detail": v}} for v in ("x", [], float("inf"), 10**400)),
    *({"recipe": RECIPE | {"low": v}} for v in (None, 5, [1], ["a", "b"], [1, 2, 3])),
    *({"fps": v} for v in (0, "8", None)),
    *({"density": [1]}, {"density": {"1": "x"}}, {"prompt_index": []}, {"prompt": "\ud800"}),
]


def test_a_record_of_other_shape_is_noted_and_never_fatal(tmp_path):
    clip(tmp_path, "whole", "a cat")
    store, key, record = clip(tmp_path, "wrong", "a cat", recipe={"sparsity": 0.25})
    path = store.path("records", f"{key}.json")
    for wrong in WRONG:
        path.write_text(json.dumps(record | wrong))
        _, run = sorted(report.read_runs(tmp_path), key=lambda run: run.id == "wrong")
        assert run.broken == {key: f"records/{key}.json"} and not run.records, wrong
    page = make(tmp_path)
    assert f"wrong/records/{key}.json cannot be read." in page.data["notes"]
    assert len(page.videos) == 2


def exits(capsys, *words):
    """Run the command line, which must fail; its one line."""
    with pytest.raises(SystemExit) as stopped:
        main([str(w) for w in words])
    out, err = capsys.readouterr()
    assert stopped.value.code == 2 and not out
    assert err.startswith("error: ") and err.count("\n") == 1
    return err


def test_folders_with_nothing_to_show_get_one_line_and_leave_no_page(tmp_path, runs, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    (tmp_path / "broken/run/records").mkdir(parents=True)
    (tmp_path / "broken/run/records/x.json").write_text("{")
    for folder, said in {
        tmp_path / "absent": "No such file",
        tmp_path / "file": "Not a directory",
        tmp_path / "empty": "no run and no finished clip",
        tmp_path / "broken": "1 run(s) but no finished clip",
        runs / "run0": f"holds it: {runs}",
    }.items():
        assert said in exits(capsys, folder)
    assert not list(tmp_path.rglob("*.html"))


def test_a_page_that_cannot_be_written_costs_one_line_and_the_old_one_stays(
    runs, tmp_path, capsys, monkeypatch
):
    (tmp_path / "file").write_text("x")
    for page in (tmp_path / "file/page", tmp_path / "file/page.html", "/proc/absent/page"):
        assert "cannot be written" in exits(capsys, runs, "-o", page)
    make(runs)
    before = (runs / "report.html").read_bytes()
    clip(runs, "run3", "a cat")

    def full(*words):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    assert "No space left" in exits(capsys, runs)
    assert (runs / "report.html").read_bytes() == before
    assert not list(runs.rglob(".tmp-*"))


def test_all_that_the_page_is_made_of_is_shipped_with_the_package():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    patterns = tomllib.loads(text)["tool"]["setuptools"]["package-data"]["*"]
    parts = [p.name for p in Path(report.__file__).parent.iterdir() if p.is_file()]
    parts = [name for name in parts if not name.endswith(".py")]
    assert {"page.html", "page.css"} | {f"{name}.js" for name in report.SCRIPTS} == set(parts)
    assert all(any(fnmatch.fnmatch(name, p) for p in patterns) for name in parts)


def test_scores_of_the_book_are_joined_and_an_augmented_text_of_two_prompts_is_two_rows(tmp_path):
    folder = finished_run(tmp_path, [("long text", 0), ("another", 0)])
    paths = sorted(folder.glob("records/*.json"))
    for path, original in zip(paths, "ab", strict=True):
        own = {"prompt": "long text", "original_prompt": original}
        path.write_text(json.dumps(read_record(path) | own))
    clip = {"key": paths[0].stem, "clip": read_record(paths[0])["sha256"], "scorer": "half"}
    clip |= {"metric": "m", "status": "ok", "scores": {"half": 0.5}, "at": 1.0}
    ScoreBook(folder).add(clip)
    (run,) = report.read_runs(tmp_path)
    found = {row[2]: record["scores"] for row, record in run.records.items()}
    assert not run.broken and found == {"a": {"half": 0.5}, "b": {}}
