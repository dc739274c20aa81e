"""What knobs may be, alone and together, before anything is worked out from them.

Each error is one line: what was typed, why not, what to type. A file of conf/backbone is knobs like any
other (`backbone.multiple=16`), and these are divided by, counted with and raised to powers. What only
the windows, a method or a checkpoint can tell is refused there.
"""

import math
from collections.abc import Callable
from typing import Any

from omegaconf import DictConfig

from s2flow.errors import UserError
from s2flow.recipe.schema import declared

LONGEST = 10_000  # steps of a flow, which is kept whole
DTYPES = ("float32", "bfloat16", "float16")
COUNTS = ("steps", "frames", "fps", "multiple", "frame_step", "max_frames", "max_side")
LEVELS = ("handoff_sigma", "boundary")  # of noise, in (0, 1); a boundary may be null
TRIPLES, PAIRS = ("brick_low", "brick_high"), ("low", "high")
MOST = 2**31  # larger counts are typing errors, and no size of anything here


def check_backbone(conf: Any) -> None:
    """Raises UserError for a number that no model can have."""
    for name in COUNTS:
        check(
            1 <= conf[name] <= MOST,
            f"backbone.{name}={conf[name]} is no count; type backbone.{name}=1 or more",
        )
    for name in LEVELS:
        check(
            conf[name] is None or 0 < conf[name] < 1,
            f"backbone.{name}={conf[name]} is no noise level; type one in (0, 1), backbone.{name}=0.5",
        )
    for name, n in (*((t, 3) for t in TRIPLES), *((p, 2) for p in PAIRS)):
        sides = list(conf[name])
        check(
            len(sides) == n and all(1 <= side <= MOST for side in sides),
            f"backbone.{name}={sides} is no size; type {n} whole numbers from 1 on",
        )
    for name in ("shift", "guidance"):
        check(
            math.isfinite(conf[name]),
            f"backbone.{name}={conf[name]} is not finite; type backbone.{name}=5",
        )


def check_knobs(
    cfg: DictConfig,
    given: dict[str, Any],
    sizes: dict[str, tuple],
    knobs: tuple[str, ...],
    usual_t_i: Callable[[], int],
) -> None:
    """Raises UserError for values that no recipe can have, alone or together.

    given: steps, shift, frames, guidance and negative prompt, filled from the backbone where they were
    left open; sizes: low, high, brick_low, brick_high likewise; knobs: the method's KNOBS.
    """
    check(
        1 <= given["steps"] <= LONGEST,
        f"steps={given['steps']} is not in 1..{LONGEST}; type steps=20",
    )
    check(
        0 < given["shift"] < math.inf,
        f"shift={given['shift']} is not positive and finite; type shift={cfg.backbone.shift}",
    )
    check(
        math.isfinite(given["guidance"]),
        f"guidance={given['guidance']} is not finite; type guidance={cfg.backbone.guidance}",
    )
    check(
        cfg.backbone.negative_prompt is not None or not cfg.negative_prompt,
        f"negative_prompt={cfg.negative_prompt} cannot be used: the guidance of {cfg.backbone.name} "
        "is embedded and takes none; leave negative_prompt out",
    )
    low, high = sizes["low"], sizes["high"]
    _check_sizes(cfg.backbone, low if "low" in knobs else None, high, given["frames"])
    _check_counts(cfg, given["steps"], knobs, usual_t_i)
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
    other_grid = "shift_high" in knobs and cfg.shift_high not in (None, given["shift"])
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
    """Raises UserError for a word or number outside of what its knob declares (`schema.py`).

    cfg: a config that has some or all of the knobs.
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
    """Raises UserError for what a knob does not declare, and for a store without a name."""
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
        f"context_parallel={k}: a ring hands keys on in pieces, so that no rank ever has the whole "
        "window of a head; type context_parallel=2, which exchanges heads (Ulysses)",
    )
    check(
        type(k) is int and k >= 1,
        f"context_parallel={k} is no number of processes; type context_parallel=2",
    )


def _check_compile(cfg: DictConfig) -> None:
    """One graph needs a transformer that stays in one place and never looks at its data."""
    if not cfg.compile:
        return
    for word, hooked in ((f"offload={cfg.offload}", cfg.offload != "none"), ("fp8=true", cfg.fp8)):
        check(
            not hooked,
            f"compile=true makes the transformer one graph, and {word} works with hooks that break "
            f"it; leave compile or {word.split('=')[0]} out",
        )
    check(
        cfg.backbone.family != "hunyuan15",
        f"compile=true makes the transformer one graph, and that of {cfg.backbone.name} sorts its "
        "text by masks, which breaks it; leave compile out",
    )


def _is_positive(x: Any) -> bool:
    return isinstance(x, (int, float)) and not isinstance(x, bool) and 0 < x < math.inf


def check(good: bool, otherwise: str) -> None:
    """Raises UserError with this line unless all is well."""
    if not good:
        raise UserError(otherwise)
