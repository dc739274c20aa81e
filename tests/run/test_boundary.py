"""The config boundary: any value of any knob either runs or is refused with one line."""

import dataclasses
import os
import tempfile
import typing

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from omegaconf.errors import OmegaConfBaseException

from s2flow.errors import UserError
from s2flow.methods import method as module_of
from s2flow.methods import names
from s2flow.methods.params import parameters
from s2flow.process import loading
from s2flow.recipe import CONF
from s2flow.recipe.schema import KNOBS, Config
from s2flow.run import runner
from s2flow.terminal.cli import check_choice, literal, one_line

LONG = os.environ.get("S2FLOW_SLOW") == "1"  # other values every time; CI's are the same ones
MANY = 2000 if LONG else 40
BASE = ("prompts.count=2", "steps=4", "t_i=2", "frames=2", "device=cpu", "scorer=[none]")


class Reached(BaseException):
    """The config was accepted: the next thing would be to load the model."""


def knobs(schema: type = Config, above: str = "") -> dict[str, typing.Any]:
    """Every key that can be typed, with its type; groups by their own keys."""
    found = {}
    for f in dataclasses.fields(schema):
        if dataclasses.is_dataclass(f.type):
            found |= knobs(f.type, f"{above}{f.name}.")
        else:
            found[above + f.name] = f.type
    return found


whole = st.integers() | st.sampled_from([0, 1, -1, 2, 3, 8, 2**31, 2**63, 2**64, 10**30])
real = st.floats() | st.sampled_from([0.5, 1.0, 1e-300, 1e300, -0.0])
words = st.sampled_from(
    ["null", "true", "''", "auto", "none", "a/b", "../..", "${oc.env:HOME}", "${nothing}", "???"]
    + ["[]", "[1]", "[1,2,3]", "[64,96]", "[a]", "[[1,0,0]]", "[null]", "{a:1}", "'é'", "'\\'"]
) | st.from_regex(r"[a-zA-Z_]{1,8}", fullmatch=True)
listed = st.lists(whole | real | st.lists(real, max_size=3), max_size=4).map(
    lambda x: str(x).replace(" ", "").replace("None", "null")
)
anything = st.one_of(whole.map(str), real.map(str), words, listed)


def outcome(folder, *typed: str) -> str | None:
    """None if the run would start, else the one line that refuses it."""
    given = {word.partition("=")[0] for word in typed}
    base = [word for word in BASE if word.partition("=")[0] not in given]
    base += [] if "runs_dir" in given else [f"runs_dir={folder}"]
    try:
        for word in typed:
            check_choice(word)
        runner.run(compose("config", [literal(word) for word in (*base, *typed)]))
    except Reached:
        return None
    except (UserError, HydraException, OmegaConfBaseException) as error:
        line = one_line(error)
        assert line and "\n" not in line
        return line
    return None  # a plan was printed


@pytest.fixture(autouse=True)
def nothing_is_loaded(monkeypatch, tmp_path):
    def reached(*given):
        raise Reached

    monkeypatch.setattr(loading, "load_backbone", reached)
    monkeypatch.setattr("torch.set_num_threads", lambda n: None)  # it would start them
    monkeypatch.chdir(tmp_path)
    with initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
        yield


few = settings(
    max_examples=MANY // 5,
    deadline=None,
    derandomize=not LONG,
    suppress_health_check=list(HealthCheck),
)


@settings(few, max_examples=MANY)
@example("backbone.multiple", "0")
@example("backbone.frame_step", "-1")
@example("backbone.family", "x")
@example("method", "0")
@example("tracker.name", "0")
@example("seeds", "2147483648")
@example("steps", "1000000000")
@example("threads", "1000000000")
@given(st.sampled_from(sorted(knobs())), anything)
def test_any_value_of_any_knob_runs_or_is_refused_in_one_line(tmp_path, knob, value):
    outcome(tmp_path / "runs", f"{knob}={value}")


of_methods = [(m, p) for m in names() for p in ("preset", "name", *parameters(module_of(m)))]


@few
@given(st.sampled_from(of_methods), anything)
def test_any_value_of_any_parameter_of_a_method(tmp_path, parameter, value):
    method, name = parameter
    outcome(tmp_path / "runs", f"method={method}", f"method.{name}={value}")


CHOICES = {f.name: f.metadata["choices"] for f in KNOBS}
POLICIES = ["adaptive", "cubes", "fixed", "coverage", "full", "oracle", "svg", "moba", "inward"]
sensible = {
    "sparsity": st.floats(0, 1, exclude_min=True),
    "density": st.sampled_from(CHOICES["density"]),
    "order": st.integers(1, 3),
    "t_i": st.integers(1, 3),
    "steps": st.integers(1, 3),
    "seed": st.integers(-(2**62), 2**62),
    "guidance": st.floats(-10, 10),
    "shift": st.floats(0.01, 100),
    "shift_high": st.floats(0.01, 100),
    "solver": st.sampled_from(CHOICES["solver"]),
    "handoff": st.sampled_from(CHOICES["handoff"]),
    "noise": st.sampled_from(CHOICES["noise"]),
    "rope": st.sampled_from(CHOICES["rope"]),
    "temperature": st.just("auto") | st.floats(0.1, 10),
    "adain": st.sampled_from(["true", "false"]),
    "upsample": st.sampled_from(CHOICES["upsample"]),
    "coverage_rows": st.integers(1, 10**6),
    "brick_high": st.sampled_from(["[1,1,1]", "[1,2,2]", "[2,4,4]", "[9,9,9]", "[1,3,5]"]),
    "brick_low": st.sampled_from(["[1,1,1]", "[1,2,2]", "[2,4,4]", "[9,9,9]", "[1,3,5]"]),
    "high": st.sampled_from(["[64,96]", "[48,72]", "[40,56]", "[96,48]", "[64,64]"]),
    "low": st.sampled_from(["[32,48]", "[24,24]", "[8,8]", "[48,32]"]),
    "frames": st.integers(1, 3),
    "windows": st.sampled_from(POLICIES),
    "windows.dense_steps": st.integers(0, 5),
    "windows.dense_layers": st.sampled_from(["[0]", "[0,1,2,3,4,5]", "[99]"]),
    "scales": st.sampled_from(["[1,2]", "[1,1.5,2]"]),
    "method": st.sampled_from(names()),
    "batch": st.integers(1, 4),
    "prompt": st.text(max_size=40),
}


@settings(few, max_examples=120 if LONG else 8)  # some seconds each
@given(
    st.dictionaries(st.sampled_from(sorted(sensible)), st.none(), min_size=1, max_size=4),
    st.data(),
)
def test_what_is_accepted_makes_a_clip(micro, knobs, data):
    """Accepted, and it ends in a record: no knob is refused by a failure deep inside."""
    typed = [f"{k}={data.draw(sensible[k], label=k)}" for k in sorted(knobs)]
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "load_backbone", lambda *given: micro)
        said = outcome(folder, *typed, "prompts.count=1", "progress=off")
        assert said is None or "failed" not in said, f"{' '.join(typed)}: {said}"
