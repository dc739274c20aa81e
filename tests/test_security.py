"""What a config, a prompt or a store may not do: run other code, leave its folder, open a port."""

import ast
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_runner import config

import s2flow
from s2flow.errors import UserError
from s2flow.scorers import build
from s2flow.store import clip_key

SOURCES = sorted(Path(s2flow.__file__).parent.rglob("*.py"))
PICKLES = {"worker.py"}  # VBench's own files, opened only if their sha256 is known
WORLD = "s2flow.scorers.world.WorldAgreement"


def calls(tree: ast.AST) -> list[tuple[str, ast.Call]]:
    """(what is called, as written, the call)."""
    return [(ast.unparse(n.func), n) for n in ast.walk(tree) if isinstance(n, ast.Call)]


def keyword(call: ast.Call, name: str):
    """A keyword's literal value; None if it is not given."""
    found = [k.value for k in call.keywords if k.arg == name]
    return ast.literal_eval(found[0]) if found else None


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.name)
def test_nothing_of_ours_unpickles_or_evaluates(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for name, call in calls(tree):
        assert name not in ("eval", "exec", "os.system"), name
        if name == "np.load":
            assert keyword(call, "allow_pickle") is False, ast.unparse(call)
        if name == "torch.load":
            assert keyword(call, "weights_only") is True, ast.unparse(call)
    imported = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    assert not imported & {"pickle", "dill", "cloudpickle", "marshal", "shelve"} or (
        path.name in PICKLES
    )


def test_a_scorer_is_built_from_our_package():
    scorer = build("world", {"_target_": WORLD, "size": "micro"})
    assert f"{type(scorer).__module__}.{type(scorer).__name__}" == WORLD


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.eval",
        "s2flow.scorers.torch.load",  # another package's function, through a module of ours
        "s2flow.scorers.world.Path",
        "s2flow.scorersx.World",
        "s2flow.store.Store",
        "${oc.env:HOME}",
        "",
        None,
    ],
)
def test_a_target_elsewhere_is_refused_and_not_called(target, monkeypatch):
    monkeypatch.setattr("os.system", pytest.fail)
    with pytest.raises(UserError, match=r"scorer.mine._target_=.* is no scorer of s2flow; type"):
        build("mine", {"_target_": target, "command": "true"})


def test_a_scorer_of_ones_own_is_allowed_by_name(monkeypatch, tmp_path):
    (tmp_path / "mylab.py").write_text(
        "from s2flow.scorers import Scorer\nclass Mine(Scorer):\n    names = ('mine',)\n"
        "class Old:\n    names = ('old',)\n    def __call__(self, clip): return {'old': 1.0}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="S2FLOW_SCORERS"):
        build("mine", {"_target_": "mylab.Mine"})
    monkeypatch.setenv("S2FLOW_SCORERS", "mylab")
    assert build("mine", {"_target_": "mylab.Mine"}).names == ("mine",)
    with pytest.raises(UserError, match=r"it has no .*, score; derive .* s2flow.scorers.Scorer"):
        build("old", {"_target_": "mylab.Old"})


def test_a_target_inside_a_scorers_arguments_is_not_built(monkeypatch):
    monkeypatch.setattr("os.system", pytest.fail)
    inner = {"_target_": "os.system", "command": "true"}
    with pytest.raises(Exception):  # noqa: B017 (whatever the scorer says of a size like that)
        build("world", {"_target_": WORLD, "size": inner})


@given(st.text(), st.integers(), st.none() | st.text())
def test_no_prompt_names_a_file(prompt, seed, original):
    prompt, original = (
        t and t.encode("utf-8", "ignore").decode("utf-8") for t in (prompt, original)
    )
    key = clip_key(prompt, seed, original)
    assert len(key) == 16 and set(key) <= set("0123456789abcdef")


def test_a_run_opens_no_port(tmp_path, monkeypatch):
    from s2flow.run import runner

    for name in ("bind", "listen"):
        monkeypatch.setattr(socket.socket, name, lambda *a: pytest.fail(f"a port: {a}"))
    words = ("prompt=../../../etc/passwd", "steps=2", "t_i=1", "frames=1")
    (record,) = runner.run(config(tmp_path / "runs", *words))["records"]
    assert record["video"] == f"clips/{clip_key('../../../etc/passwd', 0)}.mp4"
    outside = [p for p in tmp_path.rglob("*") if p.is_file() and "runs" not in p.parts]
    assert not outside
