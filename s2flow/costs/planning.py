"""`python run.py ... plan=true`: estimated cost of a clip, stage by stage, before anything is loaded.

    plan     the cost of one config, and its recorded and missing clips (`forecast.py`);
             `terminal.plans` prints it
    refuse   check before a run on a GPU: raises UserError if the clip does not fit, with the overrides
             to add, `check_memory=false` among them

Both work from configs alone (`blank.py`, `costs`); every number is an estimate.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from omegaconf import DictConfig

from s2flow.backbones.base import Origin
from s2flow.costs import (
    CONTEXT_GIB,
    GIB,
    SLACK,
    Costs,
    Rates,
    Stage,
    bound,
    measure,
    rates_of,
    vae_stages,
)
from s2flow.costs.blank import blank
from s2flow.costs.forecast import forecast
from s2flow.errors import UserError
from s2flow.recipe.identity import Recipe
from s2flow.store.tasks import Task

TILE = (512, 448)  # suggested if whole frames do not fit
REMEDIES = (  # (offload, fp8, tiled, ranks) in the order of preference
    *((o, False, False, 1) for o in ("model", "group")),
    *((o, False, True, 1) for o in ("none", "model", "group")),
    *(("none", False, True, k) for k in (2, 4, 8)),
    *((o, False, True, k) for k in (2, 4, 8) for o in ("model", "group")),
    *((o, True, True, 1) for o in ("model", "group")),
    *((o, True, True, k) for k in (2, 4, 8) for o in ("model", "group")),
)


@dataclass(frozen=True)
class Device:
    """The device of a plan: name, GiB (None: not known), rates."""

    name: str
    memory: float | None
    rates: Rates


def device_of(cfg: DictConfig, device: str) -> Device:
    """This machine's device; `memory`, `tflops`, `bandwidth` and `link` of the config override its own.

    Raises UserError for an invalid memory or rate.
    """
    if cfg.memory is not None and not cfg.memory > 0:
        raise UserError(
            f"memory={cfg.memory:g} holds nothing; type the GiB of a GPU, as memory=80"
        )
    name, memory = "cpu", None
    if device.startswith("cuda"):
        properties = torch.cuda.get_device_properties(device)
        name, memory = properties.name, properties.total_memory / GIB
    elif cfg.memory is not None:
        name = "a GPU"
    memory = cfg.memory or memory
    return Device(name, memory, rates_of(name, memory, cfg.tflops, cfg.bandwidth, cfg.link))


def measured(cfg: DictConfig, recipe: Recipe) -> Costs:
    """Costs of one batch of this config. Raises UserError if the model's sizes are not known."""
    return measure(_blank(cfg), recipe, cfg.batch)


def plan(cfg: DictConfig, recipe: Recipe, device: str, tasks: list[Task]) -> dict[str, Any]:
    """Estimated cost of one config, sizes in GiB; `terminal.plans` prints it.

    `needs`, which is not printed, names the clips and LR flows to make.
    """
    if recipe.stages:
        raise UserError("plan=true counts one HR size; leave scales out to plan for the largest")
    target, ranks = device_of(cfg, device), cfg.context_parallel
    costs = measured(cfg, recipe)
    placement = (cfg.offload, cfg.fp8, ranks)
    rows = [
        {
            "stage": s.name,
            "tokens": s.tokens,
            "density": round(s.density, 4),
            "tflop": round(s.flops / 1e12, 3),
            "moved_gb": round(s.moved.total / 1e9, 3),
            "sent_gb": round(s.sent(ranks) / 1e9, 3),
            "seconds": round(costs.seconds(s, target.rates, *placement), 2),
            "bound": bound(s, target.rates, ranks),
            "weights_gib": round(costs.weights.resident(s.part, cfg.offload, cfg.fp8) / GIB, 2),
            "peak_gib": round(costs.peak(s, *placement) / GIB, 2),
        }
        for s in costs.stages
    ]
    needed = needs(costs, *placement)
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
        "ranks": ranks,
        "device": target.name,
        "memory_gib": target.memory and round(target.memory, 2),
        "assumed_tflops": target.rates.tflops,
        "assumed_float32": target.rates.in_float32,
        "assumed_bandwidth": target.rates.bandwidth,
        "assumed_link": target.rates.link,
        "stages": rows,
        "seconds": round(sum(r["seconds"] for r in rows), 2),
        "needed_gib": round(needed, 2),
        "slack": round(SLACK - 1, 4),
        "context_gib": CONTEXT_GIB,
        "fits": None if target.memory is None else needed <= target.memory,
        "add": None,
    }
    if report["fits"] is False:
        report["add"] = overrides_that_fit(cfg, recipe, costs, target.memory)
    report |= forecast(cfg, recipe, tasks, {r["stage"]: r["seconds"] for r in rows}, _blank(cfg))
    return report


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
    target, placement = device_of(cfg, device), (cfg.offload, cfg.fp8, cfg.context_parallel)
    needed = needs(costs, *placement)
    if needed <= target.memory:
        return
    worst = max(costs.stages, key=lambda s: costs.peak(s, *placement))
    overrides = overrides_that_fit(cfg, recipe, costs, target.memory)
    advice = (
        f"type {overrides}" if overrides else "type a smaller high=[height,width] or fewer frames"
    )
    raise UserError(
        f"backbone={cfg.backbone.name} at {recipe.high[0]}x{recipe.high[1]}x{recipe.frames} needs "
        f"about {needed:.0f} GiB (stage {worst.name}), {target.name} has {target.memory:.0f}; "
        f"{advice}, or check_memory=false to run anyway"
    )


def needs(costs: Costs, offload: str, fp8: bool, ranks: int) -> float:
    """Required GiB of a device: the largest stage, with slack and the context."""
    peak = max(costs.peak(s, offload, fp8, ranks) for s in costs.stages)
    return peak / GIB * SLACK + CONTEXT_GIB


def overrides_that_fit(cfg: DictConfig, recipe: Recipe, costs: Costs, memory: float) -> str | None:
    """Overrides with which a clip fits, pixels unchanged if possible; None if there are none."""
    tiled = costs
    if recipe.vae_tile is None and cfg.backbone.family != "tiny":
        tiled_stages = {s.name: s for s in _tiled(cfg, recipe)}
        tiled = Costs(costs.weights, [tiled_stages.get(s.name, s) for s in costs.stages])
    for offload, fp8, tile, ranks in REMEDIES:
        if costs.heads % ranks:
            continue
        if cfg.compile and (offload != "none" or fp8):  # not allowed with compile
            continue
        if needs(tiled if tile else costs, offload, fp8 or cfg.fp8, ranks) > memory:
            continue
        overrides = [] if offload == cfg.offload else [f"offload={offload}"]
        overrides += ["fp8=true"] if fp8 and not cfg.fp8 else []
        overrides += (
            [f"vae_tile=[{TILE[0]},{TILE[1]}]"] if tile and recipe.vae_tile is None else []
        )
        overrides += [f"context_parallel={ranks}"] if ranks > 1 else []
        return " ".join(overrides)
    return None


def _tiled(cfg: DictConfig, recipe: Recipe) -> list[Stage]:
    return vae_stages(_blank(cfg), replace(recipe, vae_tile=TILE), cfg.batch)


def _blank(cfg: DictConfig) -> Any:
    return blank(cfg.backbone.family, Origin.of(cfg.backbone))
