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
from s2flow.recipe.schema import KNOBS, MAX_STEPS

DTYPES = ("float32", "bfloat16", "float16")
COUNT_FIELDS = ("steps", "frames", "fps", "multiple", "frame_step", "max_frames", "max_side")
LEVEL_FIELDS = ("handoff_sigma", "boundary")  # noise levels in (0, 1); boundary may be null
SIDES = {"brick_low": 3, "brick_high": 3, "low": 2, "high": 2}
MAX_COUNT = 2**31  # larger counts are typing errors


def check(valid: bool, message: str) -> None:
    """Raises UserError with this message if a value is not valid."""
    if not valid:
        raise UserError(message)


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
    for name, n in SIDES.items():
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


def check_choices(cfg: DictConfig) -> None:
    """Raises UserError for values outside a knob's declaration, and for an empty runs_dir."""
    check(bool(str(cfg.runs_dir).strip()), "runs_dir= is empty; type runs_dir=runs")
    check(
        cfg.backbone.dtype in DTYPES,
        f"backbone.dtype={cfg.backbone.dtype} is unknown; type backbone.dtype={'|'.join(DTYPES)}",
    )
    check(
        cfg.plan in (True, False, "json"),
        f"plan={cfg.plan} is unknown; type plan=true for a table, or plan=json",
    )
    check_declared(cfg)


def check_declared(cfg: Any) -> None:
    """Raises UserError for a value outside the choices or bounds of its knob (`schema.py`).

    cfg: a config with some or all of the knobs.
    """
    for f in KNOBS:
        m, value = f.metadata, cfg.get(f.name)
        least, most, above = m["least"], m["most"], m["above"]
        if value is None:
            continue
        check(
            not m["choices"] or value in m["choices"],
            f"{f.name}={value} is unknown; type one of {f.name}={'|'.join(m['choices'])}",
        )
        if math.isfinite(above) and math.isfinite(most):
            bounds = f"in ({above:g}, {most:g}]"
        elif math.isfinite(above):
            bounds = f"above {above:g} and finite"
        elif math.isfinite(most):
            bounds = f"in {least:g}..{most:g}"
        elif math.isfinite(least):
            bounds = f"at least {least:g}"
        else:
            continue
        share, example = (above, most) == (0, 1), f"{m['example']:g}"
        if share and 2 <= value <= 100:
            example = f"{value / 100:g} ({value:g} %)"
        check(
            least <= value <= most and above < value < math.inf,
            f"{f.name}={value:g} is not {bounds}{': it is the share that is kept' * share}; "
            f"type {f.name}={example}",
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
    steps, shift, guidance = filled["steps"], filled["shift"], filled["guidance"]
    check(1 <= steps <= MAX_STEPS, f"steps={steps} is not in 1..{MAX_STEPS}; type steps=20")
    check(
        0 < shift < math.inf,
        f"shift={shift} is not positive and finite; type shift={cfg.backbone.shift}",
    )
    check(
        math.isfinite(guidance),
        f"guidance={guidance} is not finite; type guidance={cfg.backbone.guidance}",
    )
    check(
        cfg.backbone.negative_prompt is not None or not cfg.negative_prompt,
        f"negative_prompt={cfg.negative_prompt} cannot be used: the guidance of {cfg.backbone.name} "
        "is embedded and takes none; leave negative_prompt out",
    )
    _check_sizes(cfg.backbone, sizes, "low" in knobs)  # native has no LR flow
    _check_frames(cfg.backbone, filled["frames"])
    _check_flow(cfg, steps, usual_t_i)
    _check_order(cfg, steps, shift, knobs)
    _check_ranks(cfg)
    if cfg.noise == "aligned" and "noise" in knobs and cfg.handoff != "noisy":
        r, other = (b / a for a, b in zip(sizes["low"], sizes["high"], strict=True))
        check(
            r == other and r == int(r),
            f"noise=aligned needs one integer scale, got {r:g} x {other:g}; "
            "type noise=fresh or make high an integer multiple of low",
        )
    temperature = cfg.temperature
    number = isinstance(temperature, (int, float)) and not isinstance(temperature, bool)
    check(
        temperature in (None, "auto") or number and 0 < temperature < math.inf,
        f"temperature={temperature} is not a positive number; type temperature=auto, or null for none",
    )
    for name in ("brick_low", "brick_high"):
        check(
            len(sizes[name]) == 3 and min(sizes[name]) >= 1,
            f"{name}={list(sizes[name])} is not a brick; type three positive numbers, {name}=[1,2,2]",
        )


def _check_sizes(backbone: Any, sizes: dict[str, tuple], has_low: bool) -> None:
    m = backbone.multiple
    for name in ("low", "high") if has_low else ("high",):
        size = sizes[name]
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
    if has_low:
        low, high = sizes["low"], sizes["high"]
        check(
            high[0] > low[0] and high[1] > low[1],
            f"high=[{high[0]},{high[1]}] is not larger than low=[{low[0]},{low[1]}]; "
            f"type high=[{2 * low[0]},{2 * low[1]}]",
        )


def _check_frames(backbone: Any, frames: int) -> None:
    step = backbone.frame_step
    check(frames >= 1, f"frames={frames} is not positive; type frames={backbone.frames}")
    check(
        (frames - 1) % step == 0,
        f"frames={frames} is not a multiple of {step} plus 1; "
        f"type frames={(frames - 1) // step * step + 1}",
    )
    check(
        frames <= backbone.max_frames,
        f"frames={frames} is more than {backbone.name} can address; "
        f"type frames={backbone.max_frames} or fewer",
    )


def _check_flow(cfg: DictConfig, steps: int, usual_t_i: Callable[[], int]) -> None:
    check(
        cfg.t_i is None or 1 <= cfg.t_i <= steps,
        f"t_i={cfg.t_i} is not in 1..{steps}: it counts the HR steps that remain of steps={steps}; "
        f"type t_i={usual_t_i()}",
    )


def _check_order(cfg: DictConfig, steps: int, shift: float, knobs: tuple[str, ...]) -> None:
    lri = cfg.solver == "lri"
    check(
        1 <= cfg.order <= (steps if "order" in knobs and lri else math.inf),
        f"order={cfg.order} is not in 1..{steps} (steps); type order={min(2, steps)}",
    )
    if not lri or cfg.order <= 2:
        return
    check(
        cfg.lr_time == "sigma",
        f"order={cfg.order} cannot be taken at equal SNR, which is known for v' only; "
        "type order=2 or lr_time=sigma",
    )
    check(
        "order" not in knobs or "shift_high" not in knobs or cfg.shift_high in (None, shift),
        f"order={cfg.order} needs the LR flow at the HR stage's own noise levels, and with "
        f"shift_high={cfg.shift_high} it is interpolated; type order=2 or leave shift_high out",
    )


def _check_ranks(cfg: DictConfig) -> None:
    """Processes of a clip, and one graph: a transformer on one device without data-dependent control
    flow.
    """
    k = cfg.context_parallel
    check(
        "ring" not in str(k),
        f"context_parallel={k}: a ring passes keys on in pieces, so that no rank has the whole "
        "window of a head; type context_parallel=2, which exchanges heads (Ulysses)",
    )
    check(
        type(k) is int and k >= 1,
        f"context_parallel={k} is no number of processes; type context_parallel=2",
    )
    hooks = {f"offload={cfg.offload}": cfg.offload != "none", "fp8=true": cfg.fp8}
    for word, used in hooks.items():
        check(
            not (cfg.compile and used),
            f"compile=true makes the transformer one graph, and {word} works with hooks that break "
            f"it; leave compile or {word.split('=')[0]} out",
        )
    check(
        not cfg.compile or cfg.backbone.family != "hunyuan15",
        f"compile=true makes the transformer one graph, and that of {cfg.backbone.name} sorts its "
        "text by masks, which breaks it; leave compile out",
    )
