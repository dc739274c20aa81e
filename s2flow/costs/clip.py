"""The stages of a clip: FLOPs, bytes moved and sent, and peak bytes of each.

    text       2 FLOPs a weight and token of the text encoders; their weights are read once
    lr         N forwards with full attention
    plan       the coverage of every window, N times in every layer (`coverage`). It is recorded during
               the LR flow, and a clip's clock counts it there. Methods without windows record it, too,
               and include it in `lr`
    handoff    the autoencoder decodes the LR video and encodes the HR one (`vae`)
    hr         t_i forwards inside the windows (twice under heun); N at HR without a hand-off
    decode     the HR video and the preview of the LR one

Peak memory at LR includes coverage rows, up to the limit of `windows.coverage_by_heads`; a flow holds
six float32 latents; trajectories are on the CPU. Not counted: text encoders' activations (below a
GiB), the solver's sums, copies of trajectories to the CPU.
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

FIXED_HANDOFFS = {"macs": "latent"}  # hand-off of methods without the knob; default x0
STATE_LATENTS = 6  # float32 latents of a flow: z, v, two derivatives, a step's temporaries


def measure(backbone: Any, r: Recipe, batch: int = 1) -> Costs:
    """Costs of one batch under a recipe. backbone: on the meta device; not usable afterwards."""
    low, high = (backbone.latent_shape(*size, r.frames) for size in (r.low, r.high))
    stages, forwards = [_text_stage(backbone, r, batch)], {}
    if "low" in r.knobs:
        forward = forwards["low"] = forward_cost(backbone, low, batch, r.guidance)
        bricks = math.prod(brick_grid(backbone.token_grid(low), r.brick_low))
        row_bytes = coverage_bytes(forward.q, r.coverage_rows, bricks=bricks)
        held = STATE_LATENTS * 4 * batch * math.prod(low)
        peak = max(forward.peak, forward.attending + row_bytes) + held
        flow = flow_stage("lr", forward, r.steps, bytes=peak)
        plan = plan_stage(backbone, r, forward, low)
        stages += [flow, plan] if "windows" in r.knobs else [_with_coverage(flow, plan)]
    if r.method != "bicubic":
        forwards["high"] = forward_cost(backbone, high, batch, r.guidance)
        stages.append(high_stage(backbone, r, forwards["high"], high, batch))
    stages += vae_stages(backbone, r, batch)
    order = ("text", "lr", "plan", "handoff", "hr", "decode")
    stages.sort(key=lambda s: order.index(s.name))
    heads = backbone.transformer.config.num_attention_heads
    return Costs(weights_of(backbone), stages, heads, **forwards)


def plan_stage(backbone: Any, r: Recipe, forward: Forward, low: tuple) -> Stage:
    """Coverage of every layer and LR step; forward: one LR forward."""
    grid = (backbone.token_grid(low), r.brick_low)
    layer = coverage_cost(forward.q, forward.size, r.coverage_rows, *grid)
    count = r.steps * forward.layers
    return Stage(
        "plan",
        "none",
        0,
        count * layer.flops,
        0,
        moved=layer.moved * count,
        sent=lambda k: count * layer.sent(k),
    )


def flow_stage(
    name: str, forward: Forward, forwards: float, dense: float = 0, f: float = 1.0, bytes: int = 0
) -> Stage:
    """`forwards` forwards at density f, and `dense` more with full attention."""
    total = forwards + dense
    attention = forwards * forward.attending_flops(f) + dense * forward.attending_flops()
    return Stage(
        name,
        "transformer",
        forward.video,
        forwards * forward.flops(f) + dense * forward.flops(),
        bytes,
        total,
        f,
        attention,
        forward.moved * total,
        lambda k: total * forward.sent(k),
    )


def _with_coverage(flow: Stage, plan: Stage) -> Stage:
    """The LR flow of a method without windows: it includes the coverage."""
    return replace(
        flow,
        flops=flow.flops + plan.flops,
        moved=flow.moved + plan.moved,
        sent=lambda k: flow.sent(k) + plan.sent(k),
    )


def high_stage(backbone: Any, r: Recipe, forward: Forward, shape: tuple, batch: int) -> Stage:
    """The HR flow of latents of this shape; forward: one forward of them."""
    steps = r.t_i if "t_i" in r.knobs else r.steps
    windowed = "windows" in r.knobs and not r.whole_grid
    dense = min(r.windows.dense_steps, steps) if windowed else steps
    grids = [
        backbone.token_grid(backbone.latent_shape(*size, r.frames)) for size in (r.low, r.high)
    ]
    f = density(r, backbone.router.layers, *grids) if windowed else 1.0
    factor = 2 - 1 / steps if "solver" in r.knobs and r.solver == "heun" else 1
    backend = "triton" if r.attention == "auto" else r.attention  # as on a GPU
    peak = forward.peak_with_windows(backend) if windowed else forward.peak
    reads_rows = r.windows.module.READS == HR and "coverage_rows" not in r.windows.module.IGNORES
    if windowed and reads_rows:  # rows of logits during the forward
        peak = max(peak, forward.attending + 2 * coverage_bytes(forward.q, r.coverage_rows))
    held = STATE_LATENTS * 4 * batch * math.prod(shape)
    return flow_stage("hr", forward, factor * (steps - dense), factor * dense, f, peak + held)


def density(r: Recipe, layers: int, low: Box, high: Box) -> float:
    """Expected density f of the windows: as requested; for the coverage policy, its cap.

    low, high: the token grids, which decide the box of `inward`.
    """
    f = fraction_of_volume(r.sparsity, r.density)
    if r.windows.name == "coverage":
        f = r.windows.cap
    if r.windows.name == "inward":
        f = realised_density(high, r.brick_high, inward_box(low, high, r.brick_high))
    return f + (1 - f) * len(r.windows.dense_layers) / layers


def _text_stage(backbone: Any, r: Recipe, batch: int) -> Stage:
    """2 FLOPs per weight and token; embeddings count none."""
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
    """Hand-off and decoding, with the decoding of the LR clip, in the recipe's tiles."""
    tile_vae(backbone.vae, r.vae_tile)
    low, high = (backbone.latent_shape(*size, r.frames) for size in (r.low, r.high))

    def latent(shape: tuple) -> Tensor:
        return torch.empty(batch, *shape, device=backbone.device)

    stages = []
    if "t_i" in r.knobs:
        N = 1  # any step: two states and one velocity suffice
        flow = Trajectory(sigma_grid(N, r.shift), [latent(low)] * 2, [None, latent(low)])
        eps = latent(high)
        mode = r.handoff if "handoff" in r.knobs else FIXED_HANDOFFS.get(r.method, "x0")
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
    """Bytes of all parts. Converts the blank transformer to fp8, so it is not usable afterwards."""
    parts = backbone.pipeline.components
    text = sum(_bytes(m) for name, m in parts.items() if name.startswith("text_encoder"))
    transformers = [m for name, m in parts.items() if name.startswith("transformer")]
    sizes, group_sizes = [_bytes(m) for m in transformers], [_group_bytes(m) for m in transformers]
    for m in transformers:
        m.enable_layerwise_casting(storage_dtype=FP8, compute_dtype=m.dtype)
    fp8_sizes = [_bytes(m) for m in transformers]
    fp8_group_sizes = [_group_bytes(m) for m in transformers]
    return Weights(
        text,
        _bytes(parts["vae"]),
        (sum(sizes), sum(fp8_sizes)),
        (max(group_sizes), max(fp8_group_sizes)),
        (max(sizes), max(fp8_sizes)) if len(transformers) > 1 else None,
    )


def _bytes(module: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in module.parameters())


def _group_bytes(module: nn.Module) -> int:
    """Bytes on the device under offload=group: two blocks, one prefetched, and all other weights."""
    blocks = [b for m in module.children() if isinstance(m, nn.ModuleList) for b in m]
    sizes = sorted(_bytes(b) for b in blocks)
    return _bytes(module) - sum(sizes) + sum(sizes[-2:])
