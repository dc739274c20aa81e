"""Block lists (attention/batches.py), and flash-attn-4 (attention/fa4.py): its gate and its lists.

The kernel itself needs Hopper or Blackwell.
"""

import inspect
import itertools
import math

import pytest
import torch
from plain import kind, windowed

from s2flow.attention import Problem, batches, dispatch, fa4
from s2flow.errors import UserError
from s2flow.grid import window_mask


@pytest.mark.parametrize("g", [(3, 4, 5), (1, 2, 6), (4, 1, 1)])
def test_lists_hold_exactly_the_windows_bricks_in_order(g):
    for box in itertools.product(*(range(1, n + 1) for n in g)):
        blocks = batches.window_blocks(g, box)
        assert blocks.shape == (math.prod(g), math.prod(box)) and blocks.dtype == torch.int32
        mask = torch.zeros(math.prod(g), math.prod(g), dtype=torch.bool)
        mask.scatter_(1, blocks.long(), True)
        assert torch.equal(mask, window_mask(g, (1, 1, 1), box))  # bricks of one token
        assert (blocks.diff(dim=1) > 0).all()


def test_the_papers_list_takes_six_and_a_half_megabytes():
    blocks = batches.window_blocks((15, 12, 20), (15, 6, 5))  # f = 1/8 at 460,800 tokens
    assert blocks.nbytes == 3600 * 450 * 4


def test_every_pair_is_in_one_group_of_its_window(monkeypatch):
    table = torch.tensor([[[1, 1, 1], [2, 1, 1], [1, 1, 1]], [[1, 1, 1], [1, 1, 1], [1, 2, 1]]])
    q, seen = torch.empty(2, 3, 4, 16), []
    monkeypatch.setattr(batches, "COPIED", 3 * (3 * 4 * 16 * 4))  # q, k and v of three pairs
    problem = Problem.of(q, (2, 2, 1), (1, 1, 1), table)
    for box, clips, heads in batches.pairs_by_window(problem, slice(None), q):
        assert 1 <= len(clips) <= 3
        assert all(tuple(b) == box for b in table[clips, heads].tolist())
        seen += zip(clips.tolist(), heads.tolist(), strict=True)
    assert sorted(seen) == list(itertools.product(range(2), range(3))) and len(clips) < 4


@pytest.mark.parametrize(
    ("capability", "dtype", "d", "n", "reason"),
    [
        (9, torch.bfloat16, 128, 128, None),
        (9, torch.float16, 64, 64, None),
        (10, torch.bfloat16, 128, 256, None),
        (8, torch.bfloat16, 128, 128, "not on 8"),  # takes the lists and returns dense attention
        (12, torch.bfloat16, 128, 128, "not on 12"),
        (9, torch.float32, 128, 128, "not torch.float32"),
        (9, torch.bfloat16, 60, 128, "not 60"),
        (9, torch.bfloat16, 256, 128, "not 256"),
        (9, torch.bfloat16, 128, 16, "bricks have 16"),
        (9, torch.bfloat16, 128, 256, "bricks have 256"),
        (10, torch.bfloat16, 128, 128, "bricks have 128"),
    ],
)
def test_the_gate(capability, dtype, d, n, reason):
    found = fa4.unsupported(capability, dtype, d, n)
    assert found is None if reason is None else reason in found


def test_by_name_on_a_cpu_is_one_clear_line_and_ragged_grids_are_left_to_others():
    q = torch.randn(1, 1, 64, 16)
    said = "fa4 cannot be used: flash-attn-4 runs on CUDA, not on cpu"
    with pytest.raises(UserError, match=said):
        windowed(q, q, q, [(1, 1, 1)], (4, 4, 4), (1, 2, 2), "fa4")
    assert "do not divide the 4x8x9 grid" in dispatch.why_not("fa4", kind(q, (2, 8, 8), (4, 8, 9)))
    assert "do not divide" not in dispatch.why_not("fa4", kind(q, (2, 8, 8), (4, 8, 16)))


@pytest.mark.parametrize("n_text", [0, 1, 128, 200])
def test_lists_hold_the_window_and_text_in_order_as_full_blocks(n_text):
    g, box, n = (2, 3, 4), (1, 2, 3), 128
    blocks = fa4.block_list(g, box, n_text, n, "cpu")
    texts = math.ceil(n_text / n)
    seen = torch.zeros(24, 24 + texts, dtype=torch.bool).scatter_(1, blocks[0, 0].long(), True)
    assert torch.equal(seen[:, :24], window_mask(g, (1, 1, 1), box)) and seen[:, 24:].all()
    assert (blocks.diff(dim=-1) > 0).all()  # the block that the end of the keys cuts comes last
    lists = fa4.arguments(blocks, n)
    assert not lists["mask_block_cnt"].any()
    assert (lists["full_block_cnt"] == 6 + texts).all()
    for name in ("mask_block_cnt", "mask_block_idx", "full_block_cnt", "full_block_idx"):
        assert lists[name].dtype == torch.int32 and lists[name].shape[:3] == (1, 1, 24)


def test_the_call_fits_the_package():
    interface = pytest.importorskip("flash_attn.cute.interface", exc_type=ImportError)
    from flash_attn.cute.block_sparsity import BlockSparseTensorsTorch

    blocks = fa4.block_list((1, 1, 2), (1, 1, 1), 9, 64, "cpu")
    lists = BlockSparseTensorsTorch(**fa4.arguments(blocks, 64))
    q = torch.empty(1, 128, 1, 64)
    signature = inspect.signature(interface.flash_attn_func)
    signature.bind(q, q, q, block_sparse_tensors=lists, return_lse=True)
