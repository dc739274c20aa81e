"""From a typed config (schema.py) to the recipe, whose hash is the run id.

Only this module and the schema use OmegaConf. `resolve` checks every knob, fills `null` from the
backbone, and returns the frozen `Recipe`. Every error is one line: the value, the reason, what to type
instead.
"""

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

from omegaconf import DictConfig, OmegaConf

from s2flow.errors import UserError
from s2flow.flow import sigma_grid
from s2flow.grid import Box
from s2flow.methods import method
from s2flow.methods.params import typed, usual_t_i, within
from s2flow.policies import NAMES
from s2flow.policies.base import Case, Policy
from s2flow.recipe.identity import Recipe
from s2flow.recipe.limits import check, check_backbone, check_choices, check_knobs
from s2flow.recipe.schema import declared
from s2flow.windows import fraction_of_volume


def resolve(cfg: DictConfig, weights: str, knobs: tuple[str, ...]) -> Recipe:
    """The recipe of a composed config. Raises UserError for invalid values.

    weights: hash of the backbone's weights; knobs: the method's KNOBS.
    """
    backbone = cfg.backbone
    check_backbone(backbone)
    check_choices(cfg)
    module = method(str(cfg.method.name))
    params = typed(module, cfg.method.name, plain(cfg, "method"))
    filled = {
        name: getattr(backbone, name) if cfg[name] is None else cfg[name]
        for name in ("steps", "shift", "frames", "guidance", "negative_prompt")
    }
    if filled["negative_prompt"] is None:
        filled["negative_prompt"] = ""
    low, high, brick_low, brick_high = (
        tuple(backbone[n] if cfg[n] is None else cfg[n])
        for n in ("low", "high", "brick_low", "brick_high")
    )
    sizes = {"low": low, "high": high, "brick_low": brick_low, "brick_high": brick_high}
    check_knobs(cfg, filled, sizes, knobs, lambda: _default_t_i(cfg, filled, knobs))
    t_i = cfg.t_i or usual_t_i(module, cfg.method.get("preset"), filled["steps"])
    t_i = t_i or _default_t_i(cfg, filled, knobs)
    stages = _stages(cfg, filled, low, high, t_i, knobs) if "stages" in knobs else ()
    t_i = stages[0][1] if stages else t_i
    policy = _policy(cfg.windows)
    tokens, tokens_high = (
        (
            (filled["frames"] - 1) // backbone.frame_step + 1,
            size[0] // backbone.multiple,
            size[1] // backbone.multiple,
        )
        for size in (low, high)
    )
    if "windows" in knobs:
        f = fraction_of_volume(cfg.sparsity, cfg.density)
        case = Case(f, tokens, brick_low, tokens_high, brick_high, t_i, cfg.coverage_rows)
        source = {"backbone": backbone.name, "weights": weights, "file": cfg.windows.file}
        policy = policy.check(replace(case, **source, sizes=max(len(stages), 1)))
    copied = {f.name: cfg[f.name] for _, f in declared() if f.name in Recipe.__dataclass_fields__}
    resolved = {
        "backbone": backbone.name,
        "weights": weights,
        "method": cfg.method.name,
        "params": within(params, t_i),
        "low": low,
        "high": high,
        "t_i": t_i,
        "windows": policy,
        "brick_low": brick_low,
        "brick_high": brick_high,
        "dtype": backbone.dtype,
        "vae_tile": _vae_tile(cfg),
        "guidance_2": _guidance_2(cfg, filled["guidance"]),
        "knobs": knobs,
        "stages": stages if len(stages) > 1 else (),
        "rope": cfg.rope if "rope" in knobs else "none",
        "temperature": _temperature(cfg, tokens, tokens_high) if "temperature" in knobs else 1.0,
        "shift_high": _shift_high(cfg, filled, knobs),
    }
    return Recipe(**copied | filled | resolved)


def plain(cfg: DictConfig, group: str) -> dict[str, Any]:
    """A config group as plain dicts and lists, interpolations resolved. Raises UserError for `???`."""
    missing = OmegaConf.missing_keys(cfg)
    for key in sorted(k for k in missing if k.startswith(f"{group}.")):
        raise UserError(f"{key} is not set; type {key}=..., conf/{group}/ explains it")
    return OmegaConf.to_container(cfg[group], resolve=True)


def _default_t_i(cfg: DictConfig, filled: dict[str, Any], knobs: tuple[str, ...]) -> int:
    """HR steps from the level of the HR grid that is nearest to the backbone's hand-off level.

    Deviation: the paper counts steps (30 of 50). On another grid these are another noise level, and
    the noise level decides between doubled and blurred objects (Table 4).
    """
    sigma = sigma_grid(filled["steps"], _shift_high(cfg, filled, knobs) or filled["shift"])
    return max(int((sigma - cfg.backbone.handoff_sigma).abs().argmin()), 1)


def _stages(
    cfg: DictConfig,
    filled: dict[str, Any],
    low: tuple,
    high: tuple,
    t_i: int,
    knobs: tuple[str, ...],
) -> tuple[tuple[tuple[int, int], int], ...]:
    """((height, width), HR steps remaining at its start) of every size above LR; () if unset.

    Sizes are `scales` times `low`, in whole tokens. A level starts at the step nearest to its noise
    level in `switches`; by default the t_i steps are divided evenly.
    """
    scales, switches = cfg.scales, cfg.switches
    if scales is None:
        check(switches is None, "switches needs scales; type scales=[1,1.5,2] with it")
        return ()
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
    m, levels = cfg.backbone.multiple, len(scales) - 1
    sizes = [tuple(round(k * side / m) * m for side in low) for k in scales[1:-1]] + [high]
    if switches is None:
        steps = [round(t_i * (levels - j) / levels) for j in range(levels)]
    else:
        check(
            cfg.t_i is None,
            f"t_i={cfg.t_i} and switches={list(switches)} set the same; leave one out",
        )
        check(
            len(switches) == levels and all(0 < x < 1 for x in switches),
            f"switches={list(switches)} holds no noise level in (0, 1) for each of the {levels} sizes "
            f"above LR; type switches=[{','.join(f'{0.8 * 0.6**j:.2g}' for j in range(levels))}]",
        )
        sigma = sigma_grid(filled["steps"], _shift_high(cfg, filled, knobs) or filled["shift"])
        steps = [max(int((sigma - x).abs().argmin()), 1) for x in switches]
    check(
        all(a > b for a, b in pairwise([*steps, 0])),
        f"the {levels} sizes of scales={list(scales)} would start with {steps} steps left; each needs "
        "fewer than the one before: type more steps, or other switches",
    )
    if cfg.noise == "aligned" and cfg.handoff != "noisy":
        fractional = [k for k in scales[1:] if k != int(k)]
        check(
            not fractional,
            f"noise=aligned needs integer scales, got {fractional}; type noise=fresh",
        )
    return tuple(zip(sizes, steps, strict=True))


def _shift_high(cfg: DictConfig, filled: dict[str, Any], knobs: tuple[str, ...]) -> float | None:
    """Shift of the HR grid if it differs from that of the LR grid, else None."""
    return cfg.shift_high if "shift_high" in knobs and cfg.shift_high != filled["shift"] else None


def _temperature(cfg: DictConfig, low: Box, high: Box) -> float:
    """Factor on HR logits; auto: sqrt(ln L_hr / ln L_lr), to six digits on every machine."""
    if cfg.temperature is None:
        return 1.0
    if cfg.temperature == "auto":
        return round(math.sqrt(math.log(math.prod(high)) / math.log(max(math.prod(low), 2))), 6)
    return float(cfg.temperature)


def _guidance_2(cfg: DictConfig, guidance: float) -> float | None:
    """Guidance of the second expert; None without one, or if guidance = 1 turns both off."""
    given, backbone = cfg.guidance_2, cfg.backbone
    check(
        backbone.boundary is not None or given is None,
        f"guidance_2={given} is for a second expert, and {backbone.name} has one model; "
        "leave guidance_2 out",
    )
    guidance_2 = backbone.guidance_2 if given is None else given
    guidance_2 = guidance if guidance_2 is None else guidance_2
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
    default = cfg.backbone.vae_tile
    tile, m = (
        list((default if cfg.vae_tile is None else cfg.vae_tile) or ()),
        cfg.backbone.multiple,
    )
    if not tile:
        return None
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
    check(
        w.policy in NAMES, f"windows.policy={w.policy} is unknown; type one of {'|'.join(NAMES)}"
    )
    options = Policy(w.policy).module.OPTIONS
    for e in w.exponents:
        check(
            _is_split(e),
            f"windows.exponents holds {e}; each entry is three shares that add up to 1: "
            "type windows.exponents='[[0.5,0.5,0],[1,0,0]]'",
        )
    exponents = [tuple(float(a) for a in e) for e in w.exponents]
    if "exponents" in options:
        check(bool(exponents), "windows.exponents is empty; type windows.exponents='[[1,0,0]]'")
        exponents = [tuple(a / sum(e) for a in e) for e in exponents]
    check(
        0 < w.target <= 1,
        f"windows.target={w.target} is not in (0, 1]; type windows.target=0.95",
    )
    for name, values in (("steps", [w.dense_steps]), ("layers", w.dense_layers)):
        check(
            all(x >= 0 for x in values),
            f"windows.dense_{name} holds the negative number {min(values, default=0)}; "
            "type 0 or more",
        )
    check(0 < w.cap <= 1, f"windows.cap={w.cap} is not in (0, 1]; type windows.cap=0.5")
    return Policy(
        w.policy,
        tuple(exponents) if "exponents" in options else (),
        float(w.target) if "target" in options else 0.0,
        float(w.cap) if "cap" in options else 1.0,
        w.dense_steps,
        tuple(sorted(set(w.dense_layers))),
    )


def _is_split(e: Any) -> bool:
    try:
        shares = [float(a) for a in e]
    except (TypeError, ValueError):
        return False
    return len(shares) == 3 and min(shares) >= 0 and abs(sum(shares) - 1) < 1e-3
