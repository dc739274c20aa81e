"""Prompts: literal text, stable indices, disjoint shards, and errors that say what to type."""

import hashlib
import importlib.util
import json
from pathlib import Path

import pytest

from s2flow import prompts
from s2flow.embedded import world as worlds
from s2flow.errors import UserError
from s2flow.prompts import load_prompts
from s2flow.prompts.__main__ import main

NASTY = (
    '  a ${oc.env:HOME} "cat", it\'s = {x: 1}, %s \\n # no comment \u2028 \x0c 🦊  ',
    "a,b=[1,2]",
    "null",
)
LINES = ("first\r\nsecond",)  # in one prompt


needs_vbench = pytest.mark.skipif(
    importlib.util.find_spec("vbench") is None,
    reason=f"vbench is not installed ({prompts.INSTALL_VBENCH})",
)


def load(source, **given):
    options = {"file": None, "subset": "full", "seed": 0, "shard": "1/1", "count": None}
    return load_prompts(source, **{**options, **given})


def write(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return str(path)


def refused(source, **given):
    with pytest.raises(UserError) as caught:
        load(source, **given)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture
def vbench(tmp_path):
    """A small `VBench_full_info.json`: 40 entries, two of them with the same text."""
    entries = [{"prompt_en": f"scene {i}", "dimension": ["scene"]} for i in range(40)]
    entries[3]["dimension"] = ["temporal_flickering"]
    entries[17]["dimension"] = ["overall_consistency", "imaging_quality"]
    entries[30] = {"prompt_en": "scene 5", "dimension": ["temporal_flickering"]}
    return write(tmp_path / prompts.VBENCH_FILE, json.dumps(entries))


# -- the embedded world -----------------------------------------------------------------------


def test_demo_shows_every_background_and_all_but_the_first_were_never_trained_on():
    texts = [p.text for p in load("demo")]
    assert len(set(texts)) == 6
    for world in (worlds.MICRO, worlds.TINY):
        captions = worlds.all_captions(world)
        assert [worlds.held_out(t) for t in texts] == [False] + 5 * [True]
        assert all(t in captions for t in texts)
        assert {captions[t].background for t in texts} == set(worlds.BACKGROUNDS)


def test_world_defaults_to_sixteen_held_out_captions_in_seeded_order():
    got = load("world")
    assert [p.text for p in got] == worlds.held_out_captions(worlds.MICRO, 16, 0)
    assert [p.index for p in got] == list(range(16))
    assert all(worlds.held_out(p.text) for p in got)
    assert got == load("world") != load("world", seed=1)
    assert load("world", count=5) == got[:5]
    tiny = [p.text for p in load("world", world="tiny", count=4)]
    assert tiny == worlds.held_out_captions(worlds.TINY, 4, 0)
    assert "huge" in refused("world", world="huge")


# -- files ------------------------------------------------------------------------------------


def as_csv(texts):
    return "id,prompt\r\n" + "".join(
        f'{i},"{text.replace(chr(34), 2 * chr(34))}"\r\n' for i, text in enumerate(texts)
    )


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.txt", "\n".join(NASTY)),
        ("p.TXT", "\r\n".join(NASTY) + "\r\n\r\n"),
        ("p.csv", as_csv(NASTY + LINES)),
        ("p.json", json.dumps(NASTY + LINES)),
        ("p.json", json.dumps([{"prompt": t, "id": 1} for t in NASTY], ensure_ascii=False)),
        ("p.jsonl", "".join(json.dumps({"prompt": t}) + "\n" for t in NASTY)),
        ("p.jsonl", "\n".join(json.dumps(t, ensure_ascii=False) for t in NASTY)),
    ],
)
def test_text_is_literal_in_every_format(tmp_path, name, text, encoding):
    got = load("file", file=write(tmp_path / name, text, encoding))
    assert tuple(p.text for p in got) in (NASTY, NASTY + LINES)
    assert [p.index for p in got] == list(range(len(got)))


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("p.txt", "", "is empty"),
        ("p.txt", "\ufeff\n \n", "is empty"),
        ("p.txt", "a\n   \nb\n", "line 2: the prompt is empty"),
        ("p.csv", "prompt\n", "holds no prompt"),
        ("p.csv", "text\na\n", "name one of them prompt"),
        ("p.csv", "prompt,id\n,1\n", "line 2: the prompt is empty"),
        ("p.csv", "prompt\na cat, a dog\n", "double quotes"),
        ("p.csv", 'prompt\n"a cat\n', "double a quote"),
        ("p.json", "[]", "holds no prompt"),
        ("p.json", '{"prompt": "a"}', "is no list"),
        ("p.json", '["a",\n "b"', "line 2, column 5 is not JSON"),
        ("p.json", '["a", ""]', "entry 1: the prompt is empty"),
        ("p.json", '["a", 7]', "entry 1: 7 is no text"),
        ("p.json", '["a", "\\ud83e"]', "a lone surrogate"),
        ("p.json", '[{"text": "a"}]', 'an object without "prompt"'),
        ("p.json", '[{"prompt_en": "a", "dimension": []}]', "prompts=vbench prompts.file="),
        ("p.jsonl", '"a"\n{"prompt": \n', "line 2"),
        ("p.yaml", "- a", ".txt, .csv, .json, .jsonl"),
    ],
)
def test_bad_files_are_refused_with_the_place(tmp_path, name, text, says):
    message = refused("file", file=write(tmp_path / name, text))
    assert says in message and name in message


def test_unreadable_files_are_refused(tmp_path):
    assert "does not exist" in refused("file", file=str(tmp_path / "none.txt"))
    assert "prompts.file=prompts.txt" in refused("file")
    assert "prompts=file prompts.file=x.txt" in refused("demo", file="x.txt")  # not ignored
    mine = write(tmp_path / "mine.json", '[{"prompt": "a"}]')
    assert f"prompts=file prompts.file={mine}" in refused("vbench", file=mine)
    assert "did you mean vbench?" in refused("vbemch")
    assert "UTF-8" in refused("file", file=write(tmp_path / "p.txt", "café", "latin-1"))
    (tmp_path / "d.txt").mkdir()
    assert "cannot be read" in refused("file", file=str(tmp_path / "d.txt"))


# -- VBench -----------------------------------------------------------------------------------


def test_entries_with_one_text_stay_apart_by_index_and_another_list_is_reported(vbench, capsys):
    got = load("vbench", file=vbench)
    warning = capsys.readouterr().err
    assert warning.startswith("warning: ") and warning.count("\n") == 1
    assert vbench in warning and prompts.VBENCH["sha256"][:12] in warning
    of_dimension = load("vbench", file=vbench, subset="temporal_flickering")
    assert [p.index for p in of_dimension] == [3, 30]
    assert [p.index for p in got] == list(range(40))
    assert got[5].text == got[30].text and got[5] != got[30]
    assert got[17].dimensions == ("overall_consistency", "imaging_quality")


def test_the_half_is_seeded_sorted_and_keeps_indices(vbench):
    everything = load("vbench", file=vbench)
    half = load("vbench", file=vbench, subset="half", seed=0)
    indices = [p.index for p in half]
    assert len(half) == 20 and indices == sorted(set(indices))
    assert half == [everything[i] for i in indices]
    assert half == load("vbench", file=vbench, subset="half", seed=0)
    assert half != load("vbench", file=vbench, subset="half", seed=1)


def test_count_takes_the_first_and_smoke_eight_spread_over_the_list(vbench):
    assert load("demo", count=2) == load("demo")[:2] and load("demo", count=99) == load("demo")
    for source in ("demo", "world"):
        assert "prompts.count=0" in refused(source, count=0)
    assert [p.index for p in load("vbench", file=vbench, subset="smoke")] == list(range(2, 40, 5))
    assert load("demo", subset="smoke") == load("demo")


def test_an_unknown_subset_names_the_nearest(vbench):
    message = refused("vbench", file=vbench, subset="temporal_flicker")
    assert "did you mean temporal_flickering?" in message
    assert "did you mean half?" in refused("demo", subset="halv")
    assert "prompts=vbench" in refused("demo", subset="temporal_flickering")


def test_a_missing_vbench_names_the_one_command(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "python -m pip install --no-deps vbench==0.1.5" in refused("vbench")


def test_the_installed_package_is_read_without_importing_it(tmp_path, monkeypatch):
    package = tmp_path / "vbench"
    package.mkdir()
    write(package / "__init__.py", "raise RuntimeError('imported')")
    write(package / prompts.VBENCH_FILE, '[{"prompt_en": "a", "dimension": ["color"]}]')
    monkeypatch.syspath_prepend(tmp_path)
    assert load("vbench") == [prompts.Prompt(0, "a", ("color",))]


@needs_vbench
def test_the_real_list_has_946_entries_and_a_half_of_473():
    everything = load("vbench")
    assert len(everything) == 946 and len({p.text for p in everything}) == 944
    assert len(load("vbench", subset="half")) == 473
    assert len(load("vbench", subset="temporal_flickering")) == 75
    assert len(load("vbench", subset="overall_consistency")) == 93


PUBLISHED = json.loads(Path(prompts.__file__).with_name("vbench_half.json").read_text("utf-8"))


def test_the_published_half_is_what_its_seed_draws_of_any_946_entries():
    """The draw knows only how many entries there are, so this needs no package."""
    entries = [prompts.Prompt(i, "") for i in range(946)]
    drawn = [p.index for p in prompts.select(entries, "half", PUBLISHED["seed"])]
    assert drawn == PUBLISHED["indices"] and len(drawn) == PUBLISHED["count"] == 473
    lines = "".join(f"{i}\n" for i in PUBLISHED["indices"])
    assert hashlib.sha256(lines.encode()).hexdigest() == PUBLISHED["sha256"]
    assert PUBLISHED["source"] == prompts.VBENCH and set(PUBLISHED) == {
        *("source", "subset", "seed", "count", "sha256", "indices")
    }


@needs_vbench
def test_the_command_writes_the_published_half_of_the_installed_list(tmp_path, capsys):
    assert main(["vbench", "half", "--out", str(tmp_path / "half.json")]) == 0
    assert json.loads((tmp_path / "half.json").read_text()) == PUBLISHED
    assert capsys.readouterr() == ("", "")  # its hash is the known one: no warning


def test_the_command_prints_any_subset_with_hashes(vbench, capsys):
    assert main(["vbench", "temporal_flickering", "--file", vbench]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert found["indices"] == [3, 30] and found["count"] == 2
    assert found["sha256"] == hashlib.sha256(b"3\n30\n").hexdigest()
    content = Path(vbench).read_bytes()
    assert found["source"]["sha256"] == hashlib.sha256(content).hexdigest()
    assert found["source"]["entries"] == 40
    assert "scene" not in out  # indices, not texts
    assert main(["demo", "half", "--seed", "1"]) == 0
    assert json.loads(capsys.readouterr().out)["count"] == 3


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["demo", "halv"], "did you mean half?"),
        (["file", "half"], "prompts.file=prompts.txt"),
        (["demo", "half", "--out", "/nowhere/x.json"], "/nowhere/x.json"),
        (["demo", "half", "--file", "x.txt"], "prompts=file prompts.file=x.txt"),
    ],
)
def test_the_command_refuses_in_one_line(words, says, capsys):
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert says in err and err.startswith("error: ") and err.count("\n") == 1 and not out


# -- augmented prompts ------------------------------------------------------------------------


def test_augmented_texts_are_mapped_by_the_index_in_the_uncut_source(tmp_path):
    file = write(tmp_path / "long.jsonl", "".join(f'{{"prompt": "long {i}"}}\n' for i in range(6)))
    got = load("demo", augmented=file, subset="half", seed=3, shard="2/2")
    plain = load("demo", subset="half", seed=3, shard="2/2")
    assert [(p.index, p.original) for p in got] == [(p.index, p.text) for p in plain]
    assert [p.text for p in got] == [f"long {p.index}" for p in plain]


def test_dimensions_and_entries_of_one_text_keep_their_own_long_prompts(vbench, tmp_path):
    texts = [f"a long scene {i}" for i in range(40)]
    texts[7] = "scene 7"  # the same as the entry
    got = load("vbench", file=vbench, augmented=write(tmp_path / "l.txt", "\n".join(texts)))
    assert got[5].original == got[30].original == "scene 5" and got[5].text != got[30].text
    assert got[7].original is None and got[7].text == "scene 7"
    assert got[17].dimensions == ("overall_consistency", "imaging_quality")


@pytest.mark.parametrize("count", [5, 7])
def test_an_augmented_list_of_another_length_is_refused(count, tmp_path):
    file = write(tmp_path / "long.txt", "x\n" * count)
    message = refused("demo", augmented=file, subset="smoke", count=count)
    assert f"prompts.augmented={file} holds {count} prompts, the full source 6" in message
    assert "prompts.augmented=none.txt does not exist" in refused("demo", augmented="none.txt")
    bad = write(tmp_path / "bad.txt", "a\n\nb")
    assert "bad.txt, line 2: the prompt is empty" in refused("demo", augmented=bad)


# -- cutting ----------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 7, 50])
def test_shards_are_disjoint_complete_and_cut_last(vbench, n):
    given = {"file": vbench, "subset": "half", "seed": 4, "count": 17}
    shards = [load("vbench", shard=f"{k}/{n}", **given) for k in range(1, n + 1)]
    together = sorted((p for shard in shards for p in shard), key=lambda p: p.index)
    assert together == load("vbench", **given) and len(together) == 17
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


@pytest.mark.parametrize("shard", ["0/4", "5/4", "1/0", "a/b", "-1/4", "1.5/4", "", "1/2/3"])
def test_shards_that_are_none_are_refused(shard):
    assert f"shard={shard}" in refused("demo", shard=shard)
