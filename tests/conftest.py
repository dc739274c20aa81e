"""Shared by all tests: thread settings, the shipped `micro` backbone, recipes from the real conf/."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch starts its threads

import importlib.util
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from s2flow.scorers.vbench import compat

if importlib.util.find_spec("torchvision"):  # may not fit a CPU torch, and transformers imports it
    compat.torchvision_operators()

from closed_form import engine, truth  # noqa: F401 (fixtures)

import s2flow.recipe.resolve as config
from s2flow.embedded import backbone as tiny
from s2flow.methods import method
from s2flow.recipe.identity import Recipe

torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)

CONF = Path(__file__).parents[1] / "conf"


LONG = ("test_executor", "test_parallel", "test_costs", "test_analysis", "test_bench_models")
LONG += ("test_checkpoint", "test_faults", "test_world", "test_your_pipeline", "test_tracking")


def pytest_configure(config):
    config.option.loadscopereorder = False  # xdist would start files of few tests last


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.stem not in LONG)  # so that no worker ends with one
    if os.environ.get("S2FLOW_SLOW") != "1":
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="takes minutes: S2FLOW_SLOW=1"))


@pytest.fixture(scope="session")
def micro():
    """The embedded backbone with the weights that ship; shared, so leave it as you found it."""
    return tiny.load("micro", "cpu")


@pytest.fixture(scope="session")
def recipe():
    """recipe("method=cascade", "steps=4", ...): what these overrides resolve to."""

    def resolved(*overrides: str) -> Recipe:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose("config", list(overrides))
        return config.resolve(cfg, weights="test", knobs=method(cfg.method.name).KNOBS)

    return resolved
