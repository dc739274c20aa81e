"""A clip, stage by stage: FLOPs, bytes moved and sent, and bytes at the peak of each.

    text       2 FLOPs a weight and token of the text encoders; their weights are read once
    lr         N forwards with full attention
    plan       the coverage of every window, N times in every layer (`coverage`). It is recorded while
               the LR flow runs, and a clip's clock counts it there; methods that ask for no windows
               record it, too, and have it in `lr`
    handoff    the autoencoder decodes the LR video and encodes the HR one (`vae`)
    hr         t_i forwards inside the windows (twice under heun); N at HR without a hand-off
    decode     the HR video and the preview of the LR one

Coverage rows at LR are there beside a forward, at most `windows.coverage_by_heads`'s limit at a time;
six latents in float32 are the flow's own; trajectories are on the CPU. Left out: text encoders'
activations (below a GiB), the solver's own sums, copies of trajectories to the CPU.
"""

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from s2flow.backbones.placement import FP8
from s2flow.backbones.tiles import tile_vae
from s2flow.costs.coverage import coverage_cost
from s2flow.costs.forward import Forward, forward_cost
from s2flow.costs.stages import GIB, Costs, Stage, Weights
from s2flow.costs.trace import Moved
from s2flow.costs.vae import Pass, vae_cost
from s2flow.coverage import coverage_bytes
from s2flow.flow import Trajectory, sigma_grid
from s2flow.grid import Box, brick_grid, realised_density
from s2flow.handoff import hand_off, resize_video
from s2flow.policies.base import HR
from s2flow.policies.inward import inward_box
from s2flow.recipe.identity import Recipe
from s2flow.windows import fraction_of_volume

HANDOFFS = {"macs": "latent"}  # of methods with a hand-off of their own; others use the VAE
STATE = 6  # latents in float32 that a flow holds: z, v, two derivatives, a step's temporaries


def measure(backbone: Any, r: Recipe, batch: int = 1) -> Costs:
    """Costs of one batch under a recipe. `backbone`: on the meta device, and spent afterwards."""
    low, high = (backbone.latent_shape(*size, r.frames) for size in (r.low, r.high))
    stages, forwards = [_text_stage(backbone, r, batch)], {}
    if "low" in r.knobs:
        once = forwards["low"] = forward_cost(backbone, low, batch, r.guidance)
        bricks = math.prod(brick_grid(backbone.token_grid(low), r.brick_low))
        recorded = coverage_bytes(once.q, r.coverage_rows, bricks=bricks)
        held = STATE * 4 * batch * math.prod(low)
        used = max(once.peak, once.attending + recorded) + held
        flow = flow_stage("lr", once, r.steps, bytes=used)
        plan = plan_stage(backbone, r, once, low)
        stages += [flow, plan] if "windows" in r.knobs else [_together(flow, plan)]
    if r.method != "bicubic":
        forwards["high"] = forward_cost(backbone, high, batch, r.guidance)
        stages.append(high_stage(backbone, r, forwards["high"], high, batch))
    stages += vae_stages(backbone, r, batch)
    order = ("text", "lr", "plan", "handoff", "hr", "decode")
    stages.sort(key=lambda s: order.index(s.name))
    heads = backbone.transformer.config.num_attention_heads
    return Costs(weights_of(backbone), stages, heads, **forwards)


def plan_stage(backbone: Any, r: Recipe, once: Forward, low: tuple) -> Stage:
    """Coverage of every layer and LR step; `once`: the LR forward beside which it is recorded."""
    grid = (backbone.token_grid(low), r.brick_low)
    one, times = coverage_cost(once.q, once.size, r.coverage_rows, *grid), r.steps * once.layers
    return Stage(
        "plan",
        "none",
        0,
        times * one.flops,
        0,
        moved=one.moved * times,
        sent=lambda k: times * one.sent(k),
    )


def flow_stage(
    name: str, once: Forward, forwards: float, dense: float = 0, f: float = 1.0, bytes: int = 0
) -> Stage:
    """So many forwards at density f, and `dense` more with full attention."""
    both = forwards + dense
    attention = forwards * once.attending_flops(f) + dense * once.attending_flops()
    return Stage(
        name,
        "transformer",
        once.video,
        forwards * once.flops(f) + dense * once.flops(),
        bytes,
        both,
        f,
        attention,
        once.moved * both,
        lambda k: both * once.sent(k),
    )


def _together(flow: Stage, plan: Stage) -> Stage:
    """The LR flow of a method without windows, which records coverage, too."""
    return replace(
        flow,
        flops=flow.flops + plan.flops,
        moved=flow.moved + plan.moved,
        sent=lambda k: flow.sent(k) + plan.sent(k),
    )


def high_stage(backbone: Any, r: Recipe, once: Forward, shape: tuple, batch: int) -> Stage:
    """The HR flow of latents of this shape; `once`: a forward of them."""
    steps = r.t_i if "t_i" in r.knobs else r.steps
    windowed = "windows" in r.knobs and not r.whole_grid
    dense = min(r.windows.dense_steps, steps) if windowed else steps
    grids = [
        backbone.token_grid(backbone.latent_shape(*size, r.frames)) for size in (r.low, r.high)
    ]
    f = density(r, backbone.router.layers, *grids) if windowed else 1.0
    twice = 2 - 1 / steps if "solver" in r.knobs and r.solver == "heun" else 1
    backend = "triton" if r.attention == "auto" else r.attention  # as on a GPU
    peak = once.peak_with_windows(backend) if windowed else once.peak
    rows = r.windows.module.READS == HR and "coverage_rows" not in r.windows.module.IGNORES
    if windowed and rows:  # rows of logits beside the forward
        peak = max(peak, once.attending + 2 * coverage_bytes(once.q, r.coverage_rows))
    held = STATE * 4 * batch * math.prod(shape)
    return flow_stage("hr", once, twice * (steps - dense), twice * dense, f, peak + held)


def density(r: Recipe, layers: int, low: Box, high: Box) -> float:
    """f that windows are expected to keep: as requested; for the coverage policy its cap.

    low, high: the token grids, by which `inward` goes.
    """
    f = fraction_of_volume(r.sparsity, r.density)
    if r.windows.name == "coverage":
        f = r.windows.cap
    if r.windows.name == "inward":
        f = realised_density(high, r.brick_high, inward_box(low, high, r.brick_high))
    return f + (1 - f) * len(r.windows.dense_layers) / layers


def _text_stage(backbone: Any, r: Recipe, batch: int) -> Stage:
    """2 FLOPs a weight and token; embeddings are looked up."""
    condition = backbone.blank_condition(batch, r.guidance)
    text = getattr(condition, "text", getattr(condition, "positive", None))
    tokens = getattr(text, "states", text).shape[1]
    passes = batch * (1 + (getattr(condition, "negative", None) is not None))
    count = read = 0
    for name, part in backbone.pipeline.components.items():
        if name.startswith("text_encoder"):
            looked_up = sum(
                m.weight.numel() for m in part.modules() if isinstance(m, nn.Embedding)
            )
            used = sum(p.numel() for p in part.parameters()) - looked_up
            count += used
            read += used * next(part.parameters()).element_size()
    flops = 2.0 * count * tokens * passes
    return Stage("text", "text", tokens, flops, GIB // 2, moved=Moved(weights=read))


def vae_stages(backbone: Any, r: Recipe, batch: int) -> list[Stage]:
    """Hand-off and decoding, with the preview of the LR clip, in the recipe's tiles."""
    tile_vae(backbone.vae, r.vae_tile)
    low, high = (backbone.latent_shape(*size, r.frames) for size in (r.low, r.high))

    def latent(shape: tuple) -> Tensor:
        return torch.empty(batch, *shape, device=backbone.device)

    stages = []
    if "t_i" in r.knobs:
        N = 1  # any step: two states and one velocity stand for the whole flow
        flow = Trajectory(sigma_grid(N, r.shift), [latent(low)] * 2, [None, latent(low)])
        eps = latent(high)
        mode = r.handoff if "handoff" in r.knobs else HANDOFFS.get(r.method, "x0")
        call = (flow, N, eps, mode, backbone.decode, backbone.encode, r.high)
        cost = vae_cost(backbone.vae, lambda: hand_off(*call))
        held = 2 * eps.nbytes
        stages.append(_vae_stage("handoff", cost, held))

    def decode() -> Any:
        if r.method == "bicubic":
            small = backbone.decode(latent(low))
            return small, resize_video(small, *r.high)
        video = backbone.decode(latent(high))
        return video, backbone.decode(latent(low)) if "low" in r.knobs else None

    cost = vae_cost(backbone.vae, decode)
    stages.append(_vae_stage("decode", cost))
    return stages


def _vae_stage(name: str, cost: Pass, held: int = 0) -> Stage:
    return Stage(name, "vae", 0, cost.flops, cost.peak + held, moved=cost.moved)


def weights_of(backbone: Any) -> Weights:
    """Bytes of all parts. Stores the transformer as fp8 to count it: a blank one, spent afterwards."""
    parts = backbone.pipeline.components
    text = sum(_bytes(m) for name, m in parts.items() if name.startswith("text_encoder"))
    moved = [m for name, m in parts.items() if name.startswith("transformer")]
    plain, plain_group = [_bytes(m) for m in moved], [_group_bytes(m) for m in moved]
    for m in moved:
        m.enable_layerwise_casting(storage_dtype=FP8, compute_dtype=m.dtype)
    small, small_group = [_bytes(m) for m in moved], [_group_bytes(m) for m in moved]
    return Weights(
        text,
        _bytes(parts["vae"]),
        (sum(plain), sum(small)),
        (max(plain_group), max(small_group)),
        (max(plain), max(small)) if len(moved) > 1 else None,
    )


def _bytes(module: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in module.parameters())


def _group_bytes(module: nn.Module) -> int:
    """On the device under offload=group: two blocks, one of them on its way, and what is in none."""
    blocks = [b for m in module.children() if isinstance(m, nn.ModuleList) for b in m]
    sizes = sorted(_bytes(b) for b in blocks)
    return _bytes(module) - sum(sizes) + sum(sizes[-2:])
