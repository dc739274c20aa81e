"""Typed configuration: what was typed (schema.py), what it resolves to, and which run it names.

With the schema the only module that knows OmegaConf. `resolve` checks every knob, fills what was
left open (`null`) from the backbone, and returns the frozen `Recipe` whose hash is the run id. Every
error is one line: what was typed, why not, what to type instead.
"""

import math
from itertools import pairwise
from typing import Any

from omegaconf import DictConfig, OmegaConf

import s2flow.schema  # noqa: F401  (registered wherever configs are composed)
from s2flow.attention import BACKENDS
from s2flow.errors import UserError
from s2flow.flow import sigma_grid
from s2flow.limits import check_backbone, check_threads
from s2flow.methods import method
from s2flow.params import typed, usual_t_i, within
from s2flow.plan import BY_CANDIDATES, Policy, candidates_of
from s2flow.policies import moba, sta, svg
from s2flow.recipe import BY_VOLUME, Recipe
from s2flow.windows import Box, brick_grid, candidates, fraction_of_volume, realised_density

LONGEST = 10_000  # steps of a flow, which is kept whole
DTYPES = ("float32", "bfloat16", "float16")
CHOICES = {
    "density": ("volume", "per_axis"),
    "solver": ("lri", "euler", "ab2", "ab3", "lri_cv", "unipc", "heun"),
    "handoff": ("x0", "latent", "noisy"),
    "noise": ("fresh", "aligned"),
    "rope": ("none", "interpolate", "ntk"),
    "stencil": ("grid", "central"),
    "lr_time": ("sigma", "snr"),
    "upsample": ("bilinear", "nearest", "bicubic"),
    "attention": ("auto", *BACKENDS),
    "offload": ("none", "model", "group"),
    "cache": ("cached", "retry", "force", "read-only"),
}


def resolve(cfg: DictConfig, weights: str, knobs: tuple[str, ...]) -> Recipe:
    """The recipe of a composed config. Raises UserError for any value that cannot work.

    weights: hash of the backbone's weights; knobs: the method's KNOBS.
    """
    backbone = cfg.backbone
    check_backbone(backbone)
    _check_choices(cfg)
    module = method(str(cfg.method.name))
    params = typed(module, cfg.method.name, plain(cfg, "method"))
    given = {
        name: getattr(backbone, name) if cfg[name] is None else cfg[name]
        for name in ("steps", "shift", "frames", "guidance", "negative_prompt")
    }
    if given["negative_prompt"] is None:
        given["negative_prompt"] = ""
    low, high, brick_low, brick_high = (
        tuple(backbone[n] if cfg[n] is None else cfg[n])
        for n in ("low", "high", "brick_low", "brick_high")
    )
    sizes = {"low": low, "high": high, "brick_low": brick_low, "brick_high": brick_high}
    _check_all(cfg, given, sizes, knobs)
    t_i = cfg.t_i or usual_t_i(module, cfg.method.get("preset"), given["steps"])
    t_i = t_i or _usual_t_i(cfg, given, knobs)
    stages = _stages(cfg, given, low, high, t_i, knobs) if "stages" in knobs else ()
    t_i = stages[0][1] if stages else t_i
    policy = _policy(cfg.windows)
    tokens, tokens_high = (
        (
            (given["frames"] - 1) // backbone.frame_step + 1,
            size[0] // backbone.multiple,
            size[1] // backbone.multiple,
        )
        for size in (low, high)
    )
    if "windows" in knobs and policy.name == "coverage":
        bricks = math.prod(brick_grid(tokens, brick_low))
        _check(
            policy.cap * bricks >= 1 - 1e-9,
            f"windows.cap={policy.cap:g} is less than one of the {bricks} bricks, which every query "
            f"keeps; type windows.cap={1 / bricks:.4g} or more",
        )
    if "windows" in knobs and policy.name in BY_VOLUME and cfg.sparsity < 1:
        f = fraction_of_volume(cfg.sparsity, cfg.density)
        grid, grid_high = brick_grid(tokens, brick_low), brick_grid(tokens_high, brick_high)
        if policy.name in BY_CANDIDATES:
            candidates(f, policy.exponents, grid)
            _check_density(policy, f, grid, tokens_high, brick_high)
        if policy.name == "svg":
            svg.check(policy.exponents, f, grid)
        if policy.name == "moba":
            moba.check(f, grid_high)
        if policy.name == "sta":
            policy = sta.with_file(policy, cfg.windows.file)
            sta.check(policy, cfg.windows.file, backbone.name, weights, tokens_high, brick_high, f)
    return Recipe(
        backbone=backbone.name,
        weights=weights,
        method=cfg.method.name,
        params=within(params, t_i),
        low=low,
        high=high,
        t_i=t_i,
        windows=policy,
        brick_low=brick_low,
        brick_high=brick_high,
        dtype=backbone.dtype,
        fp8=cfg.fp8,
        vae_tile=_vae_tile(cfg),
        guidance_2=_guidance_2(cfg, given["guidance"]),
        knobs=knobs,
        adain=cfg.adain,
        stages=stages if len(stages) > 1 else (),
        rope=cfg.rope if "rope" in knobs else "none",
        temperature=_temperature(cfg, tokens, tokens_high) if "temperature" in knobs else 1.0,
        shift_high=_shift_high(cfg, given, knobs),
        **given,
        **{
            name: cfg[name]
            for name in (
                *("handoff", "noise", "sparsity", "density", "coverage_rows", "attention"),
                *("solver", "order", "stencil", "lr_time", "upsample"),
            )
        },
    )


def plain(cfg: DictConfig, group: str) -> dict[str, Any]:
    """A group as plain dicts and lists, interpolations resolved. Raises UserError for a `???`."""
    missing = OmegaConf.missing_keys(cfg)
    for key in sorted(k for k in missing if k.startswith(f"{group}.")):
        raise UserError(f"{key} is not set; type {key}=..., conf/{group}/ explains it")
    return OmegaConf.to_container(cfg[group], resolve=True)


def _check(good: bool, otherwise: str) -> None:
    if not good:
        raise UserError(otherwise)


def _usual_t_i(cfg: DictConfig, given: dict[str, Any], knobs: tuple[str, ...]) -> int:
    """HR steps from the HR grid's level that is nearest to the backbone's hand-off.

    Deviation: the paper counts steps (30 of 50), which on another grid is another noise level, and
    that is what decides between doubled and blurred objects (Table 4).
    """
    sigma = sigma_grid(given["steps"], _shift_high(cfg, given, knobs) or given["shift"])
    return max(int((sigma - cfg.backbone.handoff_sigma).abs().argmin()), 1)


def _check_density(policy: Policy, f: float, grid: Box, tokens: Box, brick: Box) -> None:
    """Refuse HR bricks so coarse that every candidate there keeps another share than was asked for."""
    boxes = candidates_of(policy, f, grid, tokens, brick)
    reached = [realised_density(tokens, brick, box) for box in boxes]
    nearest = min(reached, key=lambda x: abs(math.log(x / f)))
    _check(
        abs(math.log(nearest / f)) < math.log(1.25),
        f"brick_high={list(brick)} cannot keep f = {f:.4g} of the {'x'.join(map(str, tokens))} tokens; "
        f"the nearest that it reaches is {nearest:.4g}: type smaller bricks, or another sparsity",
    )


def _stages(
    cfg: DictConfig,
    given: dict[str, Any],
    low: tuple,
    high: tuple,
    t_i: int,
    knobs: tuple[str, ...],
) -> tuple[tuple[tuple[int, int], int], ...]:
    """((height, width), HR steps that remain when it starts) of every size above LR; () if unset.

    Sizes are `scales` times `low`, in whole tokens. A level starts at the step nearest to its noise
    level in `switches`; by default the t_i steps are dealt evenly.
    """
    scales, switches = cfg.scales, cfg.switches
    if scales is None:
        _check(switches is None, "switches is of several scales; type scales=[1,1.5,2] beside it")
        return ()
    r = high[0] / low[0]
    _check(
        len(scales) >= 2 and scales[0] == 1 and all(a < b for a, b in pairwise(scales)),
        f"scales={list(scales)} does not grow from 1; type scales=[1,{(1 + r) / 2:g},{r:g}]",
    )
    _check(
        abs(r - high[1] / low[1]) < 1e-3,
        f"high=[{high[0]},{high[1]}] is {r:g} x {high[1] / low[1]:g} times low, and scales needs one "
        "factor for both; type another high, or leave scales out",
    )
    _check(
        max(abs(scales[-1] * a - b) for a, b in zip(low, high, strict=True)) < 1e-3 * max(high),
        f"scales={list(scales)} ends at {scales[-1]:g}, and high is {r:g} times low; "
        f"type scales=[1,{(1 + r) / 2:g},{r:g}], or another high",
    )
    m, levels = cfg.backbone.multiple, len(scales) - 1
    sizes = [tuple(round(k * side / m) * m for side in low) for k in scales[1:-1]] + [high]
    if switches is None:
        steps = [round(t_i * (levels - j) / levels) for j in range(levels)]
    else:
        _check(
            cfg.t_i is None, f"t_i={cfg.t_i} and switches={list(switches)} say the same; drop one"
        )
        _check(
            len(switches) == levels and all(0 < x < 1 for x in switches),
            f"switches={list(switches)} holds no noise level in (0, 1) for each of the {levels} sizes "
            f"above LR; type switches=[{','.join(f'{0.8 * 0.6**j:.2g}' for j in range(levels))}]",
        )
        sigma = sigma_grid(given["steps"], _shift_high(cfg, given, knobs) or given["shift"])
        steps = [max(int((sigma - x).abs().argmin()), 1) for x in switches]
    _check(
        all(a > b for a, b in pairwise([*steps, 0])),
        f"the {levels} sizes of scales={list(scales)} would start with {steps} steps left; each needs "
        "fewer than the one before: type more steps, or other switches",
    )
    _check(
        levels == 1 or cfg.windows.policy != "sta" or "windows" not in knobs,
        "windows=sta was calibrated for one HR size; leave scales out, or type windows=adaptive",
    )
    if cfg.noise == "aligned" and cfg.handoff != "noisy":
        odd = [k for k in scales[1:] if k != int(k)]
        _check(not odd, f"noise=aligned needs integer scales, got {odd}; type noise=fresh")
    return tuple(zip(sizes, steps, strict=True))


def _shift_high(cfg: DictConfig, given: dict[str, Any], knobs: tuple[str, ...]) -> float | None:
    """Shift of the HR grid where it is another; None: that of the LR grid."""
    return cfg.shift_high if "shift_high" in knobs and cfg.shift_high != given["shift"] else None


def _temperature(cfg: DictConfig, low: Box, high: Box) -> float:
    """Factor on HR logits; auto: sqrt(ln L_hr / ln L_lr), to six digits on every machine."""
    if cfg.temperature is None:
        return 1.0
    if cfg.temperature == "auto":
        return round(math.sqrt(math.log(math.prod(high)) / math.log(max(math.prod(low), 2))), 6)
    return float(cfg.temperature)


def _guidance_2(cfg: DictConfig, guidance: float) -> float | None:
    """Guidance of the second expert; None where there is none, or where guidance = 1 turns both off."""
    typed, backbone = cfg.guidance_2, cfg.backbone
    _check(
        backbone.boundary is not None or typed is None,
        f"guidance_2={typed} is of a second expert, and {backbone.name} has one model; "
        "leave guidance_2 out",
    )
    found = backbone.guidance_2 if typed is None else typed
    found = guidance if found is None else found
    _check(
        math.isfinite(found),
        f"guidance_2={found} is not finite; type guidance_2={backbone.guidance_2}",
    )
    _check(
        guidance != 1 or typed in (None, 1),
        f"guidance_2={typed} has no effect beside guidance=1, which turns guidance off for both "
        "experts; type guidance_2=1, or another guidance",
    )
    return None if backbone.boundary is None or guidance == 1 else found


def _check_all(
    cfg: DictConfig, given: dict[str, Any], sizes: dict[str, tuple], knobs: tuple
) -> None:
    _check(
        1 <= given["steps"] <= LONGEST,
        f"steps={given['steps']} is not in 1..{LONGEST}; type steps=20",
    )
    _check(
        0 < given["shift"] < math.inf,
        f"shift={given['shift']} is not positive and finite; type shift={cfg.backbone.shift}",
    )
    _check(
        cfg.shift_high is None or 0 < cfg.shift_high < math.inf,
        f"shift_high={cfg.shift_high} is not positive and finite; type shift_high={given['shift']}",
    )
    _check(
        math.isfinite(given["guidance"]),
        f"guidance={given['guidance']} is not finite; type guidance={cfg.backbone.guidance}",
    )
    _check(
        cfg.backbone.negative_prompt is not None or not cfg.negative_prompt,
        f"negative_prompt={cfg.negative_prompt} cannot be used: the guidance of {cfg.backbone.name} "
        "is embedded and takes none; leave negative_prompt out",
    )
    low, high = sizes["low"], sizes["high"]
    _check_sizes(cfg.backbone, low if "low" in knobs else None, high, given["frames"])
    _check_knobs(cfg, given, knobs)
    if cfg.noise == "aligned" and "noise" in knobs and cfg.handoff != "noisy":
        r = high[0] / low[0]
        _check(
            r == high[1] / low[1] and r == int(r),
            f"noise=aligned needs one integer scale, got {r:g} x {high[1] / low[1]:g}; "
            "type noise=fresh or make high an integer multiple of low",
        )
    _check(
        cfg.lr_time == "sigma" or cfg.order <= 2 or cfg.solver != "lri",
        f"order={cfg.order} cannot be taken at equal SNR, which is known for v' only; "
        "type order=2 or lr_time=sigma",
    )
    _check(
        _shift_high(cfg, given, knobs) is None
        or cfg.solver != "lri"
        or cfg.order <= 2
        or "order" not in knobs,
        f"order={cfg.order} needs the LR flow at the HR stage's own noise levels, and with "
        f"shift_high={cfg.shift_high} it is interpolated; type order=2 or leave shift_high out",
    )
    temperature = cfg.temperature
    _check(
        temperature in (None, "auto") or _is_positive(temperature),
        f"temperature={temperature} is not a positive number; type temperature=auto, or null for none",
    )
    for name in ("brick_low", "brick_high"):
        brick = sizes[name]
        _check(
            len(brick) == 3 and min(brick) >= 1,
            f"{name}={list(brick)} is not a brick; type three positive numbers, {name}=[1,2,2]",
        )


def _check_choices(cfg: DictConfig) -> None:
    _check(
        cfg.backbone.dtype in DTYPES,
        f"backbone.dtype={cfg.backbone.dtype} is unknown; type backbone.dtype={'|'.join(DTYPES)}",
    )
    for name, choices in CHOICES.items():
        _check(
            cfg[name] in choices,
            f"{name}={cfg[name]} is unknown; type one of {name}={'|'.join(choices)}",
        )


def _check_compile(cfg: DictConfig) -> None:
    """One graph needs a transformer that stays in one place and never looks at its data."""
    if not cfg.compile:
        return
    for word, hooked in ((f"offload={cfg.offload}", cfg.offload != "none"), ("fp8=true", cfg.fp8)):
        _check(
            not hooked,
            f"compile=true makes the transformer one graph, and {word} works with hooks that break "
            f"it; leave compile or {word.split('=')[0]} out",
        )
    _check(
        cfg.backbone.family != "hunyuan15",
        f"compile=true makes the transformer one graph, and that of {cfg.backbone.name} sorts its "
        "text by masks, which breaks it; leave compile out",
    )


def _check_knobs(cfg: DictConfig, given: dict[str, Any], knobs: tuple[str, ...]) -> None:
    s, steps = cfg.sparsity, given["steps"]
    hint = f"sparsity={s / 100:g}" if 1 < s <= 100 else "sparsity=0.5"
    _check(
        0 < s <= 1, f"sparsity={s:g} is not in (0, 1]: it is the share that is kept; type {hint}"
    )
    _check(
        cfg.t_i is None or 1 <= cfg.t_i <= steps,
        f"t_i={cfg.t_i} is not in 1..{steps}: it counts the HR steps that remain of steps={steps}; "
        f"type t_i={_usual_t_i(cfg, given, knobs)}",
    )
    most = steps if "order" in knobs and cfg.solver == "lri" else math.inf
    _check(
        1 <= cfg.order <= most,
        f"order={cfg.order} is not in 1..{steps} (steps); type order={min(2, steps)}",
    )
    _check_ranks(cfg.context_parallel)
    _check_compile(cfg)
    _check(
        0 <= cfg.lr_cache_gib < 1e6,
        f"lr_cache_gib={cfg.lr_cache_gib:g} is no size; type lr_cache_gib=10, or 0 to keep none",
    )
    _check(cfg.batch >= 1, f"batch={cfg.batch} is not positive; type batch=1")
    check_threads(cfg.threads)
    _check(
        cfg.coverage_rows >= 1,
        f"coverage_rows={cfg.coverage_rows} is too few; type coverage_rows=128",
    )


def _check_ranks(k: Any) -> None:
    _check(
        "ring" not in str(k),
        f"context_parallel={k}: a ring hands keys on in pieces, so that no rank ever has the whole "
        "window of a head; type context_parallel=2, which exchanges heads (Ulysses)",
    )
    _check(
        type(k) is int and k >= 1,
        f"context_parallel={k} is no number of processes; type context_parallel=2",
    )


def _check_sizes(backbone: Any, low: tuple | None, high: tuple, frames: int) -> None:
    m = backbone.multiple
    sizes = {"high": high} if low is None else {"low": low, "high": high}  # native has no LR flow
    for name, size in sizes.items():
        _check(
            len(size) == 2,
            f"{name}={list(size)} is no size; type {name}=[height,width], both multiples of {m}",
        )
        near = [max(round(side / m), 1) * m for side in size]
        _check(
            all(side >= m and side % m == 0 for side in size),
            f"{name}=[{size[0]},{size[1]}] cannot be divided by {m} (autoencoder stride x patch); "
            f"type {name}=[{near[0]},{near[1]}]",
        )
        _check(
            max(size) <= backbone.max_side,
            f"{name}=[{size[0]},{size[1]}] is larger than {backbone.name} can address; "
            f"keep both sides at most {backbone.max_side}",
        )
    if low is not None:
        _check(
            high[0] > low[0] and high[1] > low[1],
            f"high=[{high[0]},{high[1]}] is not larger than low=[{low[0]},{low[1]}]; "
            f"type high=[{2 * low[0]},{2 * low[1]}]",
        )
    step = backbone.frame_step
    _check(frames >= 1, f"frames={frames} is not positive; type frames={backbone.frames}")
    near_t = (frames - 1) // step * step + 1
    _check(
        (frames - 1) % step == 0,
        f"frames={frames} is not a multiple of {step} plus 1; type frames={near_t}",
    )
    _check(
        frames <= backbone.max_frames,
        f"frames={frames} is more than {backbone.name} can address; "
        f"type frames={backbone.max_frames} or fewer",
    )


def _vae_tile(cfg: DictConfig) -> tuple[int, int] | None:
    """(side, stride) of the autoencoder's tiles; None for whole frames."""
    own = cfg.backbone.vae_tile
    tile, m = list((own if cfg.vae_tile is None else cfg.vae_tile) or ()), cfg.backbone.multiple
    if not tile:
        return None
    _check(
        cfg.backbone.family != "tiny",
        f"vae_tile={tile}: the autoencoder of backbone={cfg.backbone.name} is small and has no "
        "tiles; leave vae_tile out",
    )
    _check(
        len(tile) == 2 and 0 < tile[1] <= tile[0] and tile[0] % m == tile[1] % m == 0,
        f"vae_tile={tile} is not [side,stride] in pixels, multiples of {m} with stride at most side; "
        "type vae_tile=[512,448], or vae_tile=[] for whole frames",
    )
    return tuple(tile)


def _policy(w: Any) -> Policy:
    names = (*BY_VOLUME, "coverage", "full", "inward")
    _check(
        w.policy in names, f"windows.policy={w.policy} is unknown; type one of {'|'.join(names)}"
    )
    for e in w.exponents:
        _check(
            _is_split(e),
            f"windows.exponents holds {e}; each entry is three shares that add up to 1: "
            "type windows.exponents='[[0.5,0.5,0],[1,0,0]]'",
        )
    exponents = [tuple(float(a) for a in e) for e in w.exponents]
    if w.policy in BY_CANDIDATES:
        _check(bool(exponents), "windows.exponents is empty; type windows.exponents='[[1,0,0]]'")
        exponents = [tuple(a / sum(e) for a in e) for e in exponents]
    if w.policy == "fixed":
        exponents = exponents[:1]  # the only one that it reads
    _check(
        0 < w.target <= 1,
        f"windows.target={w.target} is not in (0, 1]; type windows.target=0.95",
    )
    for name, values in (("steps", [w.dense_steps]), ("layers", w.dense_layers)):
        _check(
            all(x >= 0 for x in values),
            f"windows.dense_{name} holds the negative number {min(values, default=0)}; "
            "type 0 or more",
        )
    _check(0 < w.cap <= 1, f"windows.cap={w.cap} is not in (0, 1]; type windows.cap=0.5")
    return Policy(
        w.policy,
        tuple(exponents) if w.policy in BY_CANDIDATES else (),
        float(w.target) if w.policy == "coverage" else 0.0,
        float(w.cap) if w.policy == "coverage" else 1.0,
        w.dense_steps,
        tuple(sorted(set(w.dense_layers))),
    )


def _is_positive(x: Any) -> bool:
    return isinstance(x, (int, float)) and not isinstance(x, bool) and 0 < x < math.inf


def _is_split(e: Any) -> bool:
    try:
        shares = [float(a) for a in e]
    except (TypeError, ValueError):
        return False
    return len(shares) == 3 and min(shares) >= 0 and abs(sum(shares) - 1) < 1e-3
