"""The estimate against the paper's clock, known peaks, closed forms, and real forwards on the CPU."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from s2flow.backbones import hunyuan, hunyuan15, ulysses, wan
from s2flow.backbones.base import Origin
from s2flow.backbones.published import PUBLISHED
from s2flow.backbones.tiles import tile_vae
from s2flow.cascade import Cascade
from s2flow.costs.blank import Answers, blank, part_config
from s2flow.costs.clip import high_stage, measure, nbytes, weights_of
from s2flow.costs.clock import BUS, Rates
from s2flow.costs.forward import forward_cost
from s2flow.costs.stages import GIB, Costs, Stage, Weights
from s2flow.costs.trace import tracing
from s2flow.costs.vae import vae_cost
from s2flow.errors import UserError
from s2flow.methods import method

SOURCE = {  # family, repository
    "wan_1_3b": ("wan", "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"),
    "wan_14b": ("wan", "Wan-AI/Wan2.1-T2V-14B-Diffusers"),
    "hunyuan": ("hunyuan", "hunyuanvideo-community/HunyuanVideo"),
}
LATER = {
    "wan_2_2_5b": ("wan", "Wan-AI/Wan2.2-TI2V-5B-Diffusers"),
    "wan_2_2_14b": ("wan", "Wan-AI/Wan2.2-T2V-A14B-Diffusers"),
    "hunyuan_1_5": ("hunyuan15", "hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-720p_t2v"),
}
FAMILY = {"wan": "wan", "hunyuan": "hunyuan"} | {name: f for name, (f, _) in LATER.items()}
every = pytest.mark.parametrize("case", list(FAMILY), indirect=True)
PUBLISHED_SIZES = {  # parameters; (weights, peak) in GiB at 460,800 tokens in bfloat16, elsewhere
    "wan_1_3b": (1_418_996_800, 3, 21),
    "wan_14b": (14_288_491_584, 27, 50),
    "hunyuan": (12_821_012_544, 24, 48),
}
LOW, HIGH = (16, 30, 96, 160), (16, 30, 192, 320)  # 768x1280 and 1536x2560, 117 frames


@pytest.fixture(scope="module", params=list(SOURCE))
def real(request):
    family, source = SOURCE[request.param]
    backbone = blank(family, Origin(request.param, source, "main", "bfloat16"))
    low, high = (forward_cost(backbone, shape, 1, 6.0) for shape in (LOW, HIGH))
    own = nbytes(backbone.transformer)  # before a test stores it as fp8
    return SimpleNamespace(name=request.param, backbone=backbone, low=low, high=high, own=own)


def test_published_sizes_and_peaks(real):
    transformer = real.backbone.transformer
    parameters, weights, peak = PUBLISHED_SIZES[real.name]
    assert sum(p.numel() for p in transformer.parameters()) == parameters
    assert all(p.is_meta for p in transformer.parameters())
    assert real.high.video == 460_800
    assert real.high.peak / GIB == pytest.approx(peak, rel=0.05)
    assert real.own / GIB == pytest.approx(weights, rel=0.15)  # "3" is 2.65


def test_the_closed_forms_of_the_docstring(real):
    """The paper's clock among them, see test_paper_clock.py."""
    c, tokens = real.backbone.transformer.config, real.high.video
    d = c.num_attention_heads * c.attention_head_dim
    if real.name == "hunyuan":
        a_token, linear = 36 * d, (c.num_layers + c.num_single_layers) * 12 * d**2
        passes, rotary, cross = 1, 4, 0
    else:
        a_token = max(22 * d, 8 * d + 4 * c.ffn_dim)
        linear = c.num_layers * (6 * d**2 + 2 * d * c.ffn_dim)
        cross = c.num_layers * 2 * 512 * d  # to 512 text tokens, counted with the linear part
        passes, rotary = 2, 8
    peak = a_token + rotary * c.attention_head_dim
    assert real.high.peak / tokens == pytest.approx(peak, rel=0.02)
    flops = 2 * tokens * (linear + cross) * passes
    assert real.high.linear == pytest.approx(flops, rel=0.01)
    layers = real.backbone.router.layers
    assert real.high.attention == passes * layers * 4 * real.high.q[2] ** 2 * d
    # a forward reads its weights once a pass
    assert real.high.moved.weights == pytest.approx(passes * real.own, rel=0.005)
    B, heads, L, d = real.high.q
    assert real.high.moved.attention == 4 * 2 * B * heads * L * d * real.high.calls
    assert real.high.calls == passes * layers
    low, high = real.low.moved, real.high.moved
    assert low.products * 4 == pytest.approx(high.products, rel=0.02)
    assert low.rest * 4 == pytest.approx(high.rest, rel=0.02)


def test_kernels_that_copy_nothing_need_no_more_than_the_dense_one(real):
    tight = replace(real.high, peak=real.high.attending)  # as if attention were the worst moment
    assert tight.peak_with_windows("triton") == tight.peak
    small, large = (replace(tight, q=(1, 24, L, 128), size=2) for L in (4096, 460_800))
    one = 2 * 4096 * 128  # of a head; small: the output, and q, k, v, output of all heads at once
    assert small.peak_with_windows("tiled") == tight.peak + 6 * 24 * one
    one = 2 * 460_800 * 128  # large: of one head at a time
    assert large.peak_with_windows("tiled") == tight.peak + (24 + 5) * one


def test_fp8_and_group_offload_shrink_the_weights(real):
    w = weights_of(real.backbone)
    assert 0.5 <= w.transformer[1] / w.transformer[0] < 0.66
    assert w.group[0] < 0.1 * w.transformer[0]
    assert w.resident("transformer", "none", False) == w.text + w.vae + w.transformer[0]
    assert w.resident("vae", "model", True) == w.vae
    assert w.resident("transformer", "group", True) == w.group[1]
    text = w.text / 2  # bfloat16
    assert text / 1e9 == pytest.approx(7.6 if real.name == "hunyuan" else 5.7, rel=0.02)


# -- the later families -----------------------------------------------------------------------

PARTS = {  # bytes of text encoders and autoencoder, as others list them
    "wan_2_2_5b": (5.68e9, 0.70e9),
    "wan_2_2_14b": (5.68e9, 0.127e9),
    "hunyuan_1_5": (7.07e9 + 0.22e9, 1.26e9),
}


@pytest.mark.parametrize("name", LATER)
def test_weights_of_the_later_families(name):
    """Two experts lie there together, and one alone works; sizes of parts as published."""
    family, source = LATER[name]
    backbone = blank(family, Origin(name, source, "main", "bfloat16"))
    one, (text, vae) = nbytes(backbone.transformer), PARTS[name]
    w = weights_of(backbone)
    assert w.text / 2 == pytest.approx(text, rel=0.02)
    assert w.vae / 4 == pytest.approx(vae, rel=0.02)
    experts = 2 if name == "wan_2_2_14b" else 1
    assert w.transformer[0] == experts * one
    assert w.resident("transformer", "none", False) == w.text + w.vae + experts * one
    assert w.resident("transformer", "model", False) == one
    assert w.resident("transformer", "group", False) < 0.1 * one
    assert 0.5 <= w.resident("transformer", "model", True) / one < 0.7
    stage = Stage("hr", "transformer", 1, 0.0, 0, 10)
    seconds = Costs(w, []).seconds(stage, Rates(1.0), "group")
    assert seconds == pytest.approx(10 * one / BUS)


def test_a_second_expert_is_there_only_where_the_index_says_so():
    assert blank("wan", Origin("x", SOURCE["wan_1_3b"][1])).transformer_2 is None
    both = blank("wan", Origin("x", LATER["wan_2_2_14b"][1]))
    assert both.transformer_2 is not None and both.boundary == 0.875


def test_what_a_model_asks_of_its_data_is_answered_without_any():
    x, mask = torch.empty(3, 2, device="meta"), torch.empty(3, device="meta") == 0
    with Answers():
        assert x[mask].shape == (3, 2) and x[~mask].shape == (0, 2)
        assert bool(torch.all(x == 0))
        kept = torch.ones(2, dtype=torch.bool)
        assert torch.zeros(2)[~kept].shape == (0,) and not torch.zeros(1)
    assert x[:2].shape == (2, 2)


# -- against real forwards of tiny models -----------------------------------------------------


@pytest.fixture(scope="module")
def planned(case):
    """The same tiny checkpoint, from its configs alone."""
    return blank(FAMILY[case.name], Origin(case.name, str(case.folder)))


def filled(condition):
    """The blank condition of a real backbone, with numbers in it."""
    for value in vars(condition).values():
        if hasattr(value, "states"):  # of HunyuanVideo-1.5
            filled(value)
        elif isinstance(value, torch.Tensor) and value.is_floating_point():
            value.zero_()
    return condition


@every
@pytest.mark.parametrize("batch", [1, 2])
def test_flops_and_peak_of_a_real_forward(case, planned, batch, monkeypatch):
    # its refiner's mask of 1000 x 1000, which a CPU widens to floats, would outweigh a tiny video
    monkeypatch.setattr(hunyuan15, "LONGEST", (12, 20))
    shape = (case.backbone.latent_shape(64, 64, 5)[0], 4, 24, 32)
    guess = forward_cost(planned, shape, batch, 5.0)
    condition = filled(case.backbone.blank_condition(batch, 5.0))
    z = torch.zeros(batch, *shape)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        case.backbone.velocity(z, 0.5, condition)
    assert guess.linear + guess.attention == pytest.approx(counter.get_total_flops(), rel=0.01)
    with tracing(fused=False) as trace, sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        case.backbone.velocity(z, 0.5, condition)
    assert guess.peak == pytest.approx(trace.peak, rel=0.2)
    # a CPU spells out RMS norms, and so moves more
    assert 0.7 * trace.moved.total < guess.moved.total <= trace.moved.total
    with tracing() as fused:
        case.backbone.velocity(z, 0.5, condition)
    assert guess.moved.total == pytest.approx(fused.moved.total, rel=0.01)


@pytest.mark.parametrize("case", sorted({*FAMILY} - {"wan_2_2_14b"}), indirect=True)  # wan's
@pytest.mark.parametrize("tile", [None, (64, 32)])
def test_flops_and_peak_of_real_decoding_and_encoding(case, planned, tile):
    """The networks' share of a few tiles, and the loop over all of them, add up to the real thing."""
    size, latent = (96, 128), case.backbone.latent_shape(96, 128, 13)

    def works(backbone, device):
        tile_vae(backbone.vae, tile)
        z = torch.zeros(1, *latent, device=device)
        video = torch.zeros(1, 13, *size, 3, device=device)
        return lambda: backbone.decode(z), lambda: backbone.encode(video)

    pairs = zip(works(case.backbone, "cpu"), works(planned, "meta"), strict=True)
    for real, guessed in pairs:
        with tracing(fused=False) as trace, FlopCounterMode(display=False) as counter:
            real()
        cost = vae_cost(planned.vae, guessed)
        assert cost.peak == pytest.approx(trace.peak, rel=0.2)
        assert cost.flops == pytest.approx(counter.get_total_flops(), rel=0.05)
        assert cost.moved.total == pytest.approx(trace.moved.total, rel=0.2)
    tile_vae(case.backbone.vae, None)


# -- a clip -----------------------------------------------------------------------------------


def test_stages_follow_the_recipe(planned, case, recipe):
    conf = {"wan": "wan_1_3b", "hunyuan": "hunyuan"}[case.name]
    size = ["low=[64,96]", "high=[128,192]", "frames=5", "brick_low=[1,1,1]", "brick_high=[1,2,2]"]
    words = [f"backbone={conf}", *size, "vae_tile=[]", "steps=10"]

    def stages(*more):
        r = recipe(*words, *more)
        made = measure(blank(FAMILY[case.name], Origin(case.name, str(case.folder))), r)
        return {s.name: s for s in made.stages}

    shape = planned.latent_shape(128, 192, 5)
    once = forward_cost(planned, shape, 1, recipe(*words).guidance)

    def high(*more):
        return high_stage(planned, recipe(*words, "t_i=6", *more), once, shape, 1)

    half = stages("t_i=6", "sparsity=0.5")
    assert list(half) == ["text", "lr", "plan", "handoff", "hr", "decode"]
    assert half["lr"].tokens * 4 == half["hr"].tokens and half["lr"].forwards == 10
    assert half["hr"].flops == 6 * once.flops(0.5) and half["hr"].density == 0.5
    assert high("windows=full").flops == 6 * once.flops()
    assert high("density=per_axis").flops == 6 * once.flops(0.125)
    assert high("windows.dense_steps=2").flops == 4 * once.flops(0.5) + 2 * once.flops()
    layers = planned.router.layers
    assert high("windows.dense_layers=[0]").density == pytest.approx(0.5 + 0.5 / layers)
    heun = high("windows=full", "solver=heun")
    assert heun.flops == pytest.approx(11 * once.flops()) and heun.forwards == pytest.approx(11)
    native = stages("method=native")
    assert list(native) == ["text", "hr", "decode"] and native["hr"].flops == 10 * once.flops()
    assert list(stages("method=bicubic")) == ["text", "lr", "decode"]
    assert half["handoff"].flops > 0 and half["decode"].flops > native["decode"].flops


def test_the_embedded_backbone_can_be_planned_too(recipe):
    made = measure(blank("tiny", Origin("micro")), recipe(), 1)
    assert made.stages[1].tokens * 4 == made.stages[4].tokens == 8 * 8 * 12
    assert all(s.bytes < GIB for s in made.stages)


def test_what_cannot_be_known_is_one_line(tmp_path):
    with pytest.raises(UserError, match="sizes are not known here; type backbone.source=FOLDER"):
        blank("wan", Origin("wan_1_3b", "nobody/nothing", "main"))
    with pytest.raises(UserError, match="model_index.json cannot be read"):
        blank("wan", Origin("wan_1_3b", str(tmp_path)))
    with pytest.raises(UserError, match="cannot be planned yet"):
        blank("other", Origin("x", str(tmp_path)))
    for source in PUBLISHED:
        assert part_config("wan", Origin("x", source), "transformer")


def test_group_offload_is_no_faster_than_its_bus():
    weights = Weights(0, 0, (10 * 2**30, 5 * 2**30), (2**30, 2**29))
    stage = Stage("hr", "transformer", 100, 1e12, GIB, 10)
    made = Costs(weights, [stage])
    assert made.seconds(stage, Rates(1.0)) == 1
    assert made.seconds(stage, Rates(1.0), "group") == pytest.approx(100 * 2**30 / BUS)
    assert made.seconds(stage, Rates(1.0), "none", ranks=4) == 0.25
    assert made.peak(stage, "model") == 11 * GIB and made.peak(stage, "group") == 2 * GIB
    assert math.isclose(made.peak(stage, "model", ranks=2), 10.5 * GIB)


# -- bytes moved ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_bytes_of_a_linear_layer_are_exact(kind, bias):
    layer = torch.nn.Linear(48, 80, bias, device="meta", dtype=kind)
    x = torch.empty(7, 48, device="meta", dtype=kind)
    with tracing(weights=layer) as trace:
        layer(x)
    size = x.element_size()
    assert trace.moved.weights == size * (48 * 80 + 80 * bias)
    assert trace.moved.products == size * 7 * (48 + 80) and trace.moved.rest == 0
    assert trace.flops == 2 * 7 * 48 * 80


def test_what_moves_bytes_and_what_does_not():
    x, index = torch.empty(6, 4, device="meta"), torch.zeros(2, dtype=torch.long, device="meta")

    def moved(work):
        with tracing() as trace:
            work()
        return trace.moved.total

    assert moved(lambda: x.t().reshape(2, 3, 4)[0]) == 2 * 96  # a view, a copy, a view
    assert moved(lambda: x.view(3, 8).transpose(0, 1)) == 0
    assert moved(lambda: torch.empty_like(x)) == 0
    assert moved(lambda: x + x) == 3 * 96 and moved(lambda: x.add_(1)) == 2 * 96
    assert moved(lambda: x.zero_()) == 96 and moved(lambda: x.copy_(x)) == 2 * 96
    assert moved(lambda: x[:1].expand(6, 4) * x) == 3 * 96  # it lies in a storage of 96
    assert moved(lambda: torch.empty(1, device="meta").expand(6, 4) * x) == 4 + 2 * 96
    assert moved(lambda: x[index]) == 2 * 32 + 16  # of a table what is looked up
    assert moved(lambda: x.to(torch.bfloat16)) == 96 + 48
    q = torch.empty(1, 2, 5, 4, device="meta")
    attend = torch.nn.functional.scaled_dot_product_attention
    assert moved(lambda: attend(q, q, q)) == 4 * 160


# -- what ranks send --------------------------------------------------------------------------


class Counting:
    """Stands for torch.distributed in `ulysses`: counts the bytes that one of k ranks sends."""

    def __init__(self, k, rank):
        self.k, self.rank, self.sent = k, rank, 0

    def get_world_size(self, group):
        return self.k

    def get_rank(self, group):
        return self.rank

    def all_to_all_single(self, out, flat, out_sizes, in_sizes, group):
        assert sum(in_sizes) == flat.numel() and sum(out_sizes) == out.numel()
        self.sent += (flat.numel() - in_sizes[self.rank]) * flat.element_size()
        out.zero_()

    def all_gather(self, found, x, group):
        self.sent += x.nbytes * (self.k - 1)
        for part in found:
            part.copy_(x)


@pytest.fixture
def shared(case, monkeypatch):
    """shared(k, rank): (a real tiny backbone as that rank holds it, what it sends)."""
    family = {"wan": wan, "hunyuan": hunyuan, "hunyuan_1_5": hunyuan15}.get(case.name, wan)
    made = []

    def as_rank(k, rank):
        counting = Counting(k, rank)
        monkeypatch.setattr(ulysses, "dist", counting)
        made.append(family.from_origin(Origin(case.name, str(case.folder)), "cpu"))
        ulysses.share_videos(made[-1], None)
        return made[-1], counting

    yield as_rank
    for backbone in made:
        backbone.release()


@pytest.mark.parametrize("size", [(64, 96, 5), (48, 48, 1)])  # the second: an odd number of tokens
def test_what_a_forward_sends_is_what_ulysses_sends(case, planned, shared, size):
    shape = case.backbone.latent_shape(*size)
    once = forward_cost(planned, shape, 2, 5.0)
    sent = []
    for rank in range(2):
        backbone, counting = shared(2, rank)
        condition = filled(backbone.blank_condition(2, 5.0))
        backbone.velocity(torch.zeros(2, *shape), 0.5, condition)
        sent.append(counting.sent)
    assert once.sent(2) == max(sent) == sent[0] and once.sent(1) == 0


@pytest.mark.parametrize("case", ["wan"], indirect=True)
def test_what_a_clip_sends_is_what_ulysses_sends(case, planned, shared, recipe):
    """LR flow, coverage of every layer and step, HR flow in windows of different volume."""
    words = ["backbone=wan_1_3b", "low=[32,48]", "high=[64,96]", "frames=5", "steps=3", "t_i=2"]
    words += ["brick_low=[1,1,1]", "brick_high=[1,2,2]", "backbone.dtype=float32"]
    r = recipe(*words, "windows=coverage", "windows.target=0.7")
    stages = measure(blank("wan", Origin(case.name, str(case.folder))), r).stages
    backbone, counting = shared(2, 0)
    method("s2flow").generate(Cascade(backbone, r, ["a red star"], [3]))
    by_name = {s.name: s.sent(2) for s in stages}
    assert counting.sent == sum(by_name.values())
    assert by_name["lr"] > by_name["plan"] > 0 and by_name["hr"] > 0
    assert by_name["text"] == by_name["handoff"] == by_name["decode"] == 0
