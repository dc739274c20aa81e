"""Configs and recipes as run.py makes them of its words."""

from collections.abc import Iterable
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from script import ROOT

from s2flow import methods
from s2flow.backbones.checkpoint import Origin
from s2flow.errors import UserError
from s2flow.process import loading
from s2flow.recipe.identity import Recipe
from s2flow.recipe.resolve import resolve


def composed(words: Iterable[str]) -> Any:
    """The config of some words of run.py. Raises UserError for words that it would not take."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        try:
            return compose("config", overrides=list(words))
        except HydraException as error:
            line = str(error).splitlines()[0]
            raise UserError(f"{line} Type knobs of python run.py --help") from error


def recipe_of(cfg: Any, weights: str = "") -> Recipe:
    """The recipe of a config; weights: their hash. Raises UserError for what cannot be made."""
    return resolve(cfg, weights, methods.method(cfg.method.name).KNOBS)


def weights_of(cfg: Any) -> str:
    """The hash of the weights that a config names."""
    return loading.weights_hash(cfg.backbone.family, Origin.of(cfg.backbone))
