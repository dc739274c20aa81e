"""From a typed config (schema.py) to the recipe, whose hash is the run id.

`resolve` checks every knob, fills `null` from the backbone, and returns the frozen `Recipe`. Every
error is one line: the value, the reason, what to type instead.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

from omegaconf import DictConfig, OmegaConf

from s2flow.backbones.inspect import State
from s2flow.errors import UserError
from s2flow.flow import sigma_grid
from s2flow.grid import Box
from s2flow.methods import method
from s2flow.methods.params import typed, usual_t_i, within
from s2flow.policies import NAMES
from s2flow.policies.base import Case, Policy
from s2flow.recipe.identity import Recipe
from s2flow.recipe.limits import check, check_backbone, check_choices, check_knobs
from s2flow.recipe.schema import KNOBS
from s2flow.windows import fraction_of_volume

OPEN = ("steps", "shift", "frames", "guidance", "negative_prompt")  # null: the backbone's
SIZES = ("low", "high", "brick_low", "brick_high")


def resolve(
    cfg: DictConfig,
    weights: str,
    knobs: tuple[str, ...],
    state: State | None = None,
    given: str | None = None,
) -> Recipe:
    """The recipe of a composed config. Raises UserError for invalid values.

    weights: hash of the backbone's weights; knobs: the method's KNOBS; state: of the pipeline, None
    for the embedded backbone; given: hash of the clip that is refined.
    """
    backbone = cfg.backbone
    check_backbone(backbone)
    check_choices(cfg)
    module = method(str(cfg.method.name))
    params = typed(module, cfg.method.name, plain(cfg, "method"))
    filled = {n: backbone[n] if cfg[n] is None else cfg[n] for n in OPEN}
    filled["negative_prompt"] = filled["negative_prompt"] or ""
    sizes = {n: tuple(backbone[n] if cfg[n] is None else cfg[n]) for n in SIZES}
    other = cfg.shift_high if "shift_high" in knobs and cfg.shift_high != filled["shift"] else None
    steps_from = partial(_steps_from, filled["steps"], other or filled["shift"])
    fits = given is None or "low" in knobs
    check(
        fits, f"method={cfg.method.name} has no LR stage for a clip to replace; type method=s2flow"
    )
    check_knobs(cfg, filled, sizes, knobs, lambda: steps_from(backbone.handoff_sigma))
    t_i = cfg.t_i or usual_t_i(module, cfg.method.get("preset"), filled["steps"])
    t_i = t_i or steps_from(backbone.handoff_sigma)
    stages = _stages(cfg, steps_from, sizes, t_i) if "stages" in knobs else ()
    t_i = stages[0][1] if stages else t_i
    t = (filled["frames"] - 1) // backbone.frame_step + 1
    tokens = [(t, *(s // backbone.multiple for s in sizes[n])) for n in ("low", "high")]
    policy = _policy(cfg.windows)
    if "windows" in knobs:
        grids = (tokens[0], sizes["brick_low"], tokens[1], sizes["brick_high"])
        source = (backbone.name, weights, cfg.windows.file)
        f = fraction_of_volume(cfg.sparsity, cfg.density)
        case = Case(f, *grids, t_i, cfg.coverage_rows, *source, sizes=max(len(stages), 1))
        policy = policy.check(case)
    copied = {f.name: cfg[f.name] for f in KNOBS if f.name in Recipe.__dataclass_fields__}
    resolved = {
        "backbone": backbone.name,
        "weights": weights,
        "method": cfg.method.name,
        **{"params": within(params, t_i), "t_i": t_i},
        "windows": policy,
        "dtype": backbone.dtype,
        "vae_tile": _vae_tile(cfg),
        "input": given,
        "pipeline": (state and state.identity(backbone.dtype)) or None,
        "scheduler": state.scheduler if state and "scheduler" in knobs else None,
        "guidance_2": _guidance_2(cfg, filled["guidance"]),
        "knobs": knobs,
        "stages": stages if len(stages) > 1 else (),
        "rope": cfg.rope if "rope" in knobs else "none",
        "temperature": _temperature(cfg, *tokens) if "temperature" in knobs else 1.0,
        "shift_high": other,
    }
    return Recipe(**copied | filled | sizes | resolved)


def plain(cfg: DictConfig, group: str) -> dict[str, Any]:
    """A config group as plain dicts and lists, interpolations resolved. Raises UserError for `???`."""
    missing = OmegaConf.missing_keys(cfg)
    for key in sorted(k for k in missing if k.startswith(f"{group}.")):
        raise UserError(f"{key} is not set; type {key}=..., conf/{group}/ explains it")
    return OmegaConf.to_container(cfg[group], resolve=True)


def _steps_from(steps: int, shift: float, level: float) -> int:
    """HR steps that remain from the noise level of the HR grid nearest to this one, at least 1.

    Deviation: the paper counts steps (30 of 50). On another grid these are another noise level, and
    the noise level decides between doubled and blurred objects (Table 4).
    """
    return max(int((sigma_grid(steps, shift) - level).abs().argmin()), 1)


def _stages(
    cfg: DictConfig, steps_from: Callable[[float], int], sizes: dict[str, tuple], t_i: int
) -> tuple[tuple[tuple[int, int], int], ...]:
    """((height, width), HR steps remaining at its start) of every size above LR; () if unset.

    Sizes are `scales` times `low`, in whole tokens. A level starts at the step nearest to its noise
    level in `switches`; by default the t_i steps are divided evenly.
    """
    scales, low, high = cfg.scales, sizes["low"], sizes["high"]
    if scales is None:
        check(cfg.switches is None, "switches needs scales; type scales=[1,1.5,2] with it")
        return ()
    _check_scales(scales, low, high)
    m, levels = cfg.backbone.multiple, len(scales) - 1
    grown = [tuple(round(k * side / m) * m for side in low) for k in scales[1:-1]]
    if cfg.switches is None:
        steps = [round(t_i * (levels - j) / levels) for j in range(levels)]
    else:
        _check_switches(cfg, levels)
        steps = [steps_from(level) for level in cfg.switches]
    check(
        all(a > b for a, b in pairwise([*steps, 0])),
        f"the {levels} sizes of scales={list(scales)} would start with {steps} steps left; each needs "
        "fewer than the one before: type more steps, or other switches",
    )
    fractional = [k for k in scales[1:] if k != int(k)]
    check(
        not fractional or cfg.noise != "aligned" or cfg.handoff == "noisy",
        f"noise=aligned needs integer scales, got {fractional}; type noise=fresh",
    )
    return tuple(zip([*grown, high], steps, strict=True))


def _check_scales(scales: Sequence[float], low: tuple, high: tuple) -> None:
    r = high[0] / low[0]
    check(
        len(scales) >= 2 and scales[0] == 1 and all(a < b for a, b in pairwise(scales)),
        f"scales={list(scales)} does not grow from 1; type scales=[1,{(1 + r) / 2:g},{r:g}]",
    )
    check(
        abs(r - high[1] / low[1]) < 1e-3,
        f"high=[{high[0]},{high[1]}] is {r:g} x {high[1] / low[1]:g} times low, and scales needs one "
        "factor for both; type another high, or leave scales out",
    )
    check(
        max(abs(scales[-1] * a - b) for a, b in zip(low, high, strict=True)) < 1e-3 * max(high),
        f"scales={list(scales)} ends at {scales[-1]:g}, and high is {r:g} times low; "
        f"type scales=[1,{(1 + r) / 2:g},{r:g}], or another high",
    )


def _check_switches(cfg: DictConfig, levels: int) -> None:
    switches = cfg.switches
    check(
        cfg.t_i is None,
        f"t_i={cfg.t_i} and switches={list(switches)} set the same; leave one out",
    )
    check(
        len(switches) == levels and all(0 < x < 1 for x in switches),
        f"switches={list(switches)} holds no noise level in (0, 1) for each of the {levels} sizes "
        f"above LR; type switches=[{','.join(f'{0.8 * 0.6**j:.2g}' for j in range(levels))}]",
    )


def _temperature(cfg: DictConfig, low: Box, high: Box) -> float:
    """Factor on HR logits; auto: sqrt(ln L_hr / ln L_lr), to six digits on every machine."""
    if cfg.temperature == "auto":
        return round(math.sqrt(math.log(math.prod(high)) / math.log(max(math.prod(low), 2))), 6)
    return 1.0 if cfg.temperature is None else float(cfg.temperature)


def _guidance_2(cfg: DictConfig, guidance: float) -> float | None:
    """Guidance of the second expert; None without one, or if guidance = 1 turns both off."""
    given, backbone = cfg.guidance_2, cfg.backbone
    check(
        backbone.boundary is not None or given is None,
        f"guidance_2={given} is for a second expert, and {backbone.name} has one model; "
        "leave guidance_2 out",
    )
    values = (given, backbone.guidance_2, guidance)
    guidance_2 = next(x for x in values if x is not None)
    check(
        math.isfinite(guidance_2),
        f"guidance_2={guidance_2} is not finite; type guidance_2={backbone.guidance_2}",
    )
    check(
        guidance != 1 or given in (None, 1),
        f"guidance_2={given} has no effect with guidance=1, which turns guidance off for both "
        "experts; type guidance_2=1, or another guidance",
    )
    return None if backbone.boundary is None or guidance == 1 else guidance_2


def _vae_tile(cfg: DictConfig) -> tuple[int, int] | None:
    """(side, stride) of the autoencoder's tiles; None for whole frames."""
    tile = cfg.backbone.vae_tile if cfg.vae_tile is None else cfg.vae_tile
    if not tile:
        return None
    tile, m = list(tile), cfg.backbone.multiple
    check(
        cfg.backbone.family != "tiny",
        f"vae_tile={tile}: the autoencoder of backbone={cfg.backbone.name} is small and has no "
        "tiles; leave vae_tile out",
    )
    check(
        len(tile) == 2 and 0 < tile[1] <= tile[0] and tile[0] % m == tile[1] % m == 0,
        f"vae_tile={tile} is not [side,stride] in pixels, multiples of {m} with stride at most side; "
        "type vae_tile=[512,448], or vae_tile=[] for whole frames",
    )
    return tuple(tile)


def _policy(w: Any) -> Policy:
    """The policy of a `windows` group, with values only of the options that it reads."""
    check(
        w.policy in NAMES, f"windows.policy={w.policy} is unknown; type one of {'|'.join(NAMES)}"
    )
    options = Policy(w.policy).module.OPTIONS
    exponents = [_split(e) for e in w.exponents]
    check(
        bool(exponents) or "exponents" not in options,
        "windows.exponents is empty; type windows.exponents='[[1,0,0]]'",
    )
    for name, example in (("target", 0.95), ("cap", 0.5)):
        check(
            0 < w[name] <= 1,
            f"windows.{name}={w[name]} is not in (0, 1]; type windows.{name}={example}",
        )
    for name, values in (("steps", [w.dense_steps]), ("layers", w.dense_layers)):
        check(
            all(x >= 0 for x in values),
            f"windows.dense_{name} holds the negative number {min(values, default=0)}; "
            "type 0 or more",
        )
    return Policy(
        w.policy,
        tuple(exponents) if "exponents" in options else (),
        float(w.target) if "target" in options else 0.0,
        float(w.cap) if "cap" in options else 1.0,
        w.dense_steps,
        tuple(sorted(set(w.dense_layers))),
    )


def _split(e: Any) -> tuple[float, ...]:
    """Three shares of a window's volume, which add up to 1 but for rounding."""
    try:
        shares = [float(a) for a in e]
    except (TypeError, ValueError):
        shares = []
    check(
        len(shares) == 3 and min(shares) >= 0 and abs(sum(shares) - 1) < 1e-3,
        f"windows.exponents holds {e}; each entry is three shares that add up to 1: "
        "type windows.exponents='[[0.5,0.5,0],[1,0,0]]'",
    )
    return tuple(a / sum(shares) for a in shares)
