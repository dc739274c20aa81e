"""Faults of the folder: each gives a clear line, and after `gc` a store that `verify` calls clean."""

import contextlib
import errno
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from finished import finished_run, fresh_flows, record_clip
from test_runner import config

from s2flow.errors import UserError
from s2flow.methods import method
from s2flow.methods.params import variant
from s2flow.process import loading
from s2flow.recipe.resolve import resolve
from s2flow.run import runner
from s2flow.store import Store, clip_key, load_records, read_record, write_json
from s2flow.store.__main__ import main
from s2flow.store.recipes import label as label_of
from s2flow.store.scorebook import ScoreBook
from s2flow.store.verify import verify

ODD = ["../../x", "a/b\0c", "🦊\u2028\n", "'; rm -rf ~", "-", "\x1b[31m", " "]


@pytest.fixture
def runs(tmp_path):
    """Two runs; one of prompts that no file name could hold."""
    finished_run(tmp_path / "runs", 3, "0000000001")
    finished_run(tmp_path / "runs", [(p, i) for i, p in enumerate(ODD)], "0000000002")
    return tmp_path / "runs"


def files(folder):
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir()}


def clean(runs):
    return main(["verify", str(runs)]) == 0


def gc(runs, *words):
    return main(["gc", str(runs), "--yes", "--older-than", "0s", *words])


def old(path, seconds=7200):
    """As if it had been written so long ago."""
    then = time.time() - seconds
    os.utime(path, (then, then), follow_symlinks=False)


def video_of(record):
    return record.parents[1] / "clips" / f"{record.stem}.mp4"


# -- records and clips ------------------------------------------------------------------------


def test_a_sound_store_is_clean_and_nothing_goes(runs, capsys):
    before = files(runs)
    assert clean(runs) and "2 runs are clean" in capsys.readouterr().out
    assert gc(runs) == 0 and files(runs) == before and "nothing" in capsys.readouterr().out


def test_a_record_cut_off_at_every_length_is_none_and_is_found(tmp_path, capsys):
    folder = finished_run(tmp_path / "runs", 1)
    (path,) = folder.glob("records/*.json")
    text, store = path.read_bytes(), Store(tmp_path / "runs", folder.name, {"version": 1})
    for cut in range(len(text) - 1):  # without its last newline it is whole
        path.write_bytes(text[:cut])
        assert store.record(path.stem) is None and not store.recorded()
        (finding,) = verify(tmp_path / "runs")
        assert finding.path == path and "cut off" in finding.what
    capsys.readouterr()
    assert not clean(tmp_path / "runs")
    out = capsys.readouterr().out
    assert out.count("\n") == 2 and str(path) in out and "the clip is then made again" in out
    assert gc(tmp_path / "runs") == 0 and clean(tmp_path / "runs")
    assert not list(folder.glob("*/*.mp4")) and not path.exists()


def test_clips_that_are_altered_gone_or_cut_off_are_found(runs, capsys):
    flipped, gone, cut = (video_of(p) for p in sorted(runs.glob("0000000001/records/*.json")))
    data = bytearray(flipped.read_bytes())
    data[len(data) // 2] ^= 1
    flipped.write_bytes(data)
    assert main(["verify", str(runs), "--fast"]) == 0  # of the right size
    assert not clean(runs)
    assert f"{flipped}: is not the file that was recorded" in capsys.readouterr().out
    gone.unlink()
    cut.write_bytes(cut.read_bytes()[:-1])
    assert main(["verify", str(runs), "--fast"]) == 1
    out = capsys.readouterr().out
    assert f"{gone}: is gone" in out and f"{cut}: has " in out
    assert gc(runs, "--fast") == 0 and flipped.exists() and len(load_records(runs)) == 8
    assert gc(runs) == 0 and clean(runs) and not flipped.exists() and len(load_records(runs)) == 7


def test_records_that_belong_elsewhere_or_are_incomplete(runs, capsys):
    one, two = sorted(runs.iterdir())
    first, second, third = sorted(one.glob("records/*.json"))
    (two / "records" / first.name).write_bytes(first.read_bytes())
    second.rename(second.with_name("0123456789abcdef.json"))
    record = json.loads(third.read_text())
    write_json(third, record | {"video": "../../../etc/passwd", "bytes": 1})
    other = next(p for p in two.glob("records/*.json") if p.name != first.name)
    kept = json.loads(other.read_text()).items()
    write_json(other, {k: v for k, v in kept if k not in ("seconds", "prompt")})
    assert not clean(runs)
    out = capsys.readouterr().out
    assert "is a record of run '0000000001'" in out and "under another name" in out
    assert "names the video '../../../etc/passwd'" in out and "incomplete: prompt, seconds" in out
    assert gc(runs) == 0 and clean(runs)
    assert [p.name for p in one.glob("records/*")] == [first.name]


def test_scores_recipes_and_failures_are_cleaned(runs):
    one, two = sorted(runs.iterdir())
    record = read_record(next(one.glob("records/*.json")))
    book = ScoreBook(one)
    book.add(
        {"key": record["video"][6:-4], "clip": record["sha256"], "scorer": "a", "metric": "m"}
        | {"status": "ok", "scores": {"flicker": 0.5}, "at": 1.0}
    )
    (path,) = one.glob("scores/*.jsonl")
    path.write_bytes(b"\xff\n[]\n" + path.read_bytes() + b'{"key": "torn')
    (two / "scores").mkdir()
    (two / "scores" / "a.jsonl").write_text('{"torn')
    recipe = json.loads((one / "recipe.json").read_text())
    (one / "recipe.json").write_text("{")
    (two / "recipe.json").unlink()
    for name in (record["video"][6:-4], "0" * 16):
        write_json(one / "failures" / f"{name}.json", {"status": "failed"})
    (one / "failures" / "cut.json").write_text("{")
    assert len(list(verify(runs))) == 6
    assert gc(runs) == 0 and clean(runs)
    assert json.loads((one / "recipe.json").read_text()) == recipe
    assert load_records(runs)["score_flicker"].notna().sum() == 1
    assert path.read_bytes().count(b"\n") == 1 and not list(two.glob("scores/*"))
    assert [p.stem for p in one.glob("failures/*")] == ["0" * 16]  # of a clip that is missing


# -- leftovers, clocks, links -----------------------------------------------------------------


def test_hundreds_of_leftovers(runs, capsys):
    """Orphans, and temporaries of the dead here and of other machines; only strangers' files stay."""
    dead = subprocess.Popen(["true"])
    dead.wait()
    one, here, before = runs / "0000000001", socket.gethostname(), files(runs)
    for folder in (one / "latents", one / "windows", runs / "lr_cache"):
        folder.mkdir()
    places = (one / "clips", one / "records", one, runs / "lr_cache", runs)
    for i in range(50):
        for name in (
            "clips/{}.mp4",
            "clips/{}.low.mp4",
            "latents/{}.safetensors",
            "windows/{}.npz",
        ):
            (one / name.format(f"{i:016x}")).touch()
        for j in range(6):
            host, place = (here, "node-7.x")[j % 2], places[j % 5]
            (place / f".tmp-{host}-{dead.pid}-{i:07x}{j}-a-b.mp4").touch()
    kept = [one / "clips" / "mine.mp4", one / "notes.txt", runs / "lr_cache" / "a.safetensors"]
    kept.append(one / "clips" / f".tmp-{here}-{os.getpid()}-12345678-a.mp4")  # being written
    for path in kept:
        path.touch()
    assert len(files(runs)) == len(before) + 504
    assert not clean(runs)
    out = capsys.readouterr().out
    assert out.count("\n") == 501 and "500 found in 2 runs" in out
    assert f"process {dead.pid} of node-7.x left it" in out
    assert main(["gc", str(runs), "--yes"]) == 1  # they are young: another worker may write them
    out = capsys.readouterr().out
    assert len(files(runs)) == len(before) + 504 and "500 left alone" in out
    assert "another worker may be writing it" in out
    assert gc(runs) == 0 and clean(runs)
    assert files(runs) == before | {str(p.relative_to(runs)) for p in kept}


def test_clocks_that_are_wrong(runs, capsys):
    """Files of a worker whose clock is ahead are left alone; one that is behind loses nothing valid."""
    one = runs / "0000000001"
    ahead, behind = one / "clips" / f"{1:016x}.mp4", one / "clips" / f"{2:016x}.mp4"
    for path, seconds in ((ahead, -3 * 3600), (behind, 400 * 86400)):
        path.touch()
        old(path, seconds)
    for i, record in enumerate(sorted(one.glob("records/*.json"))):
        at = (4e9, -5.0, 1e300)[i]
        write_json(record, json.loads(record.read_text()) | {"at": at})
        for path in (record, video_of(record)):
            old(path, (-1, 1)[i % 2] * 10 * 365 * 86400)
    assert len(load_records(runs)) == 10 and main(["ls", str(runs)]) == 0
    assert main(["gc", str(runs), "--yes"]) == 1  # something is left
    out = capsys.readouterr().out
    assert f"{ahead}: has no record; is 3 h from the future, a worker's clock is ahead" in out
    assert ahead.exists() and not behind.exists()
    assert gc(runs) == 0 and clean(runs) and len(load_records(runs)) == 10


def answering(monkeypatch, answer):
    """A terminal at which `answer(question)` is typed."""
    monkeypatch.setattr("builtins.input", answer)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)


def test_what_was_touched_since_it_was_found_stays(runs, monkeypatch, capsys):
    record = next(runs.glob("0000000001/records/*.json"))
    data = record.read_bytes()
    record.unlink()  # and the other worker finishes it meanwhile
    answering(monkeypatch, lambda question: record.write_bytes(data) and "y")
    assert main(["gc", str(runs), "--older-than", "0s"]) == 1
    assert "has a record by now: left alone" in capsys.readouterr().err
    assert video_of(record).exists() and clean(runs)


def test_nothing_goes_without_a_yes(runs, monkeypatch, capsys):
    orphan = runs / "0000000001" / "clips" / f"{1:016x}.mp4"
    orphan.touch()
    assert main(["gc", str(runs), "--older-than", "0s"]) == 1  # pytest's stdin is no terminal
    assert "Nobody can answer here" in capsys.readouterr().err and orphan.exists()
    for answer in ("", "n", "what"):
        answering(monkeypatch, lambda question, answer=answer: answer)
        assert main(["gc", str(runs), "--older-than", "0s"]) == 1 and orphan.exists()


def test_links_are_never_followed_out_of_the_store(runs, tmp_path):
    one, outside = runs / "0000000001", tmp_path / "outside"
    finished_run(outside, 2, "0000000003")
    (outside / "orphan").touch()
    orphans = outside / "0000000003" / "latents"
    orphans.mkdir()
    (orphans / f"{1:016x}.safetensors").touch()
    before = files(outside)
    (one / "clips" / f"{1:016x}.mp4").symlink_to(outside / "orphan")
    (one / "latents").symlink_to(orphans)
    (runs / "0000000003").symlink_to(outside / "0000000003")
    (runs / "loop").symlink_to(runs)
    video = next(one.glob("clips/*[!1].mp4"))
    kept = tmp_path / "elsewhere.mp4"
    video.rename(kept)
    video.symlink_to(kept)  # a clip that was moved to another disk is read there
    assert len(list(verify(runs))) == 1
    assert gc(runs) == 0 and clean(runs)
    assert files(outside) == before and kept.exists() and video.is_symlink()
    kept.write_bytes(b"altered")
    assert gc(runs) == 0 and clean(runs) and kept.exists() and not os.path.lexists(video)


# -- disks ------------------------------------------------------------------------------------


@contextlib.contextmanager
def mounted(path, *options):
    """A tmpfs; the test is skipped where that is not permitted."""
    path.mkdir(exist_ok=True)
    words = ["mount", "-t", "tmpfs", *options, "tmpfs", str(path)]
    try:
        done = subprocess.run(words, capture_output=True, text=True)
    except OSError as error:
        pytest.skip(f"mount: {error}")
    if done.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {done.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def filled(disk):
    """Leave no byte."""
    with pytest.raises(OSError) as full, open(disk / "ballast", "ab", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    assert full.value.errno == errno.ENOSPC
    return disk / "ballast"


def test_a_full_disk_costs_the_clip_in_flight_and_is_said_by_every_command(tmp_path, capsys):
    """Real clips of the embedded backbone on a tmpfs of 2 MB that something else fills."""
    with (
        mounted(tmp_path / "disk", "-o", "size=2m") as disk,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(loading, "low_flows", fresh_flows())
        runs, words = disk / "runs", ("prompts.count=2", "scorer=[none]", "method=bicubic")
        runner.run(config(runs, *words[1:], "prompts.count=1"))
        elsewhere = tmp_path / "other"
        finished_run(elsewhere, [(f"p{i}", 0) for i in range(40)], "0000000009")
        (next(runs.glob("*/clips")) / f"{1:016x}.mp4").touch()
        ballast = filled(disk)
        with pytest.raises(
            UserError, match=r"cannot be written \(No space left on device\); type"
        ):
            runner.run(config(runs, *words))
        os.truncate(ballast, ballast.stat().st_size - 8192)  # the recipe fits, the clip does not
        with pytest.raises(
            UserError, match=r"disk of runs_dir=.* is full; nothing recorded is lost"
        ):
            runner.run(config(runs, *words))
        filled(disk)
        before = files(runs)
        capsys.readouterr()
        assert main(["ls", str(runs)]) == 0 and main(["verify", str(runs)]) == 1
        assert main(["merge", str(elsewhere), "--into", str(runs)]) == 1
        assert main(["export", str(runs), "--to", str(disk / "a.parquet")]) == 1
        assert main(["export", str(runs), "--to", str(disk / "a.csv")]) == 1
        err = capsys.readouterr().err
        assert err.count("No space left on device; nothing is half written") == 3
        assert err.count("\n") == 3 and not list(disk.rglob(".tmp-*"))
        assert files(runs) - before <= {f"0000000009/{n}" for n in files(elsewhere / "0000000009")}
        assert gc(runs) == 0 and clean(runs)  # a full disk can be cleaned
        ballast.unlink()
        assert runner.run(config(runs, *words))["made"] == 1
        assert main(["merge", str(elsewhere), "--into", str(runs)]) == 0
        assert main(["export", str(runs), "--to", str(disk / "a.parquet")]) == 0
        assert clean(runs) and len(load_records(runs)) == 42


def test_a_folder_that_cannot_be_written_is_read_and_gives_one_line(tmp_path, capsys):
    with mounted(tmp_path / "disk", "-o", "size=4m") as disk:
        runs = disk / "runs"
        folder = finished_run(runs, 300)  # so many that an index would be written
        (folder / "clips" / f"{1:016x}.mp4").touch()
        other = tmp_path / "other"
        finished_run(other, 1, "0000000009")
        done = subprocess.run(["mount", "-o", "remount,ro", str(disk)], capture_output=True)
        if done.returncode:
            pytest.skip(f"cannot be mounted read-only: {done.stderr.decode().strip()}")
        before = files(runs)
        assert len(load_records(runs)) == 300
        assert main(["ls", str(runs)]) == 0 and main(["verify", str(runs)]) == 1
        assert main(["export", str(runs), "--to", str(tmp_path / "a.csv")]) == 0
        capsys.readouterr()
        assert gc(runs) == 1 and main(["merge", str(other), "--into", str(runs)]) == 1
        assert main(["export", str(runs), "--to", str(runs / "a.csv")]) == 1
        with pytest.raises(UserError, match=r"cannot be written \(Read-only file system\); type"):
            runner.run(config(runs, "prompts.count=1"))
        err = capsys.readouterr().err
        assert err.count("Read-only file system") == 3 and err.count("\n") == 3
        assert files(runs) == before
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        assert gc(runs) == 0 and clean(runs)


def test_another_user_may_look_and_cannot_write(runs, tmp_path):
    """As uid 65534, who owns nothing here."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    for path in (tmp_path, *tmp_path.parents[:3]):  # under xdist one more
        path.chmod(path.stat().st_mode | 0o055)
    for path in (runs, *runs.rglob("*")):  # whatever the umask
        path.chmod(path.stat().st_mode | (0o055 if path.is_dir() else 0o044))
    (runs / "0000000001" / "clips" / f"{1:016x}.mp4").touch()
    script = (
        "import os; from s2flow.store.__main__ import main"
        f"\nmain(['ls', {str(runs)!r}])  # a private environment's late imports, while they can be read"
        "\nos.setgid(65534); os.setuid(65534)"
        f"\nfor words in (['ls'], ['verify'], ['gc', '--yes', '--older-than', '0s']):"
        f"\n    print(words[0], main([words[0], {str(runs)!r}, *words[1:]]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    codes = [line for line in done.stdout.splitlines() if line[-1:].isdigit() and " " in line]
    assert {"ls 0", "verify 1", "gc 1"} <= set(codes), done.stderr
    assert "cannot be removed (Permission denied): left alone" in done.stderr
    assert "Traceback" not in done.stderr and done.stderr.count("\n") == 1
    assert gc(runs) == 0 and clean(runs)


# -- the command ------------------------------------------------------------------------------


def test_ls_counts(runs, capsys):
    one = runs / "0000000001"
    record_clip(one, {"high": [32, 48], "frames": 3}, "again", 0, b"x")
    path = one / "records" / f"{clip_key('again', 0)}.json"
    write_json(path, json.loads(path.read_text()) | {"duplicates": 2, "at": 5e9})
    write_json(one / "failures" / "0.json", {"status": "failed"})
    assert main(["ls", str(runs), "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert (first["id"], first["clips"], first["failed"]) == ("0000000001", 4, 1)
    assert first["duplicates"] == 2 and first["last"] == 5e9 and second["duplicates"] == 0
    assert first["bytes"] == sum(p.stat().st_size for p in one.rglob("*") if p.is_file())
    assert main(["ls", str(runs)]) == 0
    out = capsys.readouterr().out
    assert "native" in out and "2 runs, 11 clips" in out and "2128-06-" in out


@pytest.mark.parametrize(
    "words, line",
    [
        (["ls", "nowhere"], "nowhere: No such file or directory; type the folder of the runs"),
        (["verify", "runs/0000000001"], "is a single run; type the folder that holds it"),
        (["gc", "runs", "--older-than", "yesterday"], "'yesterday' is no age; type 30s"),
        (["export", "runs", "--to", "a.txt"], "--to a.txt is neither; type a name that ends in"),
        (["export", "empty", "--to", "a.csv"], "empty holds no run; type the folder that"),
        (["merge", "empty", "--into", "runs"], "empty holds no run; type the folder"),
        (["merge", "runs", "--into", "runs"], "are one folder"),
        (["merge", "runs", "--into", "runs/0000000001/x"], "or one holds the other"),
        (["merge", "runs", "--into", "file"], "file: Not a directory"),
        (["what"], "invalid choice: 'what'"),
        ([], "the following arguments are required"),
    ],
)
def test_what_cannot_be_is_one_line_and_two(words, line, runs, monkeypatch, capsys):
    monkeypatch.chdir(runs.parent)
    Path("empty").mkdir()
    Path("file").touch()
    before = files(runs.parent)
    try:
        assert main(words) == 2
    except SystemExit as stopped:
        assert stopped.code == 2
    err = capsys.readouterr().err.rstrip("\n").splitlines()
    assert line in err[-1] and "Traceback" not in err and files(runs.parent) == before


def test_export_has_the_rows_of_load_records(runs, tmp_path, monkeypatch):
    import pandas as pd

    for name, read in (("a.parquet", pd.read_parquet), ("a.csv", pd.read_csv)):
        assert main(["export", str(runs), "--to", str(tmp_path / name)]) == 0
        found, frame = read(tmp_path / name), load_records(runs)
        assert list(found) == list(frame) and len(found) == len(frame) == 10
        assert list(found["seed"]) == list(frame["seed"])
    assert list(pd.read_parquet(tmp_path / "a.parquet")["prompt"]) == list(frame["prompt"])


LABELS = {
    ("method=s2flow",): "s2flow, adaptive s=0.5, lri K=2, t_i=2/3",
    ("windows=full", "solver=ab2"): "s2flow, full, ab2, t_i=2/3",
    ("windows=coverage", "order=1"): "s2flow, coverage 0.95, euler, t_i=2/3",
    ("method=hiflow", "method.alpha=0"): "hiflow alpha=0, t_i=2/3",
    ("method=native",): "native",
    ("density=per_axis", "order=3", "handoff=latent", "adain=true"):
        "s2flow, adaptive s=0.5³, lri K=3, t_i=2/3, adain",
}  # fmt: skip


@pytest.mark.parametrize("words", LABELS, ids=" ".join)
def test_labels_of_ls_are_those_of_the_end_table(words, tmp_path):
    """One is made from what is typed, the other from what is stored."""
    cfg = config(tmp_path, *words)
    recipe = resolve(cfg, "", method(cfg.method.name).KNOBS)
    stored = json.loads(json.dumps(recipe.identity()))
    beside = (recipe.windows_label, variant(recipe.params, recipe.t_i))
    assert recipe.label == label_of(stored, *beside) == LABELS[words]
