"""Published video models with random weights: time and memory do not depend on the weights' values.

`model` writes a checkpoint folder without weights, which `s2flow.costs.blank` and `s2flow.costs`
read like any other; `build` makes the parts that a benchmark runs, and leaves the others on the meta
device. Text encoders have no size, and text states are drawn at random. toy=True: the same classes at
a width that a CPU computes in seconds.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
import yaml
from torch import Tensor

from s2flow.backbones.base import Origin
from s2flow.backbones.published import PUBLISHED
from s2flow.costs.blank import FAMILIES, cast
from s2flow.costs.clock import RATES, known
from s2flow.grid import Box
from s2flow.recipe.defaults import conf_file
from s2flow.recipe.schema import BackboneConf

CHANGES = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
NO_TEXT, TOY, ONE_OF_EACH = (CHANGES[name] for name in ("no_text", "toy", "one_of_each"))

TOY_SIZES = (((192, 320), 29, (2, 2, 2)), ((384, 640), 29, (2, 4, 4)))


@dataclass(frozen=True)
class Model:
    """A model of conf/backbone: its file, its configs, and the sizes that it is benchmarked at."""

    name: str
    family: str
    origin: Origin
    conf: Any
    configs: dict[str, dict[str, Any]]
    toy: bool

    def layers(self) -> dict[str, int]:
        """How many blocks of each kind the whole model has, by the name of its module list."""
        c = self.configs["transformer"]
        if self.family == "wan":
            return {"blocks": c["num_layers"]}
        single = {"single_transformer_blocks": c["num_single_layers"]}
        return {"transformer_blocks": c["num_layers"]} | single


@contextmanager
def model(name: str, toy: bool) -> Iterator[Model]:
    """The model of a file of conf/backbone while its configs lie in a folder."""
    conf = conf_file("backbone", name, BackboneConf)
    published, small = PUBLISHED[conf.source], TOY[conf.family] if toy else {}
    parts = {p: published[p] | small.get(p, {}) for p in ("transformer", "vae")}
    parts |= NO_TEXT[conf.family]
    with TemporaryDirectory() as folder:
        index = {part: ["diffusers", None] for part in parts}
        Path(folder, "model_index.json").write_text(json.dumps(index))
        for part, config in parts.items():
            Path(folder, part).mkdir()
            Path(folder, part, "config.json").write_text(json.dumps(config))
        origin = Origin("bench", folder, None, "float32" if toy else conf.dtype)
        yield Model(name, conf.family, origin, conf, parts, toy)


def build(model: Model, device: str, runs: tuple[str, ...], **config: Any) -> Any:
    """The backbone with random weights of the parts in `runs`; config: of the transformer, changed."""
    classes, adapter = FAMILIES[model.family]
    parts = {}
    for part in ("transformer", "vae"):
        own = model.configs[part] | (config if part == "transformer" else {})
        with torch.device(device if part in runs else "meta"):
            parts[part] = getattr(diffusers, classes[part]).from_config(own)
        parts[part].eval().requires_grad_(False)
    cast(parts["transformer"], getattr(torch, model.origin.dtype))
    backbone = adapter("bench", SimpleNamespace(**parts, components=parts, tokenizer=None))
    backbone.device = device
    return backbone


def random_condition(backbone: Any, batch: int, guidance: float) -> Any:
    """The blank condition on the backbone's device, with numbers in it."""
    condition = backbone.blank_condition(batch, guidance)
    values = {f.name: getattr(condition, f.name) for f in fields(condition)}
    drawn = {
        k: torch.randn_like(x)
        for k, x in values.items()
        if isinstance(x, Tensor) and x.is_floating_point()
    }
    return replace(condition, **drawn)


@dataclass(frozen=True)
class Problem:
    """One clip size: pixels, frames, brick."""

    size: tuple[int, int]
    frames: int
    brick: Box


def sizes_of(model: Model) -> dict[str, Problem]:
    """LR and HR of the model's file, or of a toy."""
    c, sizes = model.conf, TOY_SIZES
    if not model.toy:
        sizes = ((c.low, c.frames, c.brick_low), (c.high, c.frames, c.brick_high))
    pairs = zip(("lr", "hr"), sizes, strict=True)
    return {k: Problem(tuple(size), frames, tuple(brick)) for k, (size, frames, brick) in pairs}


def assumed_rate(device_name: str) -> float:
    """TFLOP/s that `s2flow.costs` assumes of such a device."""
    return (known(device_name) or RATES["A100"]).tflops
