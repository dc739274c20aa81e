"""Everything that may be typed composes, resolves, and is explained by --help."""

import shlex
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from s2flow import methods
from s2flow.attention import BACKENDS
from s2flow.errors import UserError
from s2flow.recipe.__main__ import keywords
from s2flow.recipe.identity import Recipe
from s2flow.recipe.resolve import resolve
from s2flow.recipe.schema import KNOBS, Config, help_lines, page
from s2flow.terminal.cli import literal
from s2flow.windows import DEFAULT_EXPONENTS

CONF = Path(__file__).parents[2] / "conf"
EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def composed(overrides: list[str], **given):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", overrides, **given)


def recipes(command: str) -> list[Recipe]:
    """The recipes of `python run.py <command>`, one per job, sweeps expanded as Hydra does it."""
    words = [literal(word) for word in shlex.split(command)]
    sweep = "-m" in words
    words = [word for word in words if word != "-m"]
    hydra = composed(words, return_hydra_config=True).hydra if not sweep else None
    if sweep or hydra.mode is not None and hydra.mode.name == "MULTIRUN":
        params = {} if sweep else OmegaConf.to_container(hydra.sweeper.params) or {}
        overrides = OverridesParser.create().parse_overrides(
            [*(f"{k}={v}" for k, v in params.items()), *words]
        )
        (jobs,) = BasicSweeper.split_arguments(overrides, None)
    else:
        jobs = [words]
    found = []
    for job in jobs:
        cfg = composed(job)
        found.append(resolve(cfg, "weights", methods.method(cfg.method.name).KNOBS))
    return found


COMMANDS = {  # what may be typed -> how many different runs it is
    "": 1,
    "-m sparsity=0.25,0.5,0.75": 3,
    "-m order=1,2,3": 3,
    "-m t_i=4,8,12,16": 4,
    "-m windows=adaptive,cubes,temporal": 3,
    "-m windows=fixed,full,coverage": 3,
    "-m windows=oracle,svg,moba,inward": 4,
    "windows=sta windows.file=sta.json sparsity=1": 1,
    "-m windows=full sparsity=0.25,0.5": 1,
    "windows.exponents='[[1,0,0],[0,1,0]]'": 1,
    "-m 'windows.exponents=[[1,0,0]],[[0,1,0]]'": 2,
    "windows=coverage windows.target=0.8": 1,
    "windows.dense_steps=2 windows.dense_layers=[0,1]": 1,
    "-m density=volume,per_axis": 2,
    "-m method=s2flow,cascade,native,bicubic": 4,
    "-m method=macs,diffusehigh,hiflow,rectifiedhr method.preset=paper_parity,own": 6,
    "-m method=hiflow method.alpha=0,0.5,1 method.cutoff=0.2,0.3": 5,
    "method=diffusehigh method.space=pixel method.guided_steps=3": 1,
    "-m solver=lri,euler,ab2,ab3,lri_cv,unipc,heun": 7,
    "-m handoff=x0,latent,noisy": 3,
    "-m noise=fresh,aligned": 2,
    "-m stencil=grid,central lr_time=sigma,snr": 3,  # the stencil is unused at equal snr
    "-m upsample=bilinear,nearest,bicubic": 3,
    "-m seed=0,1,2": 1,
    "-m seeds=1,4 prompts.augmented=long.txt": 1,
    "-m 'low=[32,48],[32,32]'": 2,
    "-m rope=none,interpolate,ntk temperature=null,auto shift_high=null,3": 12,
    "high=[96,144] steps=30 frames=4 guidance=2 shift=3": 1,
    "backbone=tiny": 1,
    "-m backbone=wan_1_3b,wan_14b,hunyuan": 3,
    "-m backbone=wan_2_2_5b,wan_2_2_14b,hunyuan_1_5": 3,
    "-m backbone=wan_2_2_14b guidance_2=3,5": 2,
    "-m backbone=wan_2_2_14b guidance=1": 1,
    "-m backbone=hunyuan backbone.dtype=bfloat16,float32": 2,
    "backbone=wan_1_3b backbone.source=FOLDER backbone.revision=abc": 1,
    "prompt='a cat, ${x}' -m sparsity=0.5,1": 2,
    "prompts=file prompts.file=my.txt shard=1/4 runs_dir=elsewhere batch=2 device=cpu": 1,
    "prompts=vbench prompts.subset=half 'scorer=[none]' tracker=wandb threads=1": 1,
    "prompts=world prompts.count=64": 1,
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_documented_command_resolves(command):
    assert len({recipe.run_id for recipe in recipes(command)}) == COMMANDS[command]


@pytest.mark.parametrize(
    "group", ["method", "windows", "backbone", "prompts", "scorer", "tracker"]
)
def test_every_file_of_a_group_can_be_chosen(group):
    for name in options(group):
        cfg = composed([f"scorer=[{name}]" if group == "scorer" else f"{group}={name}"])
        if cfg.windows.policy == "sta":  # needs a file: test_policies.py
            continue
        if group in ("method", "backbone", "tracker"):
            assert cfg[group].name == name  # what was typed is what tables and records say
        if group == "windows":
            policy = resolve(cfg, "", methods.method("s2flow").KNOBS).windows
            assert policy.label.split()[0] == name


def test_every_config_of_a_method_has_one_and_its_knobs_are_fields_of_the_recipe():
    for name in options("method"):
        assert callable(methods.method(name).generate)
        assert set(methods.method(name).KNOBS) <= set(Recipe.__dataclass_fields__)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_resolves(name):
    text = (CONF / "experiment" / f"{name}.yaml").read_text(encoding="utf-8")
    for said in (f"python run.py experiment={name}", "# cost", "# expected"):
        assert said in text, f"conf/experiment/{name}.yaml opens without {said!r}"
    found = recipes(f"experiment={name}")
    assert len({recipe.run_id for recipe in found}) > 1  # it compares something


def test_open_knobs_come_from_the_backbone():
    (recipe,) = recipes("")
    backbone = yaml.safe_load((CONF / "backbone" / "micro.yaml").read_text())
    for knob in ("steps", "shift", "guidance", "frames"):
        assert getattr(recipe, knob) == backbone[knob]
    for knob in ("low", "high", "brick_low", "brick_high"):
        assert list(getattr(recipe, knob)) == backbone[knob]
    assert recipe.sparsity == 0.5 and recipe.order == 2 and recipe.density == "volume"
    assert recipe.windows.exponents == DEFAULT_EXPONENTS  # of the paper


def test_open_t_i_follows_the_noise_level_not_the_count():
    for t_i, sigma in {40: 0.966, 30: 0.913, 20: 0.824, 10: 0.636}.items():  # Table 4 of the paper
        (recipe,) = recipes(f"steps=50 shift=7 backbone.handoff_sigma={sigma}")
        assert recipe.t_i == t_i
    assert [r.t_i for r in recipes("-m steps=5,20,40 backbone.handoff_sigma=0.5")] == [2, 8, 16]
    assert [r.t_i for r in recipes("backbone.handoff_sigma=0.001")] == [1]


def test_the_file_repeats_no_knob_of_the_schema():
    written = yaml.safe_load((CONF / "config.yaml").read_text())
    assert set(written) == {"defaults", "hydra"}
    groups = {"backbone", "method", "windows", "prompts", "scorer", "tracker"}
    schema = OmegaConf.to_container(OmegaConf.structured(Config))
    assert set(schema) - groups == {f.name for f in KNOBS}


def test_the_page_of_knobs_is_what_the_schema_says():
    text = (CONF.parent / "docs" / "knobs.md").read_text(encoding="utf-8")
    assert text == page(), "type python -m s2flow.recipe ."


def test_the_keywords_of_generate_are_what_the_schema_says():
    written = (CONF.parent / "s2flow" / "recipe" / "keywords.py").read_text(encoding="utf-8")
    assert written == keywords(), "type python -m s2flow.recipe ."


def test_help_explains_every_knob_and_choice():
    text = help_lines()
    for f in KNOBS:
        assert f"    {f.name} " in text and len(f.metadata["about"]) > 3
        assert " | ".join(f.metadata["choices"]) in text
        if f.name == "attention":
            assert f.metadata["choices"] == ("auto", *BACKENDS)
    of_groups = (CONF / "hydra" / "help" / "s2flow.yaml").read_text(encoding="utf-8")
    assert "${knobs:}" in of_groups
    for word in ("prompts.subset", "prompts.augmented", "backbone.source", "windows.exponents"):
        assert word in of_groups


@pytest.mark.parametrize(
    ("typed", "refusal"),
    [
        ("handoff=pixel", "handoff=pixel is unknown; type one of handoff=x0|latent|noisy"),
        ("batch=0", "batch=0 is not at least 1; type batch=1"),
        ("shift_high=0", "shift_high=0 is not above 0 and finite; type shift_high=5"),
        ("lr_cache_gib=-1", "lr_cache_gib=-1 is not in 0..1e+06; type lr_cache_gib=10"),
        ("threads=0", "threads=0 is not in 1..1024; type threads=1"),
    ],
)
def test_what_a_knob_does_not_declare_is_refused(typed, refusal):
    with pytest.raises(UserError) as caught:
        recipes(typed)
    assert str(caught.value) == refusal


def test_help_names_every_command():
    """Those that a user types: modules with a command line of their own."""
    text = (CONF / "hydra" / "help" / "s2flow.yaml").read_text()
    package = CONF.parent / "s2flow"
    rooms = {p.parent.name for p in package.glob("*/__main__.py")} - {"recipe", "prompts"}
    for name in sorted(rooms | {"score", "calibrate", "preferences"}):
        assert f"python -m s2flow.{name}" in text, name
