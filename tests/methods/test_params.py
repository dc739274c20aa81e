"""Parameters of methods: typed before they are hashed, refused in one line, open defaults by preset."""

from dataclasses import FrozenInstanceError, fields
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from s2flow import methods
from s2flow.errors import UserError
from s2flow.methods import diffusehigh, hiflow
from s2flow.methods.params import PRESETS, parameters, typed, variant
from s2flow.recipe import defaults
from s2flow.recipe.resolve import resolve
from s2flow.recipe.schema import BackboneConf

CONF = Path(__file__).parents[2] / "conf"
WITH = [name for name in methods.names() if parameters(methods.method(name))]


@pytest.mark.parametrize("name", methods.names())
def test_the_file_of_a_method_lists_its_parameters_with_their_defaults(name):
    written = yaml.safe_load((CONF / "method" / f"{name}.yaml").read_text())
    module = methods.method(name)
    own = {f.name: f.default for f in fields(module.Params)} if name in WITH else {}
    assert written == {"name": name, "preset": PRESETS[0]} | own
    text = (CONF / "method" / f"{name}.yaml").read_text()
    help_text = (CONF / "hydra" / "help" / "s2flow.yaml").read_text()
    for key in ("preset", *own):
        assert "#" in next(line for line in text.splitlines() if line.startswith(key))
        assert f"method.{key}" in help_text


def test_values_become_the_types_of_their_fields(recipe):
    params = recipe("method=hiflow", "method.alpha=1", "method.beta=0").params
    assert params == hiflow.Params(alpha=1.0, beta=0.0)
    assert [type(x) for x in (params.alpha, params.beta)] == [float, float]
    assert type(recipe("method=diffusehigh", "method.guided_steps=2.0").params.guided_steps) is int
    with pytest.raises(FrozenInstanceError):
        params.alpha = 0.0


def test_parameters_stand_in_the_identity_of_methods_that_have_any(recipe):
    usual = {"alpha": 1.0, "beta": 0.5, "cutoff": 0.2}
    assert recipe("method=hiflow").identity()["params"] == usual
    for name in set(methods.names()) - set(WITH):
        assert "params" not in recipe(f"method={name}").identity()
    assert "preset" not in str(recipe("method=hiflow", "method.preset=own").identity())


@pytest.mark.parametrize(
    ("name", "own"), [("macs", 35), ("diffusehigh", 15), ("rectifiedhr", 20), ("hiflow", None)]
)
def test_presets_decide_an_open_t_i_only(recipe, name, own):
    def t_i(*words):
        return recipe(f"method={name}", "steps=50", *words).t_i

    usual = recipe("method=s2flow", "steps=50").t_i
    assert t_i() == t_i("method.preset=paper_parity") == usual
    assert t_i("method.preset=own") == (own or usual)
    assert t_i("method.preset=own", "t_i=9") == t_i("t_i=9") == 9
    assert recipe(f"method={name}", "steps=1", "method.preset=own").t_i == 1


REFUSED = {  # method, what is typed -> what the line must say
    ("hiflow", "alpha", "much"): "method.alpha=much type a number",
    ("hiflow", "alpha", None): "method.alpha=None type a number",
    ("hiflow", "alpha", True): "method.alpha=True type a number",
    ("hiflow", "alpha", float("nan")): "method.alpha=nan type a number",
    ("hiflow", "alpha", 2): "method.alpha=2 [0, 1] type method.alpha=1",
    ("hiflow", "cutoff", 0): "method.cutoff=0 type method.cutoff=0.001",
    ("hiflow", "alhpa", 1): "method.alhpa method=hiflow type method.alpha=",
    ("hiflow", "guided_steps", 1): "method.guided_steps method=hiflow it has method.preset",
    ("macs", "alpha", 1): "method.alpha method=macs it has method.preset",
    ("diffusehigh", "guided_steps", 2.5): "method.guided_steps=2.5 type a whole number",
    ("diffusehigh", "guided_steps", -1): "method.guided_steps=-1 at least 0 type",
    ("diffusehigh", "space", "pixels"): "method.space=pixels type method.space=latent|pixel",
    ("diffusehigh", "space", 1): "method.space=1 type method.space=latent|pixel",
    ("rectifiedhr", "guidance", -1): "method.guidance=-1 type method.guidance=0",
    ("native", "preset", "mine"): "method.preset=mine type method.preset=paper_parity|own",
}


@pytest.mark.parametrize("case", REFUSED, ids=str)
def test_one_line_says_what_was_typed_and_what_to_type(case):
    name, key, value = case
    with pytest.raises(UserError) as error:
        typed(methods.method(name), name, {"name": name, key: value})
    assert "\n" not in str(error.value)
    for said in REFUSED[case].split():
        assert said in str(error.value), error.value


def test_only_what_differs_from_the_defaults_is_shown():
    assert variant(None, 8) is variant(hiflow.Params(), 8) is None
    assert variant(hiflow.Params(0.0, cutoff=0.25), 8) == "alpha=0 cutoff=0.25"
    assert variant(diffusehigh.Params(2, "pixel"), 8) == "guided_steps=2 space=pixel"
    assert variant(diffusehigh.Params(3), 3) is None  # as many as the default gives there


def called(**knobs):
    cfg = defaults.composed([defaults.conf_file("backbone", "micro", BackboneConf)], knobs)
    return resolve(cfg, "", methods.method(cfg.method.name).KNOBS)


def test_a_call_takes_a_method_by_name_or_with_parameters(recipe):
    assert called(method="hiflow").params == hiflow.Params()
    r = called(method={"name": "hiflow", "alpha": 1, "beta": 0})
    assert r.params == hiflow.Params(beta=0.0)
    assert called(method={"name": "macs", "preset": "own"}, steps=10).t_i == 7
    for given, said in (
        ({"alpha": 1}, "has no name; type method={'name': 'hiflow'"),
        ({"name": "hiflow", "alhpa": 1}, "type method.alpha="),
        ({"name": "magic"}, "method=magic is unknown; type one of method=bicubic"),
    ):
        with pytest.raises(UserError, match=".*") as error:
            called(method=given)
        assert said in str(error.value)
    assert OmegaConf.is_dict(OmegaConf.create(r.identity()))
