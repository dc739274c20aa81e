"""`python run.py ... plan=true`: estimated cost of a clip, stage by stage, before anything is loaded.

    plan     the cost of one config, and its recorded and missing clips (`forecast.py`);
             `terminal.plans` prints it
    refuse   check before a run on a GPU: raises UserError if the clip does not fit, with the overrides
             to add, `check_memory=false` among them

Both work from configs alone (`blank.py`, `costs`); every number is an estimate.
"""

from dataclasses import replace
from itertools import product
from typing import Any

import torch
from omegaconf import DictConfig

from s2flow.backbones.base import Origin
from s2flow.costs.blank import blank
from s2flow.costs.clip import measure, vae_stages
from s2flow.costs.clock import Rates, rates_of
from s2flow.costs.forecast import forecast
from s2flow.costs.stages import CONTEXT_GIB, GIB, SLACK, Costs, Stage
from s2flow.errors import UserError
from s2flow.recipe.identity import Recipe
from s2flow.store.tasks import Task

TILE = (512, 448)  # suggested if whole frames do not fit
DIGITS = {"f": 4, "tflop": 3, "moved_gb": 3, "sent_gb": 3, "seconds": 2, "peak_gib": 2}
RANKS, OFFLOADS = (2, 4, 8), ("model", "group")
REMEDIES = (  # (offload, fp8, tiled, ranks) in the order of preference
    *product(OFFLOADS, [False], [False], [1]),
    *product(("none", *OFFLOADS), [False], [True], [1]),
    *product(["none"], [False], [True], RANKS),
    *((o, False, True, k) for k in RANKS for o in OFFLOADS),
    *((o, True, True, k) for k in (1, *RANKS) for o in OFFLOADS),
)


def plan(cfg: DictConfig, recipe: Recipe, device: str, tasks: list[Task]) -> dict[str, Any]:
    """Estimated cost of one config, sizes in GiB; `terminal.plans` prints it.

    `needs`, which is not printed, names the clips and LR flows to make.
    """
    if recipe.stages:
        raise UserError("plan=true counts one HR size; leave scales out to plan for the largest")
    name, memory, rates = _device(cfg, device)
    costs, placement = measured(cfg, recipe), (cfg.offload, cfg.fp8, cfg.context_parallel)
    rows = costs.rows(rates, *placement)
    for row, stage in zip(rows, costs.stages, strict=True):
        row |= {k: round(row[k], digits) for k, digits in DIGITS.items()}
        row["density"] = row.pop("f")
        resident = costs.weights.resident(stage.part, cfg.offload, cfg.fp8)
        row["weights_gib"] = round(resident / GIB, 2)
    needed = needs(costs, *placement)
    fits = None if memory is None else needed <= memory
    report = {
        "backbone": cfg.backbone.name,
        "method": recipe.method,
        "low": list(recipe.low),
        "high": list(recipe.high),
        "frames": recipe.frames,
        "batch": cfg.batch,
        "clips": len(tasks),
        "offload": cfg.offload,
        "fp8": cfg.fp8,
        "vae_tile": recipe.vae_tile and list(recipe.vae_tile),
        "ranks": cfg.context_parallel,
        "device": name,
        "memory_gib": memory and round(memory, 2),
        "assumed_tflops": rates.tflops,
        "assumed_float32": rates.in_float32,
        "assumed_bandwidth": rates.bandwidth,
        "assumed_link": rates.link,
        "stages": rows,
        "seconds": round(sum(r["seconds"] for r in rows), 2),
        "needed_gib": round(needed, 2),
        "slack": round(SLACK - 1, 4),
        "context_gib": CONTEXT_GIB,
        "fits": fits,
        "add": overrides_that_fit(cfg, recipe, costs, memory) if fits is False else None,
    }
    seconds = {r["stage"]: r["seconds"] for r in rows}
    return report | forecast(cfg, recipe, tasks, seconds, _blank(cfg))


def refuse(cfg: DictConfig, recipe: Recipe, device: str) -> None:
    """Raises UserError if a clip does not fit the GPU. No check on a CPU, under check_memory=false, or
    if the sizes are not known (a family or checkpoint that cannot be planned).
    """
    if not device.startswith("cuda") or not cfg.check_memory:
        return
    try:
        costs = measured(cfg, recipe)
    except UserError:
        return
    (name, memory, _), placement = (
        _device(cfg, device),
        (cfg.offload, cfg.fp8, cfg.context_parallel),
    )
    needed = needs(costs, *placement)
    if needed <= memory:
        return
    worst = max(costs.stages, key=lambda s: costs.peak(s, *placement))
    overrides = overrides_that_fit(cfg, recipe, costs, memory)
    advice = overrides or "a smaller high=[height,width] or fewer frames"
    raise UserError(
        f"backbone={cfg.backbone.name} at {recipe.high[0]}x{recipe.high[1]}x{recipe.frames} needs "
        f"about {needed:.0f} GiB (stage {worst.name}), {name} has {memory:.0f}; type {advice}, "
        "or check_memory=false to run anyway"
    )


def _device(cfg: DictConfig, device: str) -> tuple[str, float | None, Rates]:
    """(name, GiB or None, rates) of this machine's device, where the config gives no other."""
    if cfg.memory is not None and not cfg.memory > 0:
        raise UserError(
            f"memory={cfg.memory:g} holds nothing; type the GiB of a GPU, as memory=80"
        )
    name, memory = "cpu" if cfg.memory is None else "a GPU", None
    if device.startswith("cuda"):
        properties = torch.cuda.get_device_properties(device)
        name, memory = properties.name, properties.total_memory / GIB
    memory = cfg.memory or memory
    given = {k: cfg[k] for k in ("tflops", "bandwidth", "link")}
    return name, memory, rates_of(name, memory, **given)


def measured(cfg: DictConfig, recipe: Recipe) -> Costs:
    """Costs of one batch of this config. Raises UserError if the model's sizes are not known."""
    return measure(_blank(cfg), recipe, cfg.batch)


def needs(costs: Costs, offload: str, fp8: bool, ranks: int) -> float:
    """Required GiB of a device: the largest stage, with slack and the context."""
    peak = max(costs.peak(s, offload, fp8, ranks) for s in costs.stages)
    return peak / GIB * SLACK + CONTEXT_GIB


def overrides_that_fit(cfg: DictConfig, recipe: Recipe, costs: Costs, memory: float) -> str | None:
    """Overrides with which a clip fits, pixels unchanged if possible; None if there are none."""
    tiled, untiled = costs, recipe.vae_tile is None
    if untiled and cfg.backbone.family != "tiny":
        stages = {s.name: s for s in _tiled(cfg, recipe)}
        tiled = Costs(costs.weights, [stages.get(s.name, s) for s in costs.stages])
    for offload, fp8, tile, ranks in REMEDIES:
        hooks = offload != "none" or fp8  # not allowed with compile
        if costs.heads % ranks or cfg.compile and hooks:
            continue
        if needs(tiled if tile else costs, offload, fp8 or cfg.fp8, ranks) <= memory:
            overrides = {
                f"offload={offload}": offload != cfg.offload,
                "fp8=true": fp8 and not cfg.fp8,
                f"vae_tile=[{TILE[0]},{TILE[1]}]": tile and untiled,
                f"context_parallel={ranks}": ranks > 1,
            }
            return " ".join(word for word, changed in overrides.items() if changed)
    return None


def _tiled(cfg: DictConfig, recipe: Recipe) -> tuple[Stage, ...]:
    return vae_stages(_blank(cfg), replace(recipe, vae_tile=TILE), cfg.batch)


def _blank(cfg: DictConfig) -> Any:
    return blank(cfg.backbone.family, Origin.of(cfg.backbone))
