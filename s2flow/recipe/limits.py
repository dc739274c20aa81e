"""Valid values of knobs, alone and together, checked before anything is computed from them.

Each error is one line: the value, the reason, what to type. The values of conf/backbone are knobs, too
(`backbone.multiple=16`), so they are checked before they are used in divisions and powers. Windows,
methods and checkpoints check what only they know.
"""

import math
from collections.abc import Callable
from typing import Any

from omegaconf import DictConfig

from s2flow.errors import UserError
from s2flow.recipe.schema import declared

MAX_STEPS = 10_000  # a flow keeps all its steps in memory
DTYPES = ("float32", "bfloat16", "float16")
COUNT_FIELDS = ("steps", "frames", "fps", "multiple", "frame_step", "max_frames", "max_side")
LEVEL_FIELDS = ("handoff_sigma", "boundary")  # noise levels in (0, 1); boundary may be null
TRIPLES, PAIRS = ("brick_low", "brick_high"), ("low", "high")
MAX_COUNT = 2**31  # larger counts are typing errors


def check_backbone(conf: Any) -> None:
    """Raises UserError for values of conf/backbone that are invalid for any model."""
    for name in COUNT_FIELDS:
        check(
            1 <= conf[name] <= MAX_COUNT,
            f"backbone.{name}={conf[name]} is no count; type backbone.{name}=1 or more",
        )
    for name in LEVEL_FIELDS:
        check(
            conf[name] is None or 0 < conf[name] < 1,
            f"backbone.{name}={conf[name]} is no noise level; type one in (0, 1), backbone.{name}=0.5",
        )
    for name, n in (*((t, 3) for t in TRIPLES), *((p, 2) for p in PAIRS)):
        sides = list(conf[name])
        check(
            len(sides) == n and all(1 <= side <= MAX_COUNT for side in sides),
            f"backbone.{name}={sides} is no size; type {n} whole numbers from 1 on",
        )
    for name in ("shift", "guidance"):
        check(
            math.isfinite(conf[name]),
            f"backbone.{name}={conf[name]} is not finite; type backbone.{name}=5",
        )


def check_knobs(
    cfg: DictConfig,
    filled: dict[str, Any],
    sizes: dict[str, tuple],
    knobs: tuple[str, ...],
    usual_t_i: Callable[[], int],
) -> None:
    """Raises UserError for values that are invalid in any recipe, alone or together.

    filled: steps, shift, frames, guidance and negative prompt, with `null` filled from the backbone;
    sizes: low, high, brick_low, brick_high likewise; knobs: the method's KNOBS.
    """
    check(
        1 <= filled["steps"] <= MAX_STEPS,
        f"steps={filled['steps']} is not in 1..{MAX_STEPS}; type steps=20",
    )
    check(
        0 < filled["shift"] < math.inf,
        f"shift={filled['shift']} is not positive and finite; type shift={cfg.backbone.shift}",
    )
    check(
        math.isfinite(filled["guidance"]),
        f"guidance={filled['guidance']} is not finite; type guidance={cfg.backbone.guidance}",
    )
    check(
        cfg.backbone.negative_prompt is not None or not cfg.negative_prompt,
        f"negative_prompt={cfg.negative_prompt} cannot be used: the guidance of {cfg.backbone.name} "
        "is embedded and takes none; leave negative_prompt out",
    )
    low, high = sizes["low"], sizes["high"]
    _check_sizes(cfg.backbone, low if "low" in knobs else None, high, filled["frames"])
    _check_counts(cfg, filled["steps"], knobs, usual_t_i)
    if cfg.noise == "aligned" and "noise" in knobs and cfg.handoff != "noisy":
        r = high[0] / low[0]
        check(
            r == high[1] / low[1] and r == int(r),
            f"noise=aligned needs one integer scale, got {r:g} x {high[1] / low[1]:g}; "
            "type noise=fresh or make high an integer multiple of low",
        )
    check(
        cfg.lr_time == "sigma" or cfg.order <= 2 or cfg.solver != "lri",
        f"order={cfg.order} cannot be taken at equal SNR, which is known for v' only; "
        "type order=2 or lr_time=sigma",
    )
    other_grid = "shift_high" in knobs and cfg.shift_high not in (None, filled["shift"])
    check(
        not other_grid or cfg.solver != "lri" or cfg.order <= 2 or "order" not in knobs,
        f"order={cfg.order} needs the LR flow at the HR stage's own noise levels, and with "
        f"shift_high={cfg.shift_high} it is interpolated; type order=2 or leave shift_high out",
    )
    temperature = cfg.temperature
    check(
        temperature in (None, "auto") or _is_positive(temperature),
        f"temperature={temperature} is not a positive number; type temperature=auto, or null for none",
    )
    for name in ("brick_low", "brick_high"):
        brick = sizes[name]
        check(
            len(brick) == 3 and min(brick) >= 1,
            f"{name}={list(brick)} is not a brick; type three positive numbers, {name}=[1,2,2]",
        )


def check_declared(cfg: Any) -> None:
    """Raises UserError for a value outside the choices or bounds of its knob (`schema.py`).

    cfg: a config with some or all of the knobs.
    """
    for _, f in declared():
        m, value = f.metadata, cfg.get(f.name)
        if value is None:
            continue
        check(
            not m["choices"] or value in m["choices"],
            f"{f.name}={value} is unknown; type one of {f.name}={'|'.join(m['choices'])}",
        )
        bounded = (
            math.isfinite(m["least"]) or math.isfinite(m["most"]) or math.isfinite(m["above"])
        )
        if bounded:
            check(
                m["least"] <= value <= m["most"] and m["above"] < value < math.inf,
                f"{f.name}={value:g} is not {_bounds(m)}; type {f.name}={m['example']:g}",
            )


def _bounds(m: Any) -> str:
    if math.isfinite(m["above"]):
        return f"above {m['above']:g} and finite"
    if math.isfinite(m["most"]):
        return f"in {m['least']:g}..{m['most']:g}"
    return f"at least {m['least']:g}"


def check_choices(cfg: DictConfig) -> None:
    """Raises UserError for values outside a knob's declaration, and for an empty runs_dir."""
    check(bool(str(cfg.runs_dir).strip()), "runs_dir= is empty; type runs_dir=runs")
    check(
        cfg.backbone.dtype in DTYPES,
        f"backbone.dtype={cfg.backbone.dtype} is unknown; type backbone.dtype={'|'.join(DTYPES)}",
    )
    check_declared(cfg)


def _check_counts(
    cfg: DictConfig, steps: int, knobs: tuple[str, ...], usual_t_i: Callable[[], int]
) -> None:
    s = cfg.sparsity
    hint = f"sparsity={s / 100:g}" if 1 < s <= 100 else "sparsity=0.5"
    check(
        0 < s <= 1, f"sparsity={s:g} is not in (0, 1]: it is the share that is kept; type {hint}"
    )
    check(
        cfg.t_i is None or 1 <= cfg.t_i <= steps,
        f"t_i={cfg.t_i} is not in 1..{steps}: it counts the HR steps that remain of steps={steps}; "
        f"type t_i={usual_t_i()}",
    )
    most = steps if "order" in knobs and cfg.solver == "lri" else math.inf
    check(
        1 <= cfg.order <= most,
        f"order={cfg.order} is not in 1..{steps} (steps); type order={min(2, steps)}",
    )
    _check_ranks(cfg.context_parallel)
    _check_compile(cfg)


def _check_sizes(backbone: Any, low: tuple | None, high: tuple, frames: int) -> None:
    m = backbone.multiple
    sizes = {"high": high} if low is None else {"low": low, "high": high}  # native has no LR flow
    for name, size in sizes.items():
        check(
            len(size) == 2,
            f"{name}={list(size)} is no size; type {name}=[height,width], both multiples of {m}",
        )
        near = [max(round(side / m), 1) * m for side in size]
        check(
            all(side >= m and side % m == 0 for side in size),
            f"{name}=[{size[0]},{size[1]}] cannot be divided by {m} (autoencoder stride x patch); "
            f"type {name}=[{near[0]},{near[1]}]",
        )
        check(
            max(size) <= backbone.max_side,
            f"{name}=[{size[0]},{size[1]}] is larger than {backbone.name} can address; "
            f"keep both sides at most {backbone.max_side}",
        )
    if low is not None:
        check(
            high[0] > low[0] and high[1] > low[1],
            f"high=[{high[0]},{high[1]}] is not larger than low=[{low[0]},{low[1]}]; "
            f"type high=[{2 * low[0]},{2 * low[1]}]",
        )
    step = backbone.frame_step
    check(frames >= 1, f"frames={frames} is not positive; type frames={backbone.frames}")
    near_t = (frames - 1) // step * step + 1
    check(
        (frames - 1) % step == 0,
        f"frames={frames} is not a multiple of {step} plus 1; type frames={near_t}",
    )
    check(
        frames <= backbone.max_frames,
        f"frames={frames} is more than {backbone.name} can address; "
        f"type frames={backbone.max_frames} or fewer",
    )


def _check_ranks(k: Any) -> None:
    check(
        "ring" not in str(k),
        f"context_parallel={k}: a ring passes keys on in pieces, so that no rank has the whole "
        "window of a head; type context_parallel=2, which exchanges heads (Ulysses)",
    )
    check(
        type(k) is int and k >= 1,
        f"context_parallel={k} is no number of processes; type context_parallel=2",
    )


def _check_compile(cfg: DictConfig) -> None:
    """One graph needs a transformer on one device without data-dependent control flow."""
    if not cfg.compile:
        return
    for override, uses_hooks in (
        (f"offload={cfg.offload}", cfg.offload != "none"),
        ("fp8=true", cfg.fp8),
    ):
        check(
            not uses_hooks,
            f"compile=true makes the transformer one graph, and {override} works with hooks that break "
            f"it; leave compile or {override.split('=')[0]} out",
        )
    check(
        cfg.backbone.family != "hunyuan15",
        f"compile=true makes the transformer one graph, and that of {cfg.backbone.name} sorts its "
        "text by masks, which breaks it; leave compile out",
    )


def _is_positive(x: Any) -> bool:
    return isinstance(x, (int, float)) and not isinstance(x, bool) and 0 < x < math.inf


def check(valid: bool, message: str) -> None:
    """Raises UserError with this message if a value is not valid."""
    if not valid:
        raise UserError(message)
