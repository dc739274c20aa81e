"""What a person types: prompts pass to the letter, mistakes give one line that says what to type."""

import atexit
import functools
import importlib.util
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from s2flow.embedded import backbone as tiny
from s2flow.process import loading
from s2flow.recipe.schema import Config
from s2flow.terminal import cli

ROOT = Path(__file__).parents[2]
SMALL = ("steps=3", "t_i=2", "frames=2")


def run_here(monkeypatch, tmp_path, *words: str) -> int:
    """run.py with these words, in this process and below tmp_path; returns its exit code."""
    spec = importlib.util.spec_from_file_location("run", ROOT / "run.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "run", module)
    spec.loader.exec_module(module)
    places = {"runs_dir": "runs", "hydra.run.dir": "diary", "hydra.sweep.dir": "diary"}
    given = {word.partition("=")[0] for word in words}
    words += tuple(f"{k}={tmp_path / v}" for k, v in places.items() if k not in given)
    quiet = ("hydra/job_logging=none", "hydra/hydra_logging=none")
    flags = ("--config-path", str(ROOT / "conf"))
    monkeypatch.setattr(sys, "argv", ["run.py", *words, *quiet, *flags])
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    monkeypatch.setattr(atexit, "register", lambda call, *given: call)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    try:
        with cli.terminal():
            module.main()
    except SystemExit as stop:
        return stop.code
    return 0


@pytest.fixture
def command(monkeypatch, tmp_path):
    """command("sparsity=0.5", ...): see `run_here`."""
    return functools.partial(run_here, monkeypatch, tmp_path)


def refusal(code: int, capsys) -> str:
    """The one line on stderr of a refused command."""
    captured = capsys.readouterr()
    assert code == 2, captured.err
    lines = captured.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), captured.err
    assert "Traceback" not in captured.out + captured.err
    return lines[0]


# -- bad input ----------------------------------------------------------------------------------

REFUSED = {  # what is typed -> what the line must say: the value, and what to type instead
    "sparsity=50": "sparsity=50 share kept; type sparsity=0.5 (50 %)",
    "sparsity=1.5": "sparsity=1.5 (0, 1]: share kept; type sparsity=0.5",  # no guess
    "plan=maybe": "plan=maybe type plan=true plan=json",
    "sparsity=0": "sparsity=0 type sparsity=",
    "sparsity=nan": "sparsity=nan type sparsity=",
    "sparsity=": "sparsity= type number",
    "sparsitty=.5": "sparsitty mean sparsity? --help",
    "windows.exponent=1": "windows.exponent mean windows.exponents?",
    "sparsity=0.001": "0.001 nearest (sparsity=",
    "sparsity=0.25,0.5": "type python run.py -m sparsity=0.25,0.5, list sparsity=[0.25,0.5]",
    "runs_dir=": "runs_dir= type runs_dir=runs",
    "threads=2000": "threads=2000 1..1024 type threads=1",
    "t_i=60": "t_i=60 1..3 type t_i=1",
    "t_i=0": "t_i=0 1..3 type t_i=1",
    "context_parallel=2": "context_parallel=2 type torchrun --nproc_per_node=2",
    "context_parallel=0": "context_parallel=0 type context_parallel=2",
    "context_parallel=ring": "context_parallel=ring window type context_parallel=2",
    "order=0": "order=0 1..3 type order=2",
    "order=4": "order=4 1..3 type order=2",
    "order=null": "order=null type null order",
    "steps=abc": "steps=abc type whole number",
    "steps=0": "steps=0 type steps=",
    "seed=1.5": "seed=1.5 type whole number",
    "shift=0": "shift=0 type shift=",
    "guidance=nan": "guidance=nan type guidance=",
    "frames=0": "frames=0 type frames=8",
    "high=[32,48]": "high=[32,48] low=[32,48] type high=[64,96]",
    "high=[64,48]": "high=[64,48] low=[32,48] type high=[64,96]",
    "high=[65,97]": "high=[65,97] 8 type high=[64,96]",
    "high=[64]": "high=[64] type high=[height,width]",
    "high=[4096,4096]": "high=[4096,4096] at most 512",
    "low=64": "low=64 type list",
    "low=[a,b]": "low=[a,b] type whole number low[0]",
    "prompt=": "prompt empty type prompt=",
    "prompt=???": "prompt not set; type prompt=",
    "prompt= \n ": "prompt empty type prompt=",
    "prompt=\udcff cat": "prompt='\\udcff cat' UTF-8 type",
    "method=foo": "method=foo type method=bicubic|cascade|diffusehigh|hiflow|macs|native",
    "method.alpha=1": "method.alpha method=hiflow --help",
    "method.perset=own": "method.perset mean method.preset? --help",
    "method.preset=mine": "method.preset=mine type method.preset=paper_parity|own",
    "method.name=foo": "method=foo type method=bicubic|",
    "backbone=foo": "backbone=foo type backbone= micro|",
    "windows=foo": "windows=foo type windows=adaptive|",
    "prompts=foo": "prompts=foo type prompts=demo|",
    "solver=foo": "solver=foo type solver=lri|euler|ab2",
    "attention=foo": "attention=foo type attention=auto|fa4|triton|flex|tiled|reference",
    "attention=fa4": "attention=fa4 cannot be used: type attention=auto",
    "scorer=[foo]": "scorer=foo --help",
    "tracker=foo": "tracker=foo type tracker=none|wandb",
    "experiment=foo": "experiment=foo type experiment=",
    "scorer=[fidelity]": "scorer.fidelity.reference type scorer.fidelity.reference=",
    "windows.exponents=[[1,1,0]]": "windows.exponents [1, 1, 0] type windows.exponents='[[",
    "windows.exponents=[[]]": "windows.exponents [] type windows.exponents='[[",
    "windows.exponents=[]": "windows.exponents empty type windows.exponents='[[",
    "windows.exponents=[1,0,0]": "windows.exponents 1 type windows.exponents='[[",
    "windows.exponents=[[a,0,1]]": "windows.exponents 'a' type windows.exponents='[[",
    "windows.dense_steps=-1": "windows.dense_steps -1 type 0",
    "brick_high=[1,2]": "brick_high=[1, 2] type brick_high=[1,2,2]",
    "coverage_rows=0": "coverage_rows=0 type coverage_rows=",
    "shard=5/3": "shard=5/3 type shard=k/n",
    "prompts.count=0": "prompts.count=0 type 1",
    "seeds=0": "seeds=0 type seeds=1",
    "seeds=-2": "seeds=-2 type seeds=1",
    "seeds=1.5": "seeds=1.5 type whole number seeds",
    "prompts=file": "type prompts=file prompts.file=prompts.txt",
    "prompts.augmented=none.txt": "prompts.augmented=none.txt does not exist",
    "batch=0": "batch=0 type batch=1",
    "progress=loud": "progress=loud type progress=auto|plain|off",
    "tracker.mode=on": "tracker.mode=on type tracker.mode=offline|online",
    "tracker.videos=-1": "tracker.videos=-1 type tracker.videos=0",
    "threads=0": "threads=0 type threads=1",
    "device=foo": "device=foo type device=auto|cpu|cuda",
    "sparsity": "sparsity type key=value",
    "sparsity=[0.5": "sparsity=[0.5 type key=value",
}


@pytest.mark.parametrize("word", REFUSED)
def test_a_mistake_gives_one_line_that_says_what_to_type(word, command, capsys):
    rest = [x for x in SMALL if x.partition("=")[0] != word.partition("=")[0]]
    line = refusal(command(word, *rest), capsys)
    for said in REFUSED[word].split():
        assert said in line, line


def test_what_is_near_no_percentage_is_not_guessed(command, capsys):
    assert refusal(command("sparsity=1.5"), capsys).endswith("that is kept; type sparsity=0.5")


@pytest.mark.parametrize("words", ["sparsitty=0.5", "sparsity=1.5", "-m steps=0,2 solver=x"])
def test_names_and_ranges_are_refused_before_torch_is_loaded(words, tmp_path):
    (tmp_path / "torch.py").write_text("raise SystemExit('torch')")
    env = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    command = [sys.executable, ROOT / "run.py", *words.split()]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert all(line.startswith("error: ") for line in done.stderr.splitlines()) and done.stderr


def test_what_the_terminal_cannot_encode_is_replaced(tmp_path):
    env = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT)}
    votes = ["-m", "s2flow.store", "ls", "🦊 — runs"]
    for words in ([ROOT / "run.py", "--cfg", "job", "prompt=🦊 — runs"], votes):
        done = subprocess.run([sys.executable, *words], env=env, cwd=tmp_path, capture_output=True)
        assert b"? ? runs" in done.stdout + done.stderr and b"Traceback" not in done.stderr


def test_the_suggested_sparsity_is_reachable(recipe):
    assert recipe("sparsity=0.005208").sparsity == 0.005208


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_cuda_where_there_is_none(command, capsys):
    assert "type device=cpu" in refusal(command("device=cuda", *SMALL), capsys)


@pytest.mark.skipif(importlib.util.find_spec("vbench"), reason="vbench is installed")
def test_vbench_where_it_is_not_installed(command, capsys):
    line = refusal(command("prompts=vbench"), capsys)
    assert "pip install --no-deps vbench==0.1.5" in line


def test_an_augmented_list_beside_a_single_prompt(command, capsys):
    line = refusal(command("prompt=cat", "prompts.augmented=long.txt"), capsys)
    assert "prompts.augmented=long.txt" in line and "drop one" in line


def test_runs_dir_below_a_file(command, capsys, tmp_path):
    (tmp_path / "file").touch()
    line = refusal(command(f"runs_dir={tmp_path}/file/runs", *SMALL), capsys)
    assert f"runs_dir={tmp_path}/file/runs cannot be written" in line and "type runs_dir=" in line


@pytest.fixture
def altered(monkeypatch, tmp_path):
    """A private copy of the weights, seen instead of those that ship."""
    shutil.copytree(tiny.WEIGHTS / "micro", tmp_path / "weights" / "micro")
    monkeypatch.setattr(tiny, "WEIGHTS", tmp_path / "weights")
    forget = (loading._loaded.clear, loading.weights_hash.cache_clear)
    for call in forget:
        call()
    yield tmp_path / "weights" / "micro"
    for call in forget:
        call()


@pytest.mark.parametrize("part", ["transformer", "text_encoder", "vae"])
def test_truncated_weights(part, altered, command, capsys):
    (file,) = (altered / part).glob("*.safetensors")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    code = command(*SMALL)
    err = capsys.readouterr().err
    assert code == 2 and "Traceback" not in err
    said = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(said) == 1 and "weights of backbone=micro cannot be read" in said[0], err
    assert "reinstall" in said[0]


def test_weights_that_were_never_trained(altered, command, capsys):
    (altered / "model_index.json").unlink()
    assert "reinstall" in refusal(command(*SMALL), capsys)


def test_a_sweep_goes_on_past_a_bad_value(command, capsys):
    assert command("-m", "order=0,9", *SMALL) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines] == ["order=0", "order=9"]


def test_tracebacks_on_demand(monkeypatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setattr(sys, "argv", ["run.py"])
    with pytest.raises(cli.UserError), cli.terminal():
        raise cli.UserError("what to type")


def test_a_refused_command_leaves_no_run(command, tmp_path):
    assert command("sparsity=50") == 2
    assert not (tmp_path / "runs").exists()


# -- text to the letter ----------------------------------------------------------------------

NASTY = [  # apart from what `alphabet_soup` makes
    """it's a "quoted", prompt""",
    "\\",
    "ends in two \\\\",
    "backslash before \\' and \\\" quotes",
    "${oc.env:HOME}",
    "\\\\${seed}",
    "$ {x} $x $$ ${",
    "[a,b]",
    "{a:1}",
    "++x=1",
    "null and void",
    "1e3",
    "true",
    "nan",
    "choice(1,2)",
    "range(1,3)",
    " leading and trailing ",
    "\nlines around\n",
    "carriage\r\nreturn",
    "emoji 🦊🏳️‍🌈 and \u2028 and \u0301",
    "%s %(x)s \\n \\t",
    "a" * 3000,
    "--help",
    "prompt=x",
]


QUOTED = ["'a'", '"a, b"', "''a''", '"a" or "b"', "'", '"""', "'a\"", "'null'", "it's"]


def alphabet_soup(count: int) -> list[str]:
    """Random texts from the characters that mean something to a shell, Hydra or OmegaConf."""
    pieces = [
        *"\\'\"$${}[]()=,:~@|+ \n\t#%?ab1é",
        "${",
        "\\'",
        '\\"',
        "\\${",
        "🦊",
        "null",
        "${a}",
    ]
    rng = random.Random(20240607)
    return ["".join(rng.choices(pieces, k=rng.randint(1, 12))) for _ in range(count)]


@pytest.mark.parametrize("key", ["prompt", "runs_dir", "windows.file", "tracker.group"])
def test_any_text_arrives_to_the_letter(key):
    """Through Hydra's grammar and OmegaConf; in a sweep, which parses, writes and parses again."""
    parse = OverridesParser.create().parse_overrides
    cfg = OmegaConf.structured(Config)
    for text in [*NASTY, *QUOTED, *alphabet_soup(400 if key == "prompt" else 40)]:
        if text == "???" or (key in cli.FOLDERS and "${" in text):  # refused; interpolated
            continue
        (once,) = parse([cli.literal(cli.typed(key, text))])
        ((job,),) = BasicSweeper.split_arguments([once], None)
        (twice,) = parse(job)
        for override in (once, twice):
            OmegaConf.update(cfg, override.get_key_element(), override.value(), merge=True)
            assert OmegaConf.select(cfg, key) == text, (text, job)


def test_every_key_of_free_text_is_literal_and_no_other():
    texts = "prompt negative_prompt input runs_dir lr_cache_dir windows.file prompts.file export "
    texts += "prompts.augmented backbone.source tracker.project tracker.group tracker.entity "
    texts += "scorer.musiq.cache_dir scorer.vbench.full_info scorer.vbench_subprocess.python"
    for key in texts.split():
        assert cli.literal(f"{key}=a, 'b'") == f"{key}='a, \\'b\\''"
        assert cli.literal(f"{key}=null") == f"{key}=null" == cli.typed(key, None)
    others = "solver device shard executor context_parallel backbone windows method tracker.mode"
    for key in (*others.split(), "windows.policy", "prompts.subset", "backbone.dtype", "low"):
        assert cli.literal(f"{key}=a,b") == f"{key}=a,b"


@pytest.mark.parametrize("text", [*QUOTED, "a cat, running", "null"])
def test_one_pair_of_quotes_around_all_of_a_text_is_taken_off(text):
    def read(typed):
        return OverridesParser.create().parse_override(cli.literal(f"prompt={typed}")).value()

    for quote in "'\"":
        if quote not in text:
            assert read(f"{quote}{text}{quote}") == text
        assert read(quote * 2 + text + quote * 2) == f"{quote}{text}{quote}"
    assert read(r"'it\'s'") == "it's"  # as Hydra reads it
    assert read("'a' and 'b'") == "'a' and 'b'"  # no pair around all of it


def test_any_text_arrives_through_the_whole_config():
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        for text in NASTY[::4]:
            cfg = compose("config", [cli.literal(f"prompt={text}")])
            assert cfg.prompt == text
            assert OmegaConf.to_container(cfg, resolve=True)["prompt"] == text
            assert OmegaConf.create(OmegaConf.to_yaml(cfg)).prompt == text  # Hydra's diary
        assert compose("config", [cli.literal("prompt=null")]).prompt is None


def test_other_arguments_are_left_alone():
    for argument in ("sparsity=0.25,0.5", "-m", "prompts=demo", "prompt"):
        assert cli.literal(argument) == argument


@pytest.mark.parametrize("flags", [(), ("-m",)])
def test_a_negative_prompt_with_commas_is_one_run(flags, command, tmp_path):
    words = ("negative_prompt='blurry, low {quality}: 5 %'", "method=bicubic", "scorer=[none]")
    assert command(*flags, *words, *SMALL) == 0
    (path,) = (tmp_path / "runs").glob("*/recipe.json")
    assert json.loads(path.read_text())["negative_prompt"] == "blurry, low {quality}: 5 %"


@pytest.mark.parametrize("flags", [(), ("-m",)])
def test_a_nasty_prompt_is_recorded_to_the_letter(flags, command, capsys, tmp_path):
    text = " a, 'b' \"c\" = ${x} \\ [/x] [bold] {d: 1}\n🦊 \\"
    assert command(*flags, f"prompt={text}", "scorer=[none]", *SMALL) == 0, capsys.readouterr().err
    (record,) = (tmp_path / "runs").glob("*/records/*.json")
    assert json.loads(record.read_text(encoding="utf-8"))["prompt"] == text
    assert "FAILED" not in capsys.readouterr().err


LIGHT = {  # what is imported, and what that must not bring along
    # a signal meanwhile is reported without torch
    "tables, s2flow.terminal.summary, s2flow.terminal.cli, s2flow.recipe.schema, "
    "s2flow.store.__main__": "torch",
    "s2flow.run.runner": "s2flow.backbones.hunyuan, s2flow.backbones.wan, accelerate",
}


@pytest.mark.parametrize("imported", LIGHT)
def test_what_is_not_needed_is_not_loaded(imported):
    code = (
        f"import sys, {imported}; print([m for m in sys.argv[1].split(', ') if m in sys.modules])"
    )
    env = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'experiments'}"}
    words = [sys.executable, "-c", code, LIGHT[imported]]
    done = subprocess.run(words, env=env, capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stdout + done.stderr


def test_m_may_stand_anywhere(command, capsys):
    assert "order=50 is not in 1..20" in refusal(command("order=50", "-m", "device=cpu"), capsys)


def test_a_word_that_reproduce_would_not_read_is_refused(command, capsys):
    said = refusal(command("reproduce=0123456789", "device=cpu", "sparsity=0.3"), capsys)
    assert "reads no sparsity=0.3; leave it out" in said
    assert "threads=0 is not in" in refusal(command("reproduce=0123456789", "threads=0"), capsys)
    assert "offload=x is" in refusal(command("reproduce=0123456789", "offload=x"), capsys)
