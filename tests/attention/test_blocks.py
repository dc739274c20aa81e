"""Block lists (attention/blocks.py): exactly the window's bricks, every row, in order."""

import itertools
import math

import pytest
import torch

from s2flow.attention.blocks import pairs_by_window, window_blocks
from s2flow.grid import window_mask


@pytest.mark.parametrize("g", [(3, 4, 5), (1, 2, 6), (4, 1, 1)])
def test_lists_hold_exactly_the_windows_bricks_in_order(g):
    for box in itertools.product(*(range(1, n + 1) for n in g)):
        blocks = window_blocks(g, box)
        assert blocks.shape == (math.prod(g), math.prod(box)) and blocks.dtype == torch.int32
        mask = torch.zeros(math.prod(g), math.prod(g), dtype=torch.bool)
        mask.scatter_(1, blocks.long(), True)
        assert torch.equal(mask, window_mask(g, (1, 1, 1), box))  # bricks of one token
        assert (blocks.diff(dim=1) > 0).all()


def test_the_papers_list_takes_six_and_a_half_megabytes():
    blocks = window_blocks((15, 12, 20), (15, 6, 5))  # f = 1/8 at 460,800 tokens
    assert blocks.nbytes == 3600 * 450 * 4


def test_every_pair_is_in_one_group_of_its_window():
    table = torch.tensor([[[1, 1, 1], [2, 1, 1], [1, 1, 1]], [[1, 1, 1], [1, 1, 1], [1, 2, 1]]])
    seen = []
    for box, clips, heads in pairs_by_window(table, at_once=3):
        assert 1 <= len(clips) <= 3
        assert all(tuple(b) == box for b in table[clips, heads].tolist())
        seen += zip(clips.tolist(), heads.tolist(), strict=True)
    assert sorted(seen) == list(itertools.product(range(2), range(3)))
