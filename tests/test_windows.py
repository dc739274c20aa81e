"""Windows: equal volumes, equal key counts, coverage that is exact, choices that are best."""

import itertools
import math
import re

import pytest
import torch
from plain import coverage_exact, coverage_of_all_boxes
from torch.utils._python_dispatch import TorchDispatchMode

from s2flow import coverage as cov
from s2flow import grid, windows
from s2flow.coverage import KEYS, masses
from s2flow.errors import UserError
from s2flow.policies import decide
from s2flow.policies.base import Case, Policy

BRICK_GRIDS = [(8, 4, 6), (8, 8, 12), (15, 12, 20)]
GRIDS = [  # tokens, brick
    ((4, 4, 6), (1, 1, 1)),
    ((4, 4, 6), (1, 2, 2)),
    ((5, 7, 6), (2, 4, 4)),  # ragged on every axis
    ((3, 5, 4), (1, 2, 3)),  # ragged on two
]


def explicit_mask(tokens, brick, box):
    """M from the sentence alone, one query at a time, as an oracle."""
    g = [math.ceil(n / b) for n, b in zip(tokens, brick, strict=True)]
    M = torch.zeros(*tokens, *tokens, dtype=torch.bool)
    for query in itertools.product(*map(range, tokens)):
        keys = []
        for x, b, w, n in zip(query, brick, box, g, strict=True):
            first = max(0, min(x // b - w // 2, n - w))
            keys.append(slice(first * b, (first + w) * b))
        M[query][tuple(keys)] = True
    L = math.prod(tokens)
    return M.view(L, L)


@pytest.mark.parametrize("f", [0.9, 0.75, 0.5, 0.42, 0.25, 0.125, 1 / 64])
@pytest.mark.parametrize("g", BRICK_GRIDS)
def test_candidates_have_equal_volume_and_are_distinct(g, f):
    found = windows.candidates(f, windows.DEFAULT_EXPONENTS, g)
    for box in found:
        assert all(1 <= w <= n for w, n in zip(box, g, strict=True))
        assert abs(math.prod(box) / math.prod(g) / f - 1) <= 0.05 + 1e-9
    assert len(set(found)) == len(found) >= 1
    if 0.1 < f < 0.8:  # naive rounding leaves few or unequal ones; here there is a choice
        assert len(found) >= 3


def test_candidates_point_where_their_exponents_say():
    g = (16, 16, 16)
    for axis in range(3):
        only = [0, 0, 0]
        only[axis] = 1
        (box,) = windows.candidates(0.25, [only], g)
        assert box == tuple(4 if i == axis else 16 for i in range(3))
    assert windows.candidates(0.25, [(0, 0.5, 0.5)], g) == [(16, 8, 8)]
    assert windows.candidates(0.125, [(1 / 3, 1 / 3, 1 / 3)], g) == [(8, 8, 8)]
    # a side below one brick is clamped and its excess handed on
    (box,) = windows.candidates(1 / 32, [(1, 0, 0)], (4, 16, 16))
    assert box[0] == 1 and math.prod(box) == 32  # four bricks of time cannot shrink 32-fold


def test_nearest_box_is_the_nearest_of_all_within_tolerance():
    g, f, sides = (8, 8, 12), 0.3, (5.0, 6.0, 8.0)
    box = windows.nearest_box(sides, f, g)

    def distance(b):
        return sum(math.log(w / s) ** 2 for w, s in zip(b, sides, strict=True))

    volume = f * math.prod(g)
    allowed = [b for b in windows.all_boxes(g) if abs(math.prod(b) / volume - 1) <= 0.05]
    assert distance(box) == min(map(distance, allowed))


@pytest.mark.parametrize(
    ("f", "g"), [(0.001, (2, 2, 2)), (0.9, (1, 2, 2)), (0.3, (1, 2, 3)), (0.45, (1, 1, 5))]
)
def test_an_unreachable_density_is_refused_with_the_nearest_reachable(f, g):
    with pytest.raises(UserError) as error:
        windows.candidates(f, windows.DEFAULT_EXPONENTS, g)
    text = str(error.value)
    assert "\n" not in text
    named = float(re.search(r"nearest reachable f is (\S+)", text)[1])
    volumes = {math.prod(b) / math.prod(g) for b in windows.all_boxes(g)}
    assert min(abs(math.log(v / f)) for v in volumes) == pytest.approx(
        abs(math.log(named / f)), abs=1e-3
    )
    # what it says to type works, under either reading of s
    readings = [windows.fraction_of_volume(0.5, density) for density in ("volume", "per_axis")]
    assert readings == [0.5, 0.125]
    for density in ("volume", "per_axis"):
        s = float(re.search(rf"sparsity=(\S+) with density={density}", text)[1])
        reachable = windows.fraction_of_volume(s, density)
        if reachable < 1:
            assert windows.candidates(reachable, windows.DEFAULT_EXPONENTS, g)


@pytest.mark.parametrize(("tokens", "brick"), GRIDS)
def test_mask_is_a_centred_box_shifted_inward(tokens, brick):
    g = grid.brick_grid(tokens, brick)
    for box in windows.all_boxes(g)[:: 5 if math.prod(g) > 50 else 1]:
        expected = explicit_mask(tokens, brick, box)
        assert torch.equal(grid.window_mask(tokens, brick, box), expected)


@pytest.mark.parametrize(("tokens", "brick"), GRIDS)
def test_every_query_sees_its_own_brick_and_equally_many_keys(tokens, brick):
    g = grid.brick_grid(tokens, brick)
    where = grid.brick_of_token(tokens, brick)
    own = (where[:, None] == where[None]).all(-1)
    ragged = any(n % b for n, b in zip(tokens, brick, strict=True))
    for box in windows.all_boxes(g):
        M = grid.window_mask(tokens, brick, box)
        assert (M | ~own).all()  # so that no row is empty, ragged grids included
        keys = M.sum(-1)
        if not ragged:
            assert (keys == math.prod(box) * math.prod(brick)).all()
    assert grid.window_mask(tokens, brick, g).all()


@pytest.mark.parametrize(("tokens", "brick"), GRIDS)
def test_realised_density_is_the_mean_of_the_mask(tokens, brick):
    for box in windows.all_boxes(grid.brick_grid(tokens, brick)):
        mean = float(grid.window_mask(tokens, brick, box).double().mean())
        assert grid.realised_density(tokens, brick, box) == pytest.approx(mean, rel=1e-12)


def random_attention(tokens, heads=3, batch=2, n_text=0, seed=0):
    """Peaked random maps: every head and clip prefers other keys."""
    generator = torch.Generator().manual_seed(seed)
    L = math.prod(tokens)
    logits = 3 * torch.randn(batch, heads, L, L + n_text, generator=generator)
    return logits.softmax(-1)[..., :L]


@pytest.mark.parametrize("n_text", [0, 7])
@pytest.mark.parametrize(("tokens", "brick"), GRIDS)
def test_coverage_of_all_boxes_is_equation_8_for_each(tokens, brick, n_text):
    A = random_attention(tokens, n_text=n_text)
    rows = torch.arange(math.prod(tokens))
    g = grid.brick_grid(tokens, brick)
    every = coverage_of_all_boxes(A, rows, tokens, brick)
    assert every.shape == (2, 3, *g)
    boxes = windows.all_boxes(g)
    for box in boxes[:: max(len(boxes) // 12, 1)]:
        M = explicit_mask(tokens, brick, box)
        truth = (A.double() * M).sum((-1, -2)) / A.double().sum((-1, -2))
        t, h, w = box
        assert torch.allclose(every[..., t - 1, h - 1, w - 1].double(), truth, atol=1e-6)
        exact = coverage_exact(A.double(), tokens, brick, box)
        assert torch.allclose(exact, truth, atol=1e-12)
    assert torch.allclose(every[..., -1, -1, -1], torch.tensor(1.0), atol=1e-6)


def test_coverage_of_sampled_rows_is_that_of_these_rows():
    tokens, brick, box = (4, 4, 6), (1, 2, 2), (2, 1, 2)
    A, rows = random_attention(tokens), torch.tensor([0, 17, 18, 60, 95])
    part = coverage_of_all_boxes(A[:, :, rows], rows, tokens, brick)[..., 1, 0, 1]
    M = explicit_mask(tokens, brick, box)[rows]
    truth = (A[:, :, rows] * M).sum((-1, -2)) / A[:, :, rows].sum((-1, -2))
    assert torch.allclose(part, truth, atol=1e-6)


def test_attention_rows_are_the_rows_of_softmax_attention():
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 2, 3, 40, 16, generator=generator)
    A = (q @ k.transpose(-1, -2) / 4).softmax(-1)
    rows = torch.tensor([0, 3, 30])
    found = cov.attention_rows(q, k, rows, n_video=36)
    assert torch.allclose(found, A[:, :, rows, :36], atol=1e-6)  # text is in the softmax only
    half = cov.attention_rows(q.bfloat16(), k.bfloat16(), rows, n_video=36)
    assert half.dtype == torch.float32


@pytest.mark.parametrize(("length", "rows"), [(1536, 128), (1000, 128), (192, 128), (130, 128)])
def test_sampled_rows_are_stratified_and_reproducible(length, rows):
    found = cov.sample_rows(length, rows, seed=3)
    assert torch.equal(found, cov.sample_rows(length, rows, seed=3))
    assert not torch.equal(found, cov.sample_rows(length, rows, seed=4))
    assert len(found) == rows and (found.diff() >= 0).all()
    for i, row in enumerate(found.tolist()):
        assert i * length / rows - 1 < row < (i + 1) * length / rows
    assert cov.sample_rows(50, 128, seed=0).tolist() == list(range(50))


def local_heads(tokens, heads, seed):
    """q, k (1, heads, L, d) whose attention is Gaussian in each head's own extents, plus content.

    q . k / sqrt(d) = x.y / l^2 - |y|^2 / 2 l^2 + content: up to a constant per row this is
    -|x - y|^2 / 2 l^2, exactly.
    """
    generator = torch.Generator().manual_seed(seed)
    axes = [torch.arange(n) - (n - 1) / 2 for n in tokens]
    x = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, 2)
    span = torch.tensor(tokens, dtype=torch.float32)
    extent = span * (0.04 + 0.5 * torch.rand(heads, 1, 3, generator=generator) ** 2)
    y = x / extent
    content = 0.35 * torch.randn(2, heads, len(x), 4, generator=generator)
    q = torch.cat([y, torch.ones(heads, len(x), 1), content[0]], -1)
    k = torch.cat([y, -0.5 * (y * y).sum(-1, keepdim=True), content[1]], -1)
    return q[None] * math.sqrt(8), k[None]


def test_chosen_window_has_maximal_coverage():
    """Brute force: every candidate's coverage from the full map and an explicit mask."""
    tokens, brick = (4, 4, 6), (1, 1, 1)
    q, k = local_heads(tokens, 16, seed=0)
    A = torch.cat([cov.attention_rows(q, k, torch.arange(96), 96), random_attention(tokens, 16)])
    every = coverage_of_all_boxes(A, torch.arange(96), tokens, brick)
    winners = set()
    for f in (0.5, 0.25, 0.125):
        boxes = windows.candidates(f, windows.DEFAULT_EXPONENTS, tokens)
        brute = torch.stack(
            [(A * explicit_mask(tokens, brick, b)).sum((-1, -2)) for b in boxes], -1
        )
        best = brute.amax(-1)
        chosen = windows.choose(every, boxes)
        for clip, head in itertools.product(range(len(A)), range(16)):
            box = tuple(chosen[clip, head].tolist())
            got = float(brute[clip, head, boxes.index(box)])
            assert got == pytest.approx(float(best[clip, head]), rel=1e-6)
            winners.add(box)
    assert len(winners) > 6  # the heads do differ, or the test would say nothing
    equal = windows.choose(torch.ones(1, 2, 4, 4, 4), [(2, 4, 4), (4, 2, 4)])
    assert equal.tolist() == [[[2, 4, 4]] * 2]  # the first one among equals


def test_sampled_choice_agrees_with_the_exact_one():
    """R = 128 of 1536 rows: the same winner in >= 95 % of heads, or almost the same coverage."""
    tokens, brick, heads, rounds = (8, 12, 16), (1, 2, 2), 8, 3
    g, L = grid.brick_grid(tokens, brick), math.prod(tokens)
    agree, losses, gains = [], [], []
    for seed in range(rounds):
        q, k = local_heads(tokens, heads, seed)
        A = cov.attention_rows(q, k, torch.arange(L), L)
        exact = coverage_of_all_boxes(A, torch.arange(L), tokens, brick)
        rows = cov.sample_rows(L, 128, seed)
        sampled = coverage_of_all_boxes(cov.attention_rows(q, k, rows, L), rows, tokens, brick)
        for f in (0.5, 0.25, 0.125):
            boxes = windows.candidates(f, windows.DEFAULT_EXPONENTS, g)
            r = torch.stack([exact[0, :, a - 1, b - 1, c - 1] for a, b, c in boxes], -1)
            picked = [boxes.index(tuple(b)) for b in windows.choose(sampled, boxes)[0].tolist()]
            got = r[range(heads), picked]
            agree += (got == r.amax(-1)).tolist()
            losses += (r.amax(-1) - got).tolist()
            gains += (r.amax(-1) - r.mean(-1)).tolist()
    share, worst, mean = sum(agree) / len(agree), max(losses), sum(losses) / len(losses)
    print(f"agreement {share:.3f}, loss worst {worst:.2e}, mean {mean:.2e}")
    assert sum(gains) / len(gains) > 0.03  # choosing matters here: chance would lose this much
    assert share >= 0.95
    assert mean <= 1e-3


def test_target_takes_the_smallest_window_that_reaches_it():
    tokens, brick = (4, 4, 6), (1, 2, 2)
    g = grid.brick_grid(tokens, brick)
    q, k = local_heads(tokens, 12, seed=1)
    A = cov.attention_rows(q, k, torch.arange(96), 96)
    every = coverage_of_all_boxes(A, torch.arange(96), tokens, brick)
    for target in (0.5, 0.8, 0.95, 1.0):
        chosen = windows.choose_by_target(every, target)
        for head in range(12):
            reach = {
                b: float(every[0, head, b[0] - 1, b[1] - 1, b[2] - 1])
                for b in windows.all_boxes(g)
                if float(every[0, head, b[0] - 1, b[1] - 1, b[2] - 1]) >= target - 1e-6
            }
            smallest = min((math.prod(b) for b in reach), default=math.prod(g))
            box = tuple(chosen[0, head].tolist())
            assert math.prod(box) == smallest
            equals = [r for b, r in reach.items() if math.prod(b) == smallest]
            assert not equals or reach[box] == pytest.approx(max(equals))
    unreachable = windows.choose_by_target(torch.full((1, 1, 2, 3, 4), 0.9), 0.95)
    assert unreachable.tolist() == [[[2, 3, 4]]]  # the whole grid


def test_a_cap_bounds_the_windows_and_takes_the_best_below_it():
    coverage = torch.rand(2, 3, 2, 3, 4).cumsum(-1).cumsum(-2).cumsum(-3)
    coverage /= coverage[..., -1:, -1:, -1:]
    chosen = windows.choose_by_target(coverage, 0.99, cap=0.5)
    for i, j in [(0, 0), (1, 2)]:
        box = tuple(chosen[i, j].tolist())
        assert math.prod(box) <= 12
        r = coverage[i, j]
        best = max(
            float(r[a - 1, b - 1, c - 1])
            for a, b, c in windows.all_boxes((2, 3, 4))
            if a * b * c <= 12
        )
        assert float(r[box[0] - 1, box[1] - 1, box[2] - 1]) == pytest.approx(best, abs=1e-3)


def test_a_ragged_grid_keeps_the_density_that_was_asked_for():
    """8 x 4 x 6 bricks at LR, 8 x 5 x 7 tokens in bricks of (1, 2, 2) at HR: 8 x 3 x 4, ragged."""
    tokens, brick = (8, 5, 7), (1, 2, 2)
    for f in (0.25, 0.5):
        found = windows.candidates(f, windows.DEFAULT_EXPONENTS, LOW)
        moved = windows.to_grid(torch.tensor(found, dtype=torch.int16), LOW, tokens, brick, f)
        for box in moved.tolist():
            realised = grid.realised_density(tokens, brick, tuple(box))
            assert realised == pytest.approx(f, rel=0.06)


def test_another_grid_keeps_the_volume_and_the_shape():
    """Equal brick grids map one to one."""
    g_from, g_to, f = (8, 4, 6), (8, 8, 12), 0.25
    boxes = torch.tensor([[[2, 3, 4], [8, 4, 6]]], dtype=torch.int16)
    assert windows.to_grid(boxes, g_from, g_to, (1, 2, 2), 0.5) is boxes
    found = windows.candidates(f, windows.DEFAULT_EXPONENTS, g_from)
    boxes = torch.tensor(found, dtype=torch.int16)
    moved = windows.to_grid(boxes, g_from, g_to, (1, 1, 1), f)
    for before, after in zip(found, moved.tolist(), strict=True):
        assert math.prod(after) / math.prod(g_to) == pytest.approx(f, rel=0.05)
        ideal = [w * t / s for w, t, s in zip(before, g_to, g_from, strict=True)]
        assert all(abs(math.log(w / x)) < 0.3 for w, x in zip(after, ideal, strict=True))
    assert torch.equal(boxes, torch.tensor(found, dtype=torch.int16))  # the input is untouched
    back = windows.to_grid(
        torch.tensor([[8, 4, 6]], dtype=torch.int16), g_from, (4, 4, 6), (1, 1, 1), None
    )
    assert back.tolist() == [[4, 4, 6]]  # the whole stays the whole


# -- the plan ---------------------------------------------------------------------------------

LOW, TOKENS, BRICK = (8, 4, 6), (8, 8, 12), (1, 2, 2)
STEPS, LAYERS, T_I = 6, 3, 4


@pytest.fixture(scope="module")
def coverage():
    """(N+1, layers, B, heads, *LOW) of structured heads, different in every step and layer."""
    table = []
    for seed in range((STEPS + 1) * LAYERS):
        q, k = local_heads(LOW, 4, seed)
        A = cov.attention_rows(q, k, torch.arange(192), 192)
        table.append(coverage_of_all_boxes(A, torch.arange(192), LOW, (1, 1, 1)))
    return torch.stack(table).unflatten(0, (STEPS + 1, LAYERS))


def plan_of(coverage, f=0.25, **policy):
    policy = Policy(**{"name": "adaptive", **policy})
    return decide(policy, Case(f, LOW, (1, 1, 1), TOKENS, BRICK, T_I), coverage)


def test_adaptive_plan_is_the_argmax_of_every_step_layer_and_head(coverage):
    plan = plan_of(coverage)
    assert plan.boxes.dtype == torch.int16 and plan.boxes.shape == (STEPS + 1, LAYERS, 1, 4, 3)
    found = windows.candidates(0.25, windows.DEFAULT_EXPONENTS, LOW)
    for n, layer, head in itertools.product(range(1, T_I + 1), range(LAYERS), range(4)):
        r = coverage[n, layer, 0, head]
        best = max(found, key=lambda b: float(r[b[0] - 1, b[1] - 1, b[2] - 1]))
        assert tuple(plan.boxes[n, layer, 0, head].tolist()) == best
    assert (plan.boxes[T_I + 1 :] == torch.tensor(LOW)).all()
    assert len({tuple(b) for b in plan.boxes[1 : T_I + 1].flatten(0, -2).tolist()}) > 2


def test_plan_density_is_the_mean_over_heads_of_the_realised_one(coverage):
    # the same bricks, some of them partly empty
    case = Case(0.25, LOW, (1, 1, 1), (8, 7, 11), BRICK, T_I)
    ragged = decide(Policy("adaptive"), case, coverage)
    for plan, tokens in ((plan_of(coverage), TOKENS), (ragged, (8, 7, 11))):
        assert plan.grid == LOW
        for n in range(1, T_I + 1):
            boxes = [tuple(b) for b in plan.boxes[n].flatten(0, -2).tolist()]
            mean = sum(grid.realised_density(tokens, BRICK, b) for b in boxes) / len(boxes)
            assert plan.density(n) == pytest.approx(mean)
            assert plan.density(n) == pytest.approx(0.25, rel=0.15)
        assert plan.density(T_I + 1) == 1


def test_histogram_counts_every_head_of_the_hr_steps_once(coverage):
    plan = plan_of(coverage)
    counts = plan.histogram(range(1, T_I + 1))
    assert sum(counts.values()) == T_I * LAYERS * 4
    assert list(counts.values()) == sorted(counts.values(), reverse=True)
    assert "8x4x6" not in counts
    name, count = next(iter(counts.items()))
    box = torch.tensor([int(w) for w in name.split("x")])
    assert count == int((plan.boxes[1 : T_I + 1] == box).all(-1).sum())


def test_fixed_policy_uses_one_window_everywhere(coverage):
    plan = plan_of(coverage, name="fixed", exponents=((1 / 3, 1 / 3, 1 / 3),))
    assert len(plan.histogram(range(1, T_I + 1))) == 1
    assert plan.density(1) == pytest.approx(0.25, rel=0.05)


@pytest.mark.parametrize(("name", "f"), [("full", 0.25), ("adaptive", 1.0), ("fixed", 1.0)])
def test_full_policy_and_f_of_one_keep_the_whole_grid(coverage, name, f):
    plan = plan_of(coverage, f=f, name=name)
    assert (plan.boxes == torch.tensor(LOW)).all() and plan.density(1) == 1


def test_coverage_policy_reaches_its_target_everywhere(coverage):
    plan = plan_of(coverage, name="coverage", target=0.9)
    for n, layer, head in itertools.product(range(1, T_I + 1), range(LAYERS), range(4)):
        a, b, c = plan.boxes[n, layer, 0, head].tolist()
        assert float(coverage[n, layer, 0, head, a - 1, b - 1, c - 1]) >= 0.9 - 1e-5
    assert plan.density(1) < 1


def test_dense_steps_are_the_first_of_the_hr_flow(coverage):
    plan, usual = plan_of(coverage, dense_steps=2), plan_of(coverage)
    assert [plan.density(n) == 1 for n in range(T_I, 0, -1)] == [True, True, False, False]
    assert torch.equal(plan.boxes[1 : T_I - 1], usual.boxes[1 : T_I - 1])
    everything = plan_of(coverage, dense_steps=T_I + 3)
    assert all(everything.density(n) == 1 for n in range(1, T_I + 1))


def test_dense_layers_attend_everything(coverage):
    plan, usual = plan_of(coverage, dense_layers=(0, 2)), plan_of(coverage)
    assert (plan.boxes[:, [0, 2]] == torch.tensor(LOW)).all()
    assert torch.equal(plan.boxes[:, 1], usual.boxes[:, 1])


def test_coverage_by_heads_is_the_coverage():
    """However few heads fit at a time, text keys and clips of different lengths included."""
    g = torch.Generator().manual_seed(0)
    tokens, brick, text = (2, 4, 4), (1, 2, 2), (3, 5)
    q, k = (torch.randn(2, 5, 32 + 5, 8, generator=g) for _ in range(2))
    rows = cov.sample_rows(32, 8, seed=1)
    A = cov.attention_rows(q, k, rows, 32, text)
    whole = coverage_of_all_boxes(A, rows, tokens, brick)
    logits, masses = 37 * (2 * 8 + 8), 4 * 8 * 8  # of 37 keys; of 8 rows and 8 bricks
    one = 4 * 2 * (logits + masses)
    for limit in (1, 2 * one, 4 * one + 1, 100 * one):
        found = cov.coverage_by_heads(q, k, rows, tokens, brick, text, limit)
        assert torch.allclose(found, whole, atol=1e-6)
        need = cov.coverage_bytes((2, 5, 37, 8), 8, limit, bricks=8)
        assert need == one * min(max(limit // one, 1), 5)


@pytest.mark.parametrize("keys", [1, 7, 64])
@pytest.mark.parametrize(("tokens", "brick"), GRIDS)
def test_masses_are_pooled_attention_however_few_keys_at_a_time(tokens, brick, keys):
    """Logits in the hundreds, whose maximum moves from piece to piece, and poison in the padding."""
    g, n = torch.Generator().manual_seed(0), math.prod(tokens)
    q, k = (10 * torch.randn(2, 3, n + 5, 8, generator=g) for _ in range(2))
    rows, text = cov.sample_rows(n, 11, seed=1), [3, 0]
    logits = q[:, :, rows].double() @ k.double().transpose(-1, -2) / math.sqrt(8)
    for clip, real in enumerate(text):
        logits[clip, ..., n + real :] = -math.inf
    A = logits.softmax(-1)[..., :n]
    pooled = A.new_zeros(2, 3, 11, math.prod(grid.brick_grid(tokens, brick)))
    pooled.index_add_(-1, grid.brick_ids(tokens, brick), A)
    for clip, real in enumerate(text):
        k[clip, :, n + real :] = math.nan
    found = masses(q, k, rows, tokens, brick, text, keys)
    assert torch.allclose(found.double(), pooled, atol=1e-4)


def test_no_row_of_logits_exists_at_once(monkeypatch):
    """The largest tensor is a piece of the keys, whatever the length."""
    tokens, brick, rows = (4, 64, 64), (1, 8, 8), torch.arange(0, 16384, 256)
    q, k = torch.randn(2, 1, 2, 16384, 8, generator=torch.Generator().manual_seed(0))
    with Largest() as largest:
        cov.coverage_by_heads(q, k, rows, tokens, brick)
    assert largest.elements <= 2 * 64 * KEYS < 2 * 64 * 16384


class Largest(TorchDispatchMode):
    """The most elements of a float tensor that any operation returned, views apart."""

    elements = 0

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        out = op(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.dtype.is_floating_point and not out._is_view():
            inputs = [x for x in args if isinstance(x, torch.Tensor)]
            if all(out.untyped_storage()._cdata != x.untyped_storage()._cdata for x in inputs):
                self.elements = max(self.elements, out.numel())
        return out
