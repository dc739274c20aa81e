"""The stages of a clip: FLOPs, bytes moved and sent, and peak bytes of each.

    text       2 FLOPs a weight and token of the text encoders; their weights are read once
    lr         N forwards with full attention
    plan       the coverage of every window (Eq. 8), N times in every layer. It is recorded during the
               LR flow, and a clip's clock counts it there. Methods without windows record it, too, and
               include it in `lr`
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
from s2flow.costs.forward import Forward, forward_cost
from s2flow.costs.stages import GIB, Costs, Stage, Weights
from s2flow.costs.trace import Moved, tracing
from s2flow.costs.vae import vae_cost
from s2flow.coverage import coverage_bytes, coverage_of_masses, launch_options, sample_rows
from s2flow.flow import Trajectory, sigma_grid
from s2flow.grid import Box, brick_grid
from s2flow.handoff import hand_off, resize_video
from s2flow.policies.base import HR, Case
from s2flow.recipe.identity import Recipe
from s2flow.windows import fraction_of_volume

FIXED_HANDOFFS = {"macs": "latent"}  # hand-off of methods without the knob; default x0
STATE_LATENTS = 6  # float32 latents of a flow: z, v, two derivatives, a step's temporaries


def measure(backbone: Any, r: Recipe, batch: int = 1) -> Costs:
    """Costs of one batch under a recipe. backbone: on the meta device; not usable afterwards."""
    low, high = (backbone.latent_shape(*size, r.frames) for size in (r.low, r.high))
    stages, forwards = [_text_stage(backbone, r, batch)], {}
    handoff, decode = vae_stages(backbone, r, batch)
    if "low" in r.knobs:
        forward = forwards["low"] = forward_cost(backbone, low, batch, r.guidance)
        tokens = backbone.token_grid(low)
        bricks = math.prod(brick_grid(tokens, r.brick_low))
        row_bytes = coverage_bytes(forward.q, r.coverage_rows, bricks=bricks)
        peak = max(forward.peak, forward.attending + row_bytes) + _state(low, batch)
        flow = flow_stage("lr", forward, r.steps, bytes=peak)
        plan = plan_stage(r, forward, tokens)
        if "windows" not in r.knobs:
            sums = {k: getattr(flow, k) + getattr(plan, k) for k in ("flops", "moved")}
            flow = replace(flow, **sums, sent=lambda k, lr=flow: lr.sent(k) + plan.sent(k))
        stages += [flow, plan] if "windows" in r.knobs else [flow]
    stages += [handoff] if "t_i" in r.knobs else []
    if r.method != "bicubic":
        forwards["high"] = forward_cost(backbone, high, batch, r.guidance)
        stages.append(high_stage(backbone, r, forwards["high"], high, batch))
    heads = backbone.transformer.config.num_attention_heads
    return Costs(weights_of(backbone), [*stages, decode], heads, **forwards)


def _state(shape: tuple, batch: int) -> int:
    return STATE_LATENTS * 4 * batch * math.prod(shape)


def plan_stage(r: Recipe, forward: Forward, tokens: Box) -> Stage:
    """Coverage of every window in every layer and LR step. forward: at LR; tokens: its token grid.

    As on a GPU, where a kernel (`coverage`) reads the keys once and writes no rows. Per head, with R
    sampled rows, L keys of width d, and bricks g_t x g_h x g_w,

        sums         2 R L d; k is read for every tile of rows, and a sum is written per row and brick
        all boxes    2 R g_t g_h g_w (g_t + g_h + g_w): windows of every size along one axis after
                     another, traced on the meta device

    Ranks exchange the result, g_t g_h g_w numbers per head. The choice itself (Eq. 9) is an argmax over
    small tables on the CPU and is not counted.
    """
    (B, heads, L, d), brick, size = forward.q, r.brick_low, forward.size
    bricks, volume = math.prod(brick_grid(tokens, brick)), math.prod(brick)
    slots = bricks + math.ceil((L - math.prod(tokens)) / volume)  # text is a few bricks more
    sampled = sample_rows(math.prod(tokens), r.coverage_rows, 0)
    R = len(sampled)
    with tracing() as trace:
        sums = torch.empty(B, 1, slots, R, device="meta")
        masses = sums.softmax(2)[:, :, :bricks].transpose(2, 3)
        coverage_of_masses(masses, sampled, tokens, brick)
    kind = torch.float32 if size == 4 else torch.bfloat16
    tile = launch_options(d, kind, volume, many=True)["BLOCK_R"]
    keys = Moved(products=B * (size * d * (L * math.ceil(R / tile) + R) + 4 * slots * R))
    layers, result = r.steps * forward.layers, 4 * B * heads * bricks
    return Stage(
        name="plan",
        part="none",
        tokens=0,
        flops=layers * heads * (2 * B * R * L * d + trace.flops),
        bytes=0,
        moved=(keys + trace.moved) * (heads * layers),
        sent=lambda k: layers * (result // k * (k - 1)),
    )


def flow_stage(
    name: str, forward: Forward, forwards: float, dense: float = 0, f: float = 1.0, bytes: int = 0
) -> Stage:
    """`forwards` forwards at density f, and `dense` more with full attention."""
    total = forwards + dense
    return Stage(
        name,
        "transformer",
        forward.video,
        forwards * forward.flops(f) + dense * forward.flops(),
        bytes,
        total,
        f,
        forwards * forward.attending_flops(f) + dense * forward.attending_flops(),
        forward.moved * total,
        lambda k: total * forward.sent(k),
    )


def high_stage(backbone: Any, r: Recipe, forward: Forward, shape: tuple, batch: int) -> Stage:
    """The HR flow of latents of this shape; forward: one forward of them."""
    steps = r.t_i if "t_i" in r.knobs else r.steps
    dense, f, peak = steps, 1.0, forward.peak
    if "windows" in r.knobs and not r.whole_grid:
        policy = r.windows
        dense = min(policy.dense_steps, steps)
        low, high = (backbone.latent_shape(*size, r.frames) for size in (r.low, r.high))
        grids = (backbone.token_grid(low), r.brick_low, backbone.token_grid(high), r.brick_high)
        f = policy.density(Case(fraction_of_volume(r.sparsity, r.density), *grids))
        f += (1 - f) * len(policy.dense_layers) / backbone.router.layers
        peak = forward.peak_with_windows("triton" if r.attention == "auto" else r.attention)
        if policy.module.READS == HR and "coverage_rows" not in policy.module.IGNORES:
            # rows of logits during the forward
            peak = max(peak, forward.attending + 2 * coverage_bytes(forward.q, r.coverage_rows))
    factor = 2 - 1 / steps if "solver" in r.knobs and r.solver == "heun" else 1
    counts = (factor * (steps - dense), factor * dense)
    return flow_stage("hr", forward, *counts, f, peak + _state(shape, batch))


def _text_stage(backbone: Any, r: Recipe, batch: int) -> Stage:
    """2 FLOPs per weight and token; embeddings count none."""
    condition = backbone.blank_condition(batch, r.guidance)
    text = getattr(condition, "text", getattr(condition, "positive", None))
    tokens = getattr(text, "states", text).shape[1]
    passes = batch * (1 + (getattr(condition, "negative", None) is not None))
    count = read = 0
    for name, part in backbone.pipeline.components.items():
        if name.startswith("text_encoder"):
            tables = (m.weight.numel() for m in part.modules() if isinstance(m, nn.Embedding))
            used = sum(p.numel() for p in part.parameters()) - sum(tables)
            count += used
            read += used * next(part.parameters()).element_size()
    flops = 2.0 * count * tokens * passes
    return Stage("text", "text", tokens, flops, GIB // 2, moved=Moved(weights=read))


def vae_stages(backbone: Any, r: Recipe, batch: int) -> tuple[Stage, Stage]:
    """Hand-off (free without one) and decoding with that of the LR clip, in the recipe's tiles."""
    tile_vae(backbone.vae, r.vae_tile)
    low, high = (backbone.latent_shape(*size, r.frames) for size in (r.low, r.high))

    def latent(shape: tuple) -> Tensor:
        return torch.empty(batch, *shape, device=backbone.device)

    N = 1  # any step: two states and one velocity suffice
    flow = Trajectory(sigma_grid(N, r.shift), [latent(low)] * 2, [None, latent(low)])
    eps = latent(high)
    mode = r.handoff if "handoff" in r.knobs else FIXED_HANDOFFS.get(r.method, "x0")

    def handoff() -> None:
        if "t_i" in r.knobs:
            hand_off(flow, N, eps, mode, backbone.decode, backbone.encode, r.high)

    def decode() -> Any:
        if r.method == "bicubic":
            small = backbone.decode(latent(low))
            return small, resize_video(small, *r.high)
        video = backbone.decode(latent(high))
        return video, backbone.decode(latent(low)) if "low" in r.knobs else None

    def stage(work: Any, held: int = 0) -> Stage:
        cost = vae_cost(backbone.vae, work)
        return Stage(work.__name__, "vae", 0, cost.flops, cost.peak + held, moved=cost.moved)

    return stage(handoff, held=2 * eps.nbytes), stage(decode)


def weights_of(backbone: Any) -> Weights:
    """Bytes of all parts. Converts the blank transformer to fp8, so it is not usable afterwards."""
    parts = backbone.pipeline.components
    text = sum(nbytes(m) for name, m in parts.items() if name.startswith("text_encoder"))
    transformers = [m for name, m in parts.items() if name.startswith("transformer")]
    plain = [(nbytes(m), _group_bytes(m)) for m in transformers]
    for m in transformers:
        m.enable_layerwise_casting(storage_dtype=FP8, compute_dtype=m.dtype)
    fp8 = [(nbytes(m), _group_bytes(m)) for m in transformers]
    (sizes, groups), (fp8_sizes, fp8_groups) = (zip(*x, strict=True) for x in (plain, fp8))
    return Weights(
        text,
        nbytes(parts["vae"]),
        (sum(sizes), sum(fp8_sizes)),
        (max(groups), max(fp8_groups)),
        (max(sizes), max(fp8_sizes)) if len(transformers) > 1 else None,
    )


def nbytes(module: nn.Module) -> int:
    """Bytes of all parameters."""
    return sum(p.numel() * p.element_size() for p in module.parameters())


def _group_bytes(module: nn.Module) -> int:
    """Bytes on the device under offload=group: two blocks, one prefetched, and all other weights."""
    blocks = [b for m in module.children() if isinstance(m, nn.ModuleList) for b in m]
    sizes = sorted(nbytes(b) for b in blocks)
    return nbytes(module) - sum(sizes) + sum(sizes[-2:])
