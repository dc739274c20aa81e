"""`python run.py ... plan=true`: what a clip would cost, stage by stage, before anything is loaded.

    plan     what one config would cost, and what of it is recorded or missing (`forecast.py`);
             `terminal.plans` prints it
    refuse   what a real run asks first on a GPU: raises UserError with the words to add if the clip
             does not fit, `check_memory=false` among them

Both work from configs alone (`blank.py`, `costs`); every number is an estimate.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from omegaconf import DictConfig

from s2flow.backbones.base import Origin
from s2flow.costs import (
    GIB,
    RESERVE,
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

TILE = (512, 448)  # what is offered where whole frames do not fit
WORDS = (  # (offload, fp8, tiled, ranks) in the order in which they are offered
    *((o, False, False, 1) for o in ("model", "group")),
    *((o, False, True, 1) for o in ("none", "model", "group")),
    *(("none", False, True, k) for k in (2, 4, 8)),
    *((o, False, True, k) for k in (2, 4, 8) for o in ("model", "group")),
    *((o, True, True, 1) for o in ("model", "group")),
    *((o, True, True, k) for k in (2, 4, 8) for o in ("model", "group")),
)


@dataclass(frozen=True)
class Device:
    """What is planned for: its name, its GiB (None: not known), what it achieves."""

    name: str
    memory: float | None
    rates: Rates


def device_of(cfg: DictConfig, device: str) -> Device:
    """The device found, with `memory`, `tflops`, `bandwidth` and `link` as typed instead of its own.

    Raises UserError for a memory or a rate that is none.
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
    """Costs of one batch of this config. Raises UserError where sizes cannot be known."""
    return measure(_blank(cfg), recipe, cfg.batch)


def plan(cfg: DictConfig, recipe: Recipe, device: str, tasks: list[Task]) -> dict[str, Any]:
    """What one config would cost, sizes in GiB; `terminal.plans` prints it.

    `needs`, which no line holds, names what is to be made.
    """
    if recipe.stages:
        raise UserError("plan=true counts one HR size; leave scales out to plan for the largest")
    on, ranks = device_of(cfg, device), cfg.context_parallel
    costs = measured(cfg, recipe)
    how = (cfg.offload, cfg.fp8, ranks)
    rows = [
        {
            "stage": s.name,
            "tokens": s.tokens,
            "density": round(s.density, 4),
            "tflop": round(s.flops / 1e12, 3),
            "moved_gb": round(s.moved.total / 1e9, 3),
            "sent_gb": round(s.sent(ranks) / 1e9, 3),
            "seconds": round(costs.seconds(s, on.rates, *how), 2),
            "bound": bound(s, on.rates, ranks),
            "weights_gib": round(costs.weights.there(s.part, cfg.offload, cfg.fp8) / GIB, 2),
            "peak_gib": round(costs.peak(s, *how) / GIB, 2),
        }
        for s in costs.stages
    ]
    needed = needs(costs, *how)
    found = {
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
        "device": on.name,
        "memory_gib": on.memory and round(on.memory, 2),
        "assumed_tflops": on.rates.tflops,
        "assumed_float32": on.rates.in_float32,
        "assumed_bandwidth": on.rates.bandwidth,
        "assumed_link": on.rates.link,
        "stages": rows,
        "seconds": round(sum(r["seconds"] for r in rows), 2),
        "needed_gib": round(needed, 2),
        "slack": round(SLACK - 1, 4),
        "context_gib": RESERVE,
        "fits": None if on.memory is None else needed <= on.memory,
        "add": None,
    }
    if found["fits"] is False:
        found["add"] = words_that_fit(cfg, recipe, costs, on.memory)
    found |= forecast(cfg, recipe, tasks, {r["stage"]: r["seconds"] for r in rows}, _blank(cfg))
    return found


def refuse(cfg: DictConfig, recipe: Recipe, device: str) -> None:
    """Raises UserError if a clip does not fit the GPU; nothing on a CPU or under check_memory=false.

    Where the sizes are not known (a family or checkpoint that cannot be planned), nothing is refused.
    """
    if not device.startswith("cuda") or not cfg.check_memory:
        return
    try:
        costs = measured(cfg, recipe)
    except UserError:
        return
    on, how = device_of(cfg, device), (cfg.offload, cfg.fp8, cfg.context_parallel)
    needed = needs(costs, *how)
    if needed <= on.memory:
        return
    worst = max(costs.stages, key=lambda s: costs.peak(s, *how))
    words = words_that_fit(cfg, recipe, costs, on.memory)
    advice = f"type {words}" if words else "type a smaller high=[height,width] or fewer frames"
    raise UserError(
        f"backbone={cfg.backbone.name} at {recipe.high[0]}x{recipe.high[1]}x{recipe.frames} needs "
        f"about {needed:.0f} GiB (stage {worst.name}), {on.name} has {on.memory:.0f}; {advice}, or "
        "check_memory=false to run anyway"
    )


def needs(costs: Costs, offload: str, fp8: bool, ranks: int) -> float:
    """GiB that a device must have: the worst stage, with slack and the context."""
    peak = max(costs.peak(s, offload, fp8, ranks) for s in costs.stages)
    return peak / GIB * SLACK + RESERVE


def words_that_fit(cfg: DictConfig, recipe: Recipe, costs: Costs, memory: float) -> str | None:
    """The words to add so that a clip fits, pixels unchanged if possible; None if none do."""
    tiled = costs
    if recipe.vae_tile is None and cfg.backbone.family != "tiny":
        other = {s.name: s for s in _tiled(cfg, recipe)}
        tiled = Costs(costs.weights, [other.get(s.name, s) for s in costs.stages])
    for offload, fp8, tile, ranks in WORDS:
        if costs.heads % ranks:
            continue
        if cfg.compile and (offload != "none" or fp8):  # refused beside it
            continue
        if needs(tiled if tile else costs, offload, fp8 or cfg.fp8, ranks) > memory:
            continue
        words = [] if offload == cfg.offload else [f"offload={offload}"]
        words += ["fp8=true"] if fp8 and not cfg.fp8 else []
        words += [f"vae_tile=[{TILE[0]},{TILE[1]}]"] if tile and recipe.vae_tile is None else []
        words += [f"context_parallel={ranks}"] if ranks > 1 else []
        return " ".join(words)
    return None


def _tiled(cfg: DictConfig, recipe: Recipe) -> list[Stage]:
    return vae_stages(_blank(cfg), replace(recipe, vae_tile=TILE), cfg.batch)


def _blank(cfg: DictConfig) -> Any:
    return blank(cfg.backbone.family, Origin.of(cfg.backbone))
