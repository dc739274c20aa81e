"""flash-attn-4 (attention/fa4.py): its gate, its lists; the kernel itself needs Hopper or Blackwell."""

import inspect
import math

import pytest
import torch
from plain import kind, windowed

from s2flow.attention import dispatch, fa4
from s2flow.errors import UserError
from s2flow.grid import window_mask


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


def test_by_name_on_a_cpu_is_one_clear_line():
    q = torch.randn(1, 1, 64, 16)
    with pytest.raises(
        UserError, match="fa4 cannot be used: flash-attn-4 runs on CUDA, not on cpu"
    ):
        windowed(q, q, q, [(1, 1, 1)], (4, 4, 4), (1, 2, 2), "fa4")


def test_ragged_grids_are_left_to_others():
    q = torch.empty(1, 1, 1, 64)
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

    lists = BlockSparseTensorsTorch(
        **fa4.arguments(fa4.block_list((1, 1, 2), (1, 1, 1), 9, 64, "cpu"), 64)
    )
    q = torch.empty(1, 128, 1, 64)
    signature = inspect.signature(interface.flash_attn_func)
    signature.bind(q, q, q, block_sparse_tensors=lists, return_lse=True)
