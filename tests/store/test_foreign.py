"""Clips from elsewhere become a run that everything reads; a run becomes a folder that VBench reads."""

import pytest
from finished import encoded, finished_run, state

from s2flow.errors import UserError
from s2flow.store import load_records, read_run, sha256_of
from s2flow.store.__main__ import main
from s2flow.store.foreign import imported
from s2flow.store.verify import verify


def folder_of(path, *names):
    """A folder of mp4s, each of other content."""
    path.mkdir()
    for i, name in enumerate(names):
        (path / f"{name}.mp4").write_bytes(encoded(kind=i))
    return path


def prompts_in(path, *lines):
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)


def clips(runs_dir, run_id):
    """File -> (prompt, seed, place in the list) of a run."""
    records = read_run(runs_dir / run_id)
    return {r["file"]: (r["prompt"], r["seed"], r["prompt_index"][0]) for r in records}


@pytest.mark.parametrize("first", [0, 1])
def test_numbers_are_places_in_the_list_counted_from_the_first_number_there_can_be(
    tmp_path, first
):
    videos = folder_of(tmp_path / "v", f"000{first}", f"00{first + 2}", f"{first + 1}")
    listed = prompts_in(tmp_path / "p.txt", "a, cat", "a/b", "a, cat")
    assert clips(tmp_path, imported(videos, listed, tmp_path)) == {
        f"000{first}.mp4": ("a, cat", 0, 0),
        f"{first + 1}.mp4": ("a/b", 0, 1),
        f"00{first + 2}.mp4": ("a, cat", 1, 2),  # the same text again: another seed
    }


def test_vbench_s_names_hold_prompt_and_seed_with_or_without_a_list(tmp_path):
    videos = folder_of(tmp_path / "v", "a cat-0", "a cat-3", "a well-lit dog. 2-1")
    alone = imported(videos, None, tmp_path)
    listed = prompts_in(tmp_path / "p.txt", "a well-lit dog. 2", "a cat")
    places = {"a cat-0.mp4": 0, "a cat-3.mp4": 0, "a well-lit dog. 2-1.mp4": 1}
    known = {n: (n[:-6], int(n[-5]), place) for n, place in places.items()}
    assert clips(tmp_path, alone) == known
    by_list = clips(tmp_path / "b", imported(videos, listed, tmp_path / "b"))
    assert by_list == {
        name: (text, seed, 1 - place) for name, (text, seed, place) in known.items()
    }


def test_the_run_is_whole_named_by_its_content_and_made_once(tmp_path, capsys):
    videos = folder_of(tmp_path / "v", "a cat-0", "a cat-1")
    (videos / "notes.txt").write_text("x")
    runs = tmp_path / "runs"
    run_id = imported(videos, None, runs)
    assert "2 clips" in (told := capsys.readouterr().out) and "left out, since no .mp4: 1" in told
    assert list(verify(runs)) == []
    (row, _) = load_records(runs).to_dict("records")
    assert (row["method"], row["variant"], row["frames"]) == ("foreign", "v", 3)
    assert row["seconds_total"] is None or row["seconds_total"] != row["seconds_total"]  # not 0
    before = state(runs)
    assert imported(videos.rename(tmp_path / "w"), None, runs) == run_id and state(runs) == before
    (tmp_path / "w/a cat-1.mp4").write_bytes(encoded(kind=3))
    assert imported(tmp_path / "w", None, runs) != run_id and state(runs).items() >= before.items()


def test_a_killed_import_goes_on(tmp_path):
    videos = folder_of(tmp_path / "v", "a cat-0", "a cat-1")
    run = tmp_path / imported(videos, None, tmp_path)
    whole = {r["file"] for r in read_run(run)}
    next((run / "records").iterdir()).unlink()
    imported(videos, None, tmp_path)
    assert {r["file"] for r in read_run(run)} == whole and list(verify(tmp_path)) == []


@pytest.mark.parametrize(
    ("names", "listed", "told"),
    [
        ((), None, "holds no .mp4"),
        (("0001",), None, "1 of 1 clips have no prompt: '0001.mp4'"),
        (("0001", "0004"), ("a", "b"), "1 of 2 clips have no prompt: '0004.mp4'"),
        (("a-0", "c-0"), ("a", "b"), "'c-0.mp4'"),
        (("a-0", "a-00"), None, "are one clip"),
        (("1", "a-0"), ("a", "b"), "are one clip"),
        (("1", "01"), ("a", "b"), "are one clip"),
    ],
)
def test_names_that_fit_no_prompt_or_the_same_are_refused_before_anything_is_copied(
    tmp_path, names, listed, told
):
    videos = folder_of(tmp_path / "v", *names)
    listed = None if listed is None else prompts_in(tmp_path / "p.txt", *listed)
    with pytest.raises(UserError) as refused:
        imported(videos, listed, tmp_path / "runs")
    assert told in str(refused.value) and not (tmp_path / "runs").exists()


def test_what_is_no_folder_or_no_video_is_refused_before_anything_is_copied(tmp_path):
    videos = folder_of(tmp_path / "v", "a-0")
    (videos / "b-0.mp4").write_bytes(b"no video")
    for wrong, told in ((videos, "b-0.mp4 cannot be decoded"), (tmp_path / "x", "No such file")):
        with pytest.raises(UserError, match=told):
            imported(wrong, None, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


# -- export -------------------------------------------------------------------------------------


def content(folder):
    return {p.name: sha256_of(p) for p in folder.iterdir()}


def test_an_exported_run_holds_the_same_bytes_with_the_seeds_of_a_prompt_counted(tmp_path, capsys):
    run = finished_run(tmp_path, [("a cat", 7), ("a cat", -2), ("a dog", 7)])
    assert main(["export", str(run), "--vbench", str(tmp_path / "out")]) == 0
    by_clip = {(r["prompt"], r["seed"]): r["sha256"] for r in read_run(run)}
    names = {"a cat-0": ("a cat", -2), "a cat-1": ("a cat", 7), "a dog-0": ("a dog", 7)}
    assert content(tmp_path / "out") == {f"{n}.mp4": by_clip[c] for n, c in names.items()}
    assert "3 clips" in capsys.readouterr().out
    assert main(["export", str(run), "--vbench", str(tmp_path / "out")]) == 0  # again


def test_foreign_clips_come_back_under_vbench_s_names_as_they_went_in(tmp_path):
    videos = folder_of(tmp_path / "v", "a cat-2", "a cat-5", "a dog-1")
    run = tmp_path / imported(videos, None, tmp_path)
    assert main(["export", str(run), "--vbench", str(tmp_path / "out")]) == 0
    assert content(tmp_path / "out") == content(videos)


def test_what_cannot_be_exported_has_a_line_and_the_rest_is(tmp_path, capsys):
    longest = "é" * 124 + "x"  # 249 bytes with -0.mp4: 255
    wrong = ["a/b", longest + "x", "altered"]
    run = finished_run(tmp_path, [(text, 0) for text in (*wrong, longest, "a\ncat")])
    (path,) = (run / r["video"] for r in read_run(run) if r["prompt"] == "altered")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert main(["export", str(run), "--vbench", str(tmp_path / "out")]) == 1
    assert set(content(tmp_path / "out")) == {f"{longest}-0.mp4", "a\ncat-0.mp4"}
    told = capsys.readouterr()
    lines = told.err.splitlines()
    assert len(lines) == 3 and all(line.startswith("left out: ") for line in lines)
    assert "holds '/'" in told.err and "256 bytes of 255" in told.err and "its hash" in told.err
    assert "2 clips" in told.out and "3 left out" in told.out


def test_files_of_somebody_else_are_not_overwritten(tmp_path, capsys):
    run = finished_run(tmp_path, [("a cat", 0), ("a dog", 0)])
    (tmp_path / "out").mkdir()
    (tmp_path / "out/a dog-0.mp4").write_bytes(b"mine")
    assert main(["export", str(run), "--vbench", str(tmp_path / "out")]) == 2
    assert content(tmp_path / "out").keys() == {"a dog-0.mp4"}
    assert (tmp_path / "out/a dog-0.mp4").read_bytes() == b"mine"
    assert "a dog-0.mp4" in capsys.readouterr().err


def test_what_is_no_run_is_refused(tmp_path, capsys):
    for run in (tmp_path, tmp_path / "none"):
        assert main(["export", str(run), "--vbench", str(tmp_path / "out")]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "out").exists()
