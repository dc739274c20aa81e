"""What `test_triton.py` runs by itself, under Triton's interpreter: our kernels on a CPU."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from plain import coverage_exact, kind, of_backend, off, windowed

from s2flow import coverage, grid
from s2flow.attention import dispatch, reference, triton, window_kernel
from s2flow.attention.order import brick_order, reordered
from s2flow.errors import UserError

CASES = [  # tokens, brick, text tokens, how many are real
    ((2, 4, 6), (1, 2, 2), 0, None),
    ((2, 4, 6), (1, 2, 2), 5, None),
    ((2, 2, 3), (1, 1, 1), 1, [1, 0]),
    ((3, 5, 4), (1, 2, 3), 5, [2, 0]),  # ragged
    ((3, 3, 7), (2, 2, 4), 0, None),
]


def inputs(tokens, n_text=0, dtype=torch.float32, d=16, heads=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (3, 2, math.prod(tokens) + n_text, heads, d)  # as the models have them
    return torch.randn(shape, generator=generator).to(dtype).transpose(2, 3).unbind()


def table_of(g, heads=2):
    """Other windows for each clip and head: the smallest, the whole grid, and some between."""
    every = list(itertools.product(*(range(1, n + 1) for n in g)))
    picks = [every[(i * len(every) // 3 + (i > 0)) % len(every)] for i in range(2 * heads - 1)]
    return torch.tensor([*picks, g], dtype=torch.int32).view(2, heads, 3)


def by_kernel(q, k, v, table, tokens, brick, text=None):
    """The backend called as the dispatcher does, without its self-check."""
    order, inverse = brick_order(tokens, brick, q.device)
    q, k, v = (reordered(x, order) for x in (q, k, v))
    return reordered(of_backend(triton, q, k, v, table, tokens, brick, text), inverse)


def exact(q, k, v, table, tokens, brick, text=None):
    """(attention in float64, that of torch's own kernel in q's dtype), under a mask."""
    M = torch.ones(*q.shape[:3], q.shape[2], dtype=torch.bool)
    for clip, head in itertools.product(range(2), range(q.shape[1])):
        n, box = math.prod(tokens), tuple(table[clip, head].tolist())
        M[clip, head, :n, :n] = grid.window_mask(tokens, brick, box)
    both = ((x.double() for x in (q, k, v)), (q, k, v))
    return [F.scaled_dot_product_attention(*qkv, M) for qkv in both]


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    """What no one writes is NaN."""

    def fill(allocate):
        def filled(*args, **kwargs):
            out = allocate(*args, **kwargs)
            return out.fill_(math.nan) if out.is_floating_point() else out

        return filled

    monkeypatch.setattr(torch, "empty_like", fill(torch.empty_like))
    monkeypatch.setattr(torch, "empty", fill(torch.empty))


@pytest.mark.parametrize(("tokens", "brick", "n_text", "text"), CASES)
def test_equals_the_reference(tokens, brick, n_text, text):
    """Every element is written, and the poison in padded text is neither seen nor answered."""
    q, k, v = inputs(tokens, n_text)
    table, n = table_of(grid.brick_grid(tokens, brick)), math.prod(tokens)
    truth = of_backend(reference, q, k, v, table, tokens, brick, text)
    for x, (clip, real) in itertools.product((q, k, v), enumerate(text or ())):
        x[clip, :, n + real :] = math.nan
    found = by_kernel(q, k, v, table, tokens, brick, text)
    assert found.isfinite().all() and off(found, truth) < 1e-5
    for clip, real in enumerate(text or ()):
        assert not found[clip, :, n + real :].any()


@pytest.mark.parametrize(("tokens", "brick"), [((2, 8, 5), (1, 4, 5)), ((2, 6, 9), (1, 4, 5))])
def test_many_tiles(tokens, brick, monkeypatch):
    """Several tiles of queries in a brick, of keys in a run, neither a multiple of the other; several
    chunks for text queries; one clip has no text."""
    monkeypatch.setattr(triton, "configs", lambda *_: [triton.Config(16, 16, 4, 2)])
    monkeypatch.setattr(triton, "KEYS_A_SPLIT", 20)
    q, k, v = inputs(tokens, 19, heads=2)
    table = table_of(grid.brick_grid(tokens, brick))
    truth = of_backend(reference, q, k, v, table, tokens, brick, [19, 0])
    assert off(by_kernel(q, k, v, table, tokens, brick, [19, 0]), truth) < 1e-5


@pytest.mark.parametrize(("scale", "shift"), [(0.0, 30.0), (20.0, 0.0), (-60.0, 30.0)])
def test_flat_peaked_and_large_logits(scale, shift):
    """Logits up to thousands, whose maximum is found late; 0 is the plain mean of the window."""
    tokens, brick = (2, 4, 6), (1, 2, 2)
    q, k, v = inputs(tokens, 5)
    q, k = q * scale + shift, k + shift / 10
    table = table_of(grid.brick_grid(tokens, brick))
    truth, own = exact(q, k, v, table, tokens, brick)
    found = by_kernel(q, k, v, table, tokens, brick)
    assert off(found, truth) < max(1e-5, 2 * off(own, truth))  # float32 logits round beyond 100


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [1.0, 8.0])
def test_half_precision_is_as_good_as_a_dense_kernels(dtype, scale):
    tokens, brick = (2, 4, 6), (1, 2, 2)
    q, k, v = inputs(tokens, 5, dtype)
    table = table_of(grid.brick_grid(tokens, brick))
    truth, own = exact(q * scale, k, v, table, tokens, brick)
    found = by_kernel(q * scale, k, v, table, tokens, brick)
    assert found.dtype == dtype and off(found, truth) < 2 * off(own, truth)


@pytest.mark.parametrize("d", [64, 96, 128])
@pytest.mark.parametrize("brick", [(1, 2, 3), (2, 8, 8)])
def test_head_dims_and_volumes(d, brick):
    tokens = (brick[0], brick[1], 2 * brick[2])
    q, k, v = inputs(tokens, 3, d=d, heads=1)
    table = table_of(grid.brick_grid(tokens, brick), heads=1)
    truth = of_backend(reference, q, k, v, table, tokens, brick)
    assert off(by_kernel(q, k, v, table, tokens, brick), truth) < 1e-5


def test_offsets_pass_two_to_the_31():
    """Tokens and clips so far apart that 32 bits cannot hold it: a batch at the paper's size."""
    tokens, brick = (1, 4, 45), (1, 1, 45)  # the last brick starts 135 tokens in
    base = torch.UntypedStorage(2 * 5_050_000_000)  # pages that nobody touches do not exist
    shape, strides = (2, 1, 180, 16), (2**31 + 2**20, 16, 16_000_000, 1)
    far = torch.tensor([], dtype=torch.float16).set_(base, 0, shape, strides)
    near = inputs(tokens, 0, torch.float16, heads=1)
    table = torch.tensor([[[1, 1, 1]], [[1, 2, 1]]], dtype=torch.int32)
    order, _ = brick_order(tokens, brick, far.device)
    truth = by_kernel(*near, table, tokens, brick)
    q, _, v = (reordered(x, order) for x in near)
    far.copy_(reordered(near[1], order))
    found = of_backend(triton, q, far, v, table, tokens, brick)
    assert torch.equal(found, reordered(truth, order))


def test_strides_are_taken_as_they_are(monkeypatch):
    """q, k, v as views of one (B, L, heads, d): no copy is made, and out has q's layout."""
    tokens, brick = (1, 2, 6), (1, 2, 2)
    q, k, v = inputs(tokens, 4)
    table = table_of(grid.brick_grid(tokens, brick))
    copies = (x.contiguous() for x in (q, k, v))
    truth = of_backend(triton, *copies, table, tokens, brick)
    monkeypatch.setattr(torch.Tensor, "contiguous", None)
    found = of_backend(triton, q, k, v, table, tokens, brick)
    assert torch.equal(found, truth) and found.stride() == q.stride()


def test_other_windows_and_batches_are_the_same_kernel(monkeypatch):
    """All that a launch is compiled for: its constants, and which tensors it is given."""
    tokens, brick = (2, 4, 6), (1, 2, 2)
    launched = []

    class Recorder:
        def __getitem__(self, grid):
            return lambda *args, **constants: launched.append(
                ([x.dtype if isinstance(x, torch.Tensor) else x for x in args], constants)
            )

    monkeypatch.setattr(window_kernel, "windowed", Recorder())
    q, k, v = inputs(tokens)
    for box in itertools.product((1, 2), (1, 2), (1, 2, 3)):
        table = torch.tensor(box, dtype=torch.int32).expand(2, 2, 3)
        for some in (slice(2), slice(1)):
            of_backend(triton, *(x[some] for x in (q, k, v)), table[some], tokens, brick)
    assert len(launched) == 24 and all(x == launched[0] for x in launched)


def test_by_name_and_never_by_itself_and_bad_input_is_one_line():
    """The dispatcher's self-check included."""
    q, k, v = inputs((2, 2, 2))
    call = ([(1, 2, 1), (2, 2, 1)], (2, 2, 2), (1, 1, 2))
    assert dispatch.choose(kind(q, call[2])) == "tiled"
    assert off(*(windowed(q, k, v, *call, backend) for backend in ("triton", "reference"))) < 1e-5
    for bad, reason in (
        (q.double(), "float64 is none of float16, bfloat16, float32"),
        (q[..., :12], "head_dim 12 is none of 16, 32, 64, 96, 128"),
    ):
        with pytest.raises(UserError) as error:
            windowed(bad, bad, bad, *call, "triton")
        said = f"attention=triton cannot be used: {reason}; type attention=auto"
        assert str(error.value) == said
    q, k, v = (x.requires_grad_() for x in (q, k, v))
    with pytest.raises(UserError, match="no backward pass; type attention=tiled"):
        windowed(q, k, v, *call, "triton")


@pytest.mark.parametrize(("tokens", "brick", "n_text", "text"), CASES)
def test_coverage_is_equation_8(tokens, brick, n_text, text):
    """All rows at once, against the whole map and explicit masks; poison in the padding."""
    q, k, _ = inputs(tokens, n_text)
    n, rows = math.prod(tokens), torch.arange(math.prod(tokens))
    A = coverage.attention_rows(3 * q, k, rows, n, text)
    for clip, real in enumerate(text or ()):
        k[clip, :, n + real :] = math.nan
    mass = coverage.masses_by_kernel(3 * q, k, rows, tokens, brick, text)
    assert torch.allclose(mass, coverage.masses(3 * q, k, rows, tokens, brick, text), atol=1e-6)
    every = coverage.coverage_of_masses(mass, rows, tokens, brick)
    for t, h, w in list(itertools.product(*(range(1, n + 1) for n in every.shape[2:])))[::3]:
        truth = coverage_exact(A, tokens, brick, (t, h, w))
        assert torch.allclose(every[..., t - 1, h - 1, w - 1], truth, atol=1e-5)


def test_coverage_of_sampled_rows_in_half_precision():
    tokens, brick = (2, 16, 16), (2, 4, 4)  # several programs, several rows to a tile
    q, k, _ = inputs(tokens, 40, torch.bfloat16)
    call = (q, k, coverage.sample_rows(512, 131, seed=0), tokens, brick, [33, 40])
    assert torch.allclose(coverage.masses_by_kernel(*call), coverage.masses(*call), atol=1e-6)
