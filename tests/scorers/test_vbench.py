"""VBench's own code on clips: values as the package gives them, faults, protocols, and the twin.

Weights are random and tiny, so no number here means anything but "the same as VBench's".
"""

import ast
import importlib
import json
import logging
import math
import os
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from finished import encoded, finished_run
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

pytest.importorskip("vbench", reason="pip install --no-deps -r requirements/vbench.txt")
import tiny_vbench

from s2flow.errors import UserError
from s2flow.scorers import Clip
from s2flow.scorers.builtin import TemporalFlickering
from s2flow.scorers.score import score
from s2flow.scorers.vbench import DIMENSIONS, VBench, compat, twin, weights
from s2flow.store.scorebook import ScoreBook
from s2flow.terminal.cli import literal
from s2flow.video import Undecodable

ROOT = Path(__file__).parents[2]
PROMPTS = (
    "a cat",
    "a 'quoted' \"cat\" / ../\\ on C:\\",
    "🐈 sur la plage, 海",
    "<script>alert(1)</script> &amp; </s>",
    "a very long walk " * 25,
    "",
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    return folder, tiny_vbench.make_cache(folder)


@pytest.fixture(scope="module")
def scorer(cache):
    made = VBench(cache_dir=cache[0], sha256=cache[1], device="cpu")
    made.prepare()
    return made


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    file = tmp_path_factory.mktemp("clips") / "clip.mp4"
    file.write_bytes(encoded(5, 128, 128))
    return file


def clip(path, prompt="a cat"):
    return Clip(path, prompt, 0, Path("runs"))


def ask(scorer, a_clip):
    """{dimension: score} by all parts."""
    return {k: v for part in scorer.parts().values() for k, v in part.score(a_clip).items()}


def by_the_package(dimension, path, prompt, cache, monkeypatch, folder):
    """The per-video score of `vbench.compute_<dimension>` on a list of its own format."""
    info = folder / "info.json"
    entry = {"prompt_en": prompt, "dimension": [dimension], "video_list": [str(path)]}
    info.write_text(json.dumps([entry]))
    with compat.imports(cache):
        module = importlib.import_module(f"vbench.{dimension}")
        monkeypatch.setattr(module, "CACHE_DIR", str(cache), raising=False)
        needed = sys.modules["vbench.utils"].init_submodules([dimension], local=True)[dimension]
        compute = getattr(module, f"compute_{dimension}")
        return compute(str(info), torch.device("cpu"), needed)[1][0]["video_results"]


@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_scores_are_those_of_the_package_to_the_digit(
    dimension, scorer, path, cache, monkeypatch, tmp_path
):
    prompt = PROMPTS[1]
    expected = by_the_package(dimension, path, prompt, cache[0], monkeypatch, tmp_path)
    found = scorer.parts()[f"vbench.{dimension}"].score(clip(path, prompt))[dimension]
    assert found == expected / (100 if dimension == "imaging_quality" else 1)
    assert isinstance(found, float) and math.isfinite(found)


def test_every_part_states_how_it_scores(scorer):
    for name, part in scorer.parts().items():
        assert part.names == (name.removeprefix("vbench."),) and part.needs == []
        assert (part.version, part.protocol) == ("vbench-0.1.5/1", "all_on_all")
        assert part.versions["vbench"] == "0.1.5" and part.preprocessing
        assert bool(part.weights) == (part.names[0] != "temporal_flickering")
        assert all(len(digits) == 64 for digits in part.weights.values())


def test_builtin_flickering_is_vbenchs_on_the_same_frames(path, scorer):
    with compat.imports(scorer.cache):
        from vbench.temporal_flickering import cal_score, get_frames
    frames = torch.from_numpy(np.stack(get_frames(str(path)))).float() / 255
    found = TemporalFlickering().score(Clip.of(frames, ""))["temporal_flickering"]
    assert found == pytest.approx(cal_score(str(path)), abs=1e-6)


def test_prompts_reach_vbench_as_they_are(scorer, path, cache, monkeypatch, tmp_path):
    dimension = "overall_consistency"
    part = scorer.parts()[f"vbench.{dimension}"]
    found = {prompt: part.score(clip(path, prompt))[dimension] for prompt in PROMPTS}
    assert len(set(found.values())) == len(PROMPTS)
    for prompt in PROMPTS[2:4]:
        by_itself = by_the_package(dimension, path, prompt, cache[0], monkeypatch, tmp_path)
        assert found[prompt] == by_itself
    module = sys.modules[f"vbench.{dimension}"]  # features of another model are not taken
    module.get_text_features.__defaults__[-1]["a cat"] = torch.zeros(1, 32)
    fresh = VBench([dimension], cache_dir=scorer.cache, sha256=scorer.own, device="cpu")
    assert ask(fresh, clip(path)) == {dimension: found["a cat"]}


def test_a_broken_file_is_undecodable_for_every_dimension(scorer, tmp_path):
    whole = encoded(17, 64, 64)
    broken = {"cut": whole[: len(whole) * 9 // 10], "empty": b"", "text": b"no video" * 99}
    for name, data in broken.items():
        file = tmp_path / f"{name}.mp4"
        file.write_bytes(data)
        for part in scorer.parts().values():
            with pytest.raises(Undecodable, match=name):
                part.score(clip(file))
    with pytest.raises(Undecodable):
        ask(scorer, clip(tmp_path / "gone.mp4"))
    # what would have stood in a table otherwise
    assert 0 < scorer.evaluate("temporal_flickering", str(tmp_path / "cut.mp4"), "") <= 1
    assert scorer.evaluate("temporal_flickering", str(tmp_path / "empty.mp4"), "") is None


@pytest.mark.parametrize("frames, without", [(1, 3), (2, 1)])
def test_a_clip_too_short_for_a_dimension_has_no_score_there(scorer, tmp_path, frames, without):
    file = tmp_path / "short.mp4"
    file.write_bytes(encoded(frames, 128, 128))
    found = ask(scorer, clip(file))
    moving = ("motion_smoothness", "temporal_flickering", "background_consistency")
    assert {k for k, v in found.items() if v is None} == set(moving[:without])
    with pytest.raises(UserError, match=r"end in \.mp4"):
        ask(scorer, clip(file.rename(tmp_path / "clip.mov")))


def test_a_score_that_is_no_number_is_passed_on_as_such(cache, path, tmp_path):
    shutil.copytree(cache[0], tmp_path / "cache")
    head = tmp_path / "cache" / "aesthetic_model/emb_reader/sa_0_4_vit_l_14_linear.pth"
    torch.save({"weight": torch.full((1, 768), math.nan), "bias": torch.zeros(1)}, head)
    own = dict(cache[1]) | {"laion_head": None}
    broken = VBench(["aesthetic_quality"], cache_dir=tmp_path / "cache", sha256=own, device="cpu")
    broken.prepare()
    assert math.isnan(ask(broken, clip(path))["aesthetic_quality"])


ENTRIES = (
    ("a cat", ["temporal_flickering"]),
    ("A cat", ["aesthetic_quality"]),
    ("a dog", ["color"]),
    ("a cat again", ["temporal_flickering"]),
    ("a cat again", ["aesthetic_quality"]),
)


def test_standard_scores_a_dimension_on_its_own_prompts(cache, path, tmp_path):
    info = tmp_path / "VBench_full_info.json"
    info.write_text(json.dumps([{"prompt_en": t, "dimension": d} for t, d in ENTRIES]))
    names = ["temporal_flickering", "aesthetic_quality"]
    how = {"protocol": "standard", "full_info": str(info), "device": "cpu"}
    standard = VBench(names, cache_dir=cache[0], sha256=cache[1], **how)
    standard.prepare()
    scored = {"a cat": names[:1], "A cat": names[1:], "a dog": []}
    scored["a cat again"] = names  # for both entries of its text
    for prompt, wanted in scored.items():
        scores = ask(standard, clip(path, prompt))
        assert [k for k, v in scores.items() if v is not None] == wanted
    assert {p.protocol for p in standard.parts().values()} == {"standard"}
    for prompt in ("a bird", "A CAT", "a cat "):
        with pytest.raises(UserError, match="protocol=all_on_all"):
            ask(standard, clip(path, prompt))


def test_the_installed_list_is_read_for_standard_and_another_must_exist(cache):
    made = VBench(["temporal_flickering"], "standard", cache_dir=cache[0], device="cpu")
    made.prepare()
    assert len(made.entries) == 946
    assert sum("temporal_flickering" in d for _, d in made.entries) == 75
    made = VBench(["temporal_flickering"], "standard", full_info="nowhere.json", device="cpu")
    with pytest.raises(UserError, match="full_info=nowhere.json"):
        made.prepare()


@pytest.mark.parametrize(
    "arguments, said",
    [
        ({"dimensions": ["color"]}, "dimension color"),
        ({"dimensions": []}, "no dimension"),
        ({"protocol": "mine"}, "protocol=mine"),
        ({"on_missing": "ignore"}, "on_missing=ignore"),
        ({"sha256": {"clip": "ab"}}, "sha256.clip"),
        ({"sha256": {"clip_b32": "ab"}}, "sha256sum"),
    ],
)
def test_wrong_arguments_cost_a_line(arguments, said):
    with pytest.raises(UserError, match=said) as raised:
        VBench(**arguments)
    assert "\n" not in str(raised.value)


def test_nothing_is_left_changed_in_this_process_or_printed(scorer, path, capfd):
    def state():
        root, paths = logging.getLogger(), [p for p in sys.path if "vbench" not in p]
        return torch.load, torch.jit.load, root.level, list(root.handlers), paths

    before = state()
    ask(VBench(cache_dir=scorer.cache, sha256=scorer.own, device="cpu"), clip(path))
    assert state() == before and before[2] == logging.WARNING
    assert capfd.readouterr() == ("", "")


def test_a_new_process_is_left_as_it_was(scorer, tmp_path):
    (tmp_path / "networks").mkdir()
    (tmp_path / "networks" / "__init__.py").write_text("raise ImportError('not AMT')")
    lines = (
        "import importlib.util, logging, sys",
        "before = importlib.util.find_spec('pkg_resources')",
        "from s2flow.scorers.vbench import compat",
        f"with compat.imports({str(scorer.cache)!r}):",
        "    import clip, vbench.motion_smoothness, networks",
        "print(logging.getLogger().level, logging.getLogger().handlers)",
        "print('vbench' in str(networks.__path__))",
        "print((importlib.util.find_spec('pkg_resources') is None) == (before is None))",
    )
    said = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert said.stdout.splitlines() == [f"{logging.WARNING} []", "True", "True"], said.stderr


@pytest.mark.parametrize("file", ["compat.py", "worker.py"])
def test_what_the_twin_runs_is_written_for_old_pythons(file):
    source = (ROOT / "s2flow/scorers/vbench" / file).read_text()
    ast.parse(source, feature_version=(3, 8))
    assert " | " not in "".join(line for line in source.splitlines() if "def " in line)


def test_the_engine_keeps_a_verdict_per_dimension(cache, tmp_path):
    folder = finished_run(tmp_path, [("a cat", 0), ("a dog", 0)], frames=3, size=(128, 128))
    names = "[temporal_flickering,background_consistency,imaging_quality]"
    (cache[0] / "amt_model").mkdir(exist_ok=True)
    words = [f"runs_dir={tmp_path}", "scorer=[vbench]", f"scorer.vbench.cache_dir={cache[0]}"]
    words += [f"scorer.vbench.sha256.{k}={v}" for k, v in cache[1].items() if k != "bpe"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        few = compose("score", [*map(literal, words), f"scorer.vbench.dimensions={names}"])
        all_six = compose("score", [*map(literal, words)])
    score(few)
    said = ScoreBook(folder).verdicts()
    assert len(said) == 6
    assert {(v["status"], v["versions"]["vbench"]) for v in said} == {("ok", "0.1.5")}
    score(all_six)  # the three that are there are not taken again
    assert len([v for f in (folder / "scores").glob("*") for v in f.open()]) == 12


@pytest.fixture
def python(tmp_path):
    """This environment's Python, in which ViCLIP and MUSIQ are as small as in this process."""
    file = tmp_path / "python"
    return script(
        file,
        f"""
        import os, runpy, sys
        sys.path[:0] = [{str(ROOT)!r}, {str(Path(__file__).parent)!r}]
        import tiny_vbench
        from s2flow.scorers.vbench import compat
        cache = os.environ["VBENCH_CACHE_DIR"]
        with compat.imports(cache):
            compat.bpe(cache)
            tiny_vbench.shrink()
        for name in [m for m in sys.modules if m.startswith("s2flow")]:
            del sys.modules[name]
        del sys.path[:2]
        sys.modules["s2flow"] = None  # the worker must not need it
        print("noise before the protocol starts", file=sys.stderr)
        sys.argv[:] = sys.argv[2:]
        runpy.run_path(sys.argv[0], run_name="__main__")
        """,
    )


def script(file, text):
    """An executable that runs these lines with this Python."""
    file.write_text(f"#!{sys.executable}\n" + textwrap.dedent(text))
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    return str(file)


def test_the_twin_gives_the_same_scores(python, cache, scorer, path, monkeypatch, tmp_path):
    monkeypatch.setenv("VBENCH_CACHE_DIR", str(cache[0]))
    pinned = twin.VBenchSubprocess(python, cache_dir=cache[0], sha256=cache[1], device="cpu")
    pinned.prepare()
    for prompt in PROMPTS[:4]:
        assert ask(pinned, clip(path, prompt)) == ask(scorer, clip(path, prompt))
    part = pinned.parts()["vbench_subprocess.aesthetic_quality"]
    assert part.version == "vbench-0.1.5-subprocess/1"
    assert part.versions["vbench"] == "0.1.5"
    assert part.versions["python"] == sys.version.split()[0]
    with pytest.raises(RuntimeError, match="VBench under .*Error"):
        pinned.evaluate("imaging_quality", str(tmp_path / "gone.mp4"), "")
    pinned.close()


def test_a_twin_that_is_killed_costs_one_clip(path, monkeypatch):
    made = twin.VBenchSubprocess(sys.executable, dimensions="temporal_flickering", device="cpu")
    made.prepare()
    part = made.parts()["vbench_subprocess.temporal_flickering"]
    before = part.score(clip(path))
    made._process.send_signal(signal.SIGKILL)
    made._process.wait()
    assert part.score(clip(path)) == before  # between two clips not even that

    def killed_while_asked(_):
        os.kill(made._process.pid, signal.SIGKILL)

    monkeypatch.setattr(made._process.stdin, "write", killed_while_asked, raising=False)
    with pytest.raises(UserError, match="ended with code -9"):
        part.score(clip(path))
    assert part.score(clip(path)) == before
    made.close()


READY = 'print(\'{"versions": {"vbench": "0.1.5"}, "full_info": null}\', flush=True)'


def test_a_twin_that_never_scores_is_not_started_again_and_again(tmp_path, path):
    started = tmp_path / "started"
    lines = (
        f"open({str(started)!r}, 'a').write('x'); {READY}; input(); input(); raise SystemExit(4)"
    )
    python, names = script(tmp_path / "python", lines), ["temporal_flickering"]
    dying = twin.VBenchSubprocess(python, dimensions=names, device="cpu")
    dying.prepare()
    for _ in range(3):
        with pytest.raises(UserError, match="code 4"):
            dying.evaluate("temporal_flickering", str(path), "")
    assert started.read_text() == "x"


@pytest.mark.parametrize(
    "lines, error",
    [
        (READY.replace("0.1.5", "0.1.4"), r"vbench 0\.1\.4 is installed"),
        (READY.replace('"vbench": "0.1.5"', ""), "not installed for python="),
        ("import sys; print('no torch', file=sys.stderr); sys.exit(3)", "code 3.*no torch"),
        (None, "python=nowhere/python"),
    ],
)
def test_a_twin_that_cannot_start_is_refused_in_one_line(lines, error, tmp_path):
    python = "nowhere/python" if lines is None else script(tmp_path / "python", lines)
    with pytest.raises(UserError, match=error) as raised:
        twin.VBenchSubprocess(python, dimensions=["temporal_flickering"], device="cpu").prepare()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["vbench", "vbench_subprocess"])
def test_the_configs_name_all_that_can_be_typed(name):
    words = [f"scorer=[{name}]"]
    words += ["scorer.vbench_subprocess.python=python"] if name != "vbench" else []
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        conf = compose("score", words).scorer[name]
    made = instantiate(conf)
    assert made.dimensions == DIMENSIONS
    assert {*conf.sha256, "bpe"} == set(weights.KEYS)  # openai-clip ships the vocabulary
    assert name == made.KEY
