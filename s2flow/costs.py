"""What a clip costs before it is made: FLOPs, seconds and peak memory of every stage, without weights.

The stages run as they are, on the meta device (`backbones.blank`): tensors have shapes and types and
no data. A dispatch mode counts the FLOPs of every matrix product and convolution, and the bytes of all
storages that are alive at once (a Python reference keeps one alive, as it would on a GPU). Fused
attention is taken as what a flash kernel allocates, its output, and counted as 4 Lq Lk d per head.
So the model follows diffusers' code; what it comes down to, with d the width, e bytes a number, F the
width of the feed-forward and L the video tokens of a batch:

    linear       2 L x (weights that video tokens meet): Wan 6 d^2 + 2 d F, HunyuanVideo 12 d^2 a layer
    attention    4 L^2 d f a layer, f the density of the windows; joint text is always dense:
                 (f Lv^2 + 2 Lv Lt + Lt^2) / (Lv + Lt)^2 of the dense one
    flow         forwards x (linear + attention); N at LR, t_i at HR (twice under heun), times two
                 passes where guidance is not embedded
    peak, Wan in bfloat16, bytes a token: max(22 d, 8 d + 4 F) + rotary tables of 8 bytes x head_dim.
                 22 d: residual, the block's input, branch, its input and the last branch (10 d) beside
                 gate product, residual and their sum in float32 (12 d). 8 d + 4 F: both sides of GELU
    peak, HunyuanVideo in bfloat16: 36 d in single blocks: both residuals, norm, MLP (8 d), q, k, v and
                 their input (22 d), beside rotary embedding in float32 (14 d)
    recorded     coverage rows at LR, at most `windows.coverage_by_heads`'s limit at a time;
                 six latents in float32 of the flow's own; trajectories are on the CPU
    autoencoder  one tile is run as it is for its peak and its FLOPs per pixel; the loop over tiles, its
                 concatenations and our conversions are run with the networks left out

    peak of a stage = weights that are there + state + activations

Weights that are there: all of them, or those in use (offload=model), or of the transformer its
largest two blocks and what belongs to no block (offload=group). Of two experts one is in use.

Left out: the CUDA context and workspaces of kernels (`RESERVE`), fragmentation (`SLACK`), text
encoders' activations (below a GiB). Seconds are FLOPs over a stated rate, an assumption (`RATES`), with
weights travelling at `BUS` under offload=group if that takes longer: a scale, not a promise.
"""

import contextlib
import math
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from s2flow.backbones.blank import Answers
from s2flow.backbones.placement import FP8, tile_vae
from s2flow.flow import Trajectory, sigma_grid
from s2flow.handoff import hand_off, resize_video
from s2flow.plan import inward_box
from s2flow.recipe import Recipe
from s2flow.windows import Box, coverage_bytes, fraction_of_volume, realised_density

GIB = 2**30
RATES = {"H200": 400, "H100": 400, "H800": 400, "B200": 800, "A100": 180, "4090": 120, "cpu": 0.05}
VAE_SHARE = 0.1  # of that rate, for the autoencoder's float32 convolutions
HANDOFFS = {"macs": "latent"}  # of methods with a hand-off of their own; others use the VAE
BUS = 25e9  # bytes a second from the CPU to a GPU
RESERVE, SLACK = 1.0, 1.05  # GiB, and a factor
STATE = 6  # latents in float32 that a flow holds: z, v, two derivatives, a step's temporaries


class Trace(TorchDispatchMode):
    """Counts FLOPs and live bytes of everything that runs inside; see the module."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = self.live = self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            count = flop_registry[func._overloadpacket]
            self.flops += count(*args, **(kwargs or {}), out_val=out)
        if not any(r.alias_info for r in func._schema.returns):  # no view, not in place
            for t in out if isinstance(out, (tuple, list)) else (out,):
                if isinstance(t, Tensor):
                    self._born(t.untyped_storage())
        return out

    def beside(self, extra: int) -> None:
        """So many bytes more than what is alive now were needed for a moment."""
        self.peak = max(self.peak, self.live + extra)

    def _born(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._seen:
            self._seen.add(key)
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._died, key, size)

    def _died(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.live -= size


class _Fused(TorchFunctionMode):
    """Attention and RMS norm as one kernel each: on the meta device torch would spell them out."""

    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self.trace = trace

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.scaled_dot_product_attention:
            q, k, v = args[:3] if len(args) > 2 else (kwargs[n] for n in ("query", "key", "value"))
            self.trace.flops += attention_flops(q, k)
            return torch.empty_like(q)
        if func in (F.rms_norm, torch.rms_norm):
            return torch.empty_like(args[0])
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def tracing(fused: bool = True) -> Iterator[Trace]:
    """A `Trace` around a block; fused=False lets real attention run, as on a CPU."""
    with torch.no_grad(), Trace() as trace, _Fused(trace) if fused else contextlib.nullcontext():
        yield trace


def attention_flops(q: Tensor, k: Tensor) -> int:
    """4 Lq Lk d of every head: scores and weighted sum. q, k: (B, heads, L, d)."""
    return 4 * math.prod(q.shape) * k.shape[-2]


# -- one forward ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Forward:
    """One guided velocity: FLOPs outside and inside self-attention (dense), bytes at its peaks.

    attending: bytes alive when self-attention starts; video: tokens, without text; q: (B, heads, L, d)
    of self-attention, text included; size: bytes of one of its numbers.
    """

    linear: int
    attention: int
    peak: int
    attending: int
    video: int
    q: tuple[int, int, int, int]
    size: int

    def flops(self, f: float = 1.0) -> float:
        """With windows of density f."""
        joint = self.q[2]
        video, text = self.video, joint - self.video
        share = (f * video**2 + 2 * video * text + text**2) / joint**2
        return self.linear + self.attention * share

    def peak_with_windows(self, f: float) -> int:
        """The plain-torch windows copy q, k, v and the output of heads of one window, and keys."""
        return max(self.peak, int(self.attending + self.size * math.prod(self.q) * (5 + 2 * f)))


def forward_cost(backbone: Any, shape: tuple, batch: int, guidance: float) -> Forward:
    """One `backbone.velocity` of a latent (C, T, h, w) on the meta device."""
    condition = backbone.blank_condition(batch, guidance)
    z = torch.empty(batch, *shape, device=backbone.device)
    seen = {"flops": 0, "live": 0, "shape": None, "size": 0}

    with tracing() as trace:

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            seen["flops"] += attention_flops(q, k)
            seen["live"] = max(seen["live"], trace.live)
            seen["shape"], seen["size"] = tuple(q.shape), q.element_size()
            return torch.empty_like(q)

        with Answers(), backbone.router.replacing(attend):
            backbone.velocity(z, 1.0, condition)
    video = math.prod(backbone.token_grid(shape))
    found = (seen["flops"], trace.peak, seen["live"], video, seen["shape"], seen["size"])
    return Forward(trace.flops, *found)


# -- the autoencoder --------------------------------------------------------------------------


@dataclass(frozen=True)
class Pass:
    """FLOPs and peak bytes of some work of the autoencoder."""

    flops: int
    peak: int


def vae_cost(vae: Any, work: Callable[[], Any]) -> Pass:
    """What `work` costs, which calls the autoencoder; its networks run on one tile only."""
    with tracing() as trace, contextlib.ExitStack() as stack:
        if hasattr(vae, "tile_sample_min_height"):
            for side in ("encoder", "decoder"):
                stack.enter_context(_left_out(vae, side, trace))
            for name in ("blend_v", "blend_h", "blend_t"):
                stack.enter_context(_instead(vae, name, lambda a, b, extent: b))
        work()
    return Pass(trace.flops, trace.peak)


@contextlib.contextmanager
def _instead(owner: Any, name: str, value: Any) -> Iterator[None]:
    setattr(owner, name, value)
    try:
        yield
    finally:
        delattr(owner, name)


def _left_out(vae: Any, side: str, trace: Trace):
    """The network's calls become empty outputs, with the peak and FLOPs of the largest shape seen."""
    network, known = getattr(vae, side), {}
    run = network.forward

    def forward(x: Tensor, feat_cache=None, feat_idx=None, first_chunk=False) -> Tensor:
        cached = feat_cache is not None
        volume = math.prod(x.shape[-2:] if cached else x.shape[2:])
        if not known or volume > max(known):  # border tiles, and the last frames, are smaller
            known.clear()
            known[volume] = _interior(run, vae, side, x, cached)  # not under `trace`
        ((largest, (peak, rate)),) = known.items()
        trace.beside(peak * volume // largest)
        out = x.new_empty(_shape_after(vae, side, x.shape, cached, first_chunk))
        trace.flops += int(rate * math.prod((x if side == "encoder" else out).shape[2:]))
        return out

    return _instead(network, "forward", forward)


def _shape_after(vae: Any, side: str, shape: tuple, cached: bool, first: bool) -> tuple:
    """Shape of what encoder or decoder returns; `cached`: chunk by chunk, as Wan's do."""
    B, _, t, h, w = shape
    config = vae.config
    s = vae.spatial_compression_ratio // (getattr(config, "patch_size", None) or 1)
    if side == "encoder":
        channels = 2 * (config.z_dim if "z_dim" in config else config.latent_channels)
        return B, channels, 1 if cached else (t - 1) // 4 + 1, h // s, w // s
    frames = (1 if first else 4) if cached else 4 * (t - 1) + 1
    return B, config.out_channels, frames, h * s, w * s


def _interior(run: Callable, vae: Any, side: str, x: Tensor, cached: bool) -> tuple[int, float]:
    """(peak bytes, FLOPs per pixel of the video side) of the network itself on one such tile.

    A cached network is run on three chunks: by the last one its caches are full.
    """
    B, C, t, h, w = x.shape
    with torch.utils._python_dispatch._disable_current_modes(), tracing() as inner:
        if not cached:
            out = run(given := x.new_empty(x.shape))
            return inner.peak - given.nbytes, inner.flops / math.prod(
                (out if side == "decoder" else x).shape[2:]
            )
        cache = [None] * vae._cached_conv_counts[side]
        for chunk in range(3):
            before = inner.flops
            frames = 4 if side == "encoder" and chunk else 1
            first = {"first_chunk": chunk == 0} if side == "decoder" else {}
            given = x.new_empty(B, C, frames, h, w)
            out = run(given, feat_cache=cache, feat_idx=[0], **first)
        pixels = math.prod((out if side == "decoder" else given).shape[2:])
        return inner.peak - given.nbytes, (inner.flops - before) / pixels


# -- a clip -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stage:
    """One stage: which part works ("text", "transformer" or "vae"), FLOPs, bytes beside weights.

    forwards: guided velocities; density: f of its windows.
    """

    name: str
    part: str
    tokens: int
    flops: float
    bytes: int
    forwards: float = 0
    density: float = 1.0


@dataclass(frozen=True)
class Weights:
    """Bytes by part; of the transformer as (plain, fp8).

    transformer: of all experts; group: on the device under offload=group; expert: of the largest one,
    where there are several, of which only one is in use.
    """

    text: int
    vae: int
    transformer: tuple[int, int]
    group: tuple[int, int]
    expert: tuple[int, int] | None = None

    def there(self, part: str, offload: str, fp8: bool) -> int:
        """Bytes of weights on the device while a part works."""
        if offload == "none":
            return self.text + self.vae + self.transformer[fp8]
        moved = self.group[fp8] if offload == "group" else self.one(fp8)
        return {"text": self.text, "vae": self.vae, "transformer": moved}.get(part, 0)

    def one(self, fp8: bool) -> int:
        """Bytes of the transformer that makes one forward."""
        return (self.expert or self.transformer)[fp8]


@dataclass
class Costs:
    """A batch of clips, measured without weights; see `measure`."""

    weights: Weights
    stages: list[Stage]  # in the order of a run
    heads: int = 1  # of the transformer: ranks must divide them

    def peak(self, stage: Stage, offload: str = "none", fp8: bool = False, ranks: int = 1) -> int:
        """Bytes on one device at the worst moment of a stage."""
        shared = ranks if stage.part == "transformer" else 1
        return self.weights.there(stage.part, offload, fp8) + stage.bytes // shared

    def seconds(
        self, stage: Stage, tflops: float, offload: str = "none", fp8: bool = False, ranks: int = 1
    ) -> float:
        """FLOPs over the rate; under offload=group no faster than weights travel."""
        if stage.part == "vae":
            return stage.flops / (tflops * VAE_SHARE * 1e12)
        seconds = stage.flops / (tflops * 1e12) / (ranks if stage.part == "transformer" else 1)
        if offload == "group" and stage.part == "transformer":
            seconds = max(seconds, stage.forwards * self.weights.one(fp8) / BUS)
        return seconds


def measure(backbone: Any, r: Recipe, batch: int = 1) -> Costs:
    """Costs of one batch under a recipe. `backbone`: on the meta device, and spent afterwards."""
    low, high = (backbone.latent_shape(*size, r.frames) for size in (r.low, r.high))
    has_low = "low" in r.knobs
    stages = [_text_stage(backbone, r, batch)]
    if has_low:
        once = forward_cost(backbone, low, batch, r.guidance)
        recorded = coverage_bytes(once.q, r.coverage_rows)
        held = STATE * 4 * batch * math.prod(low)
        flops = r.steps * once.flops()
        used = max(once.peak, once.attending + recorded) + held
        stages.append(Stage("lr", "transformer", once.video, flops, used, r.steps))
    if "windows" in r.knobs:
        stages.append(Stage("plan", "none", 0, 0.0, 0))
    if r.method != "bicubic":
        stages.append(_high_stage(backbone, r, high, batch))
    stages += vae_stages(backbone, r, batch)
    order = ("text", "lr", "plan", "handoff", "hr", "decode")
    stages.sort(key=lambda s: order.index(s.name))
    heads = backbone.transformer.config.num_attention_heads
    return Costs(weights_of(backbone), stages, heads)


def _high_stage(backbone: Any, r: Recipe, shape: tuple, batch: int) -> Stage:
    once = forward_cost(backbone, shape, batch, r.guidance)
    steps = r.t_i if "t_i" in r.knobs else r.steps
    windowed = "windows" in r.knobs and not r.whole_grid
    dense = min(r.windows.dense_steps, steps) if windowed else steps
    grids = [
        backbone.token_grid(backbone.latent_shape(*size, r.frames)) for size in (r.low, r.high)
    ]
    f = density(r, backbone.router.layers, *grids) if windowed else 1.0
    twice = 2 - 1 / steps if "solver" in r.knobs and r.solver == "heun" else 1
    flops = twice * ((steps - dense) * once.flops(f) + dense * once.flops())
    peak = once.peak_with_windows(f) if windowed else once.peak
    if windowed and r.windows.name in ("oracle", "svg"):  # rows of logits beside the forward
        peak = max(peak, once.attending + 2 * coverage_bytes(once.q, r.coverage_rows))
    held = STATE * 4 * batch * math.prod(shape)
    return Stage("hr", "transformer", once.video, flops, peak + held, twice * steps, f)


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
    count = 0
    for name, part in backbone.pipeline.components.items():
        if name.startswith("text_encoder"):
            looked_up = sum(
                m.weight.numel() for m in part.modules() if isinstance(m, nn.Embedding)
            )
            count += sum(p.numel() for p in part.parameters()) - looked_up
    return Stage("text", "text", tokens, 2.0 * count * tokens * passes, GIB // 2)


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
        stages.append(Stage("handoff", "vae", 0, cost.flops, cost.peak + held))

    def decode() -> Any:
        if r.method == "bicubic":
            small = backbone.decode(latent(low))
            return small, resize_video(small, *r.high)
        video = backbone.decode(latent(high))
        return video, backbone.decode(latent(low)) if "low" in r.knobs else None

    cost = vae_cost(backbone.vae, decode)
    stages.append(Stage("decode", "vae", 0, cost.flops, cost.peak))
    return stages


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
