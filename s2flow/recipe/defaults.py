"""What conf/ and a loaded pipe say where a keyword of `s2flow.generate` is left open.

The config of a call is the one that `run.py` would have composed, without Hydra: the schema, a file of
conf/backbone and one of conf/windows, and the keywords over them. A pipe states its own strides, type
and shift. Sizes: `low` is half of `high`, in whole tokens. Bricks: the file's where they cut both token
grids into one grid of full bricks, else derived from the token grids (`bricks`).
"""

from collections.abc import Mapping
from dataclasses import fields
from itertools import product
from math import ceil, gcd, prod
from operator import floordiv
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from s2flow.backbones.base import Backbone
from s2flow.backbones.inspect import State
from s2flow.errors import WANTED, UserError
from s2flow.grid import Box
from s2flow.recipe import CONF
from s2flow.recipe.schema import BackboneConf, Config, WindowsConf

BRICK = 128  # most tokens of an HR brick
BRICKS = 512  # and at least so many of them, where the grid allows it


def of_pipe(pipe: Any, state: State, backbone: Backbone, described: list[str]) -> list[DictConfig]:
    """The files of a family, that of the pipe's name first, with what the pipe says in its place."""
    opened = Path(str(pipe.config.get("_name_or_path") or "")).name
    files = [conf_file("backbone", name, BackboneConf) for name in described]
    files.sort(key=lambda f: Path(f.source).name != opened)
    conf, shift = files[0], state.shift
    conf.name, conf.source, conf.revision = type(pipe).__name__, None, None
    conf.dtype = str(backbone.transformer.dtype).removeprefix("torch.")
    conf.shift = conf.shift if shift is None else shift
    conf.multiple, conf.frame_step = backbone.multiple, backbone.frame_step
    conf.boundary = getattr(backbone, "boundary", None)
    if backbone.max_side < conf.max_side:
        conf.max_side = int(backbone.max_side)
        conf.max_frames = (conf.max_side // conf.multiple - 1) * conf.frame_step + 1
    return files


def composed(files: list[DictConfig], knobs: dict[str, Any]) -> DictConfig:
    """The config that `run.py` would have composed. Raises UserError for a value of a wrong kind."""
    cfg = OmegaConf.structured(Config)
    cfg.backbone = files[0]
    cfg.method = _method(knobs.get("method", "s2flow"))
    cfg.windows = _windows(knobs.get("windows", "adaptive"))
    for name in knobs.keys() - {"method", "windows"}:
        value = _plain(knobs[name])
        if isinstance(value, str) and ("${" in value or value == "???"):
            raise UserError(f"{name}={value!r} is refused: type it without ${{ or ???")
        try:
            cfg[name] = value
        except OmegaConfBaseException as error:
            wanted = next((w for said, w in WANTED.items() if said in str(error)), "another value")
            raise UserError(f"{name}={knobs[name]!r} is refused: type {wanted}") from None
    _sizes(cfg, files)
    return cfg


def _plain(value: Any) -> Any:
    """Numbers and lists of Python's own, for OmegaConf, from arrays, tensors and their elements."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def _sizes(cfg: DictConfig, files: list[DictConfig]) -> None:
    """LR size and bricks where they are open; what cannot be a size is left to `resolve`."""
    conf, m = cfg.backbone, cfg.backbone.multiple
    for name in ("low", "high"):
        if cfg[name] is not None and len(cfg[name]) != 2:
            raise UserError(f"{name}={list(cfg[name])} is no size; type {name}=(height, width)")
    if cfg.low is None and cfg.high is not None:
        cfg.low = [max(side // 2 // m, 1) * m for side in cfg.high]
    if cfg.high is None and cfg.low is not None:
        cfg.high = [2 * side for side in cfg.low]
    sizes = [conf[n] if cfg[n] is None else cfg[n] for n in ("low", "high")]
    frames = conf.frames if cfg.frames is None else cfg.frames
    low, high = ((max(frames - 1, 0) // conf.frame_step + 1, *(s // m for s in x)) for x in sizes)
    if min(*low, *high) < 1:
        return
    known = [(tuple(f.brick_low), tuple(f.brick_high)) for f in files]
    fitting = [pair for pair in known if _one_grid(low, high, *pair)]
    found = max(fitting, key=lambda p: prod(p[1])) if fitting else bricks(low, high)
    for name, brick in zip(("brick_low", "brick_high"), found, strict=True):
        if cfg[name] is None:
            cfg[name] = list(brick)


def _one_grid(low: Box, high: Box, brick_low: Box, brick_high: Box) -> bool:
    """Whether both token grids are the same grid of bricks, all full."""
    pairs = zip(map(divmod, low, brick_low), map(divmod, high, brick_high), strict=True)
    return all(a == b and a[1] == 0 for a, b in pairs)


def bricks(low: Box, high: Box) -> tuple[Box, Box]:
    """(LR brick, HR brick) for token grids (T, H, W) that no file of conf/backbone describes.

    Both grids become the same grid of full bricks: the largest HR brick of at most 128 tokens, and the
    most even one among equals, such that 512 of them remain where the grid is large enough. Sides have
    at most 16 tokens; where no such pair exists, bricks of the sizes' ratio, ragged at the border.
    """
    sizes = list(zip(low, high, strict=True))
    most = max(min(BRICK, prod(high) // BRICKS), prod(ceil(b / a) for a, b in sizes))
    grids = product(*([g for g in range(1, n + 1) if n % g == 0] for n in map(gcd, low, high)))
    pairs = [(tuple(map(floordiv, low, g)), tuple(map(floordiv, high, g))) for g in grids]
    full = [p for p in pairs if prod(p[1]) <= most and max(p[1]) <= 16]
    if full:
        return max(full, key=lambda p: (prod(p[1]), -sum(p[1])))
    for brick in ((2, 4, 4), (1, 4, 4), (1, 2, 2), (1, 1, 1)):
        high_brick = tuple(
            max(round(n * b / a), 1) for n, (a, b) in zip(brick, sizes, strict=True)
        )
        if prod(high_brick) <= most:
            break
    return brick, high_brick


def _windows(given: Any) -> DictConfig:
    """A file of conf/windows by name, or its fields over those of `adaptive`."""
    if isinstance(given, str):
        return conf_file("windows", given, WindowsConf)
    conf = conf_file("windows", "adaptive", WindowsConf)
    try:
        return OmegaConf.merge(conf, given)
    except (OmegaConfBaseException, ValueError, TypeError):
        raise UserError(
            f"windows={given!r} is refused; type the name of a file of conf/windows, or a dict of "
            f"{', '.join(f.name for f in fields(WindowsConf))}"
        ) from None


def _method(given: Any) -> dict[str, Any]:
    """A method by name, or its name and parameters."""
    if isinstance(given, Mapping) and "name" not in given:
        raise UserError(
            f"method={dict(given)} has no name; type method={{'name': 'hiflow', 'alpha': 0.5}}"
        )
    found = {"name": given} if not isinstance(given, Mapping) else given
    return {str(k): _plain(v) for k, v in found.items()} | {"name": str(found["name"])}


def conf_file(group: str, name: str, schema: type) -> DictConfig:
    """One file of conf/, with the one that it starts from. Raises UserError for an unknown name."""
    names = sorted(p.stem for p in (CONF / group).glob("*.yaml"))
    if not names:
        raise UserError(f"the folder conf/{group} is missing beside s2flow; install s2flow again")
    if name not in names:
        raise UserError(f"{group}={name} is unknown; type one of {'|'.join(names)}")
    own = OmegaConf.load(CONF / group / f"{name}.yaml")
    bases = [entry for entry in own.pop("defaults", []) if isinstance(entry, str)]
    return OmegaConf.merge(schema, *(conf_file(group, base, schema) for base in bases), own)
