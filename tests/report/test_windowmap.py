"""The windows of a clip are kept as they ran, small, and drawn in the colours of its legend."""

import numpy as np
import pytest
import torch
from PIL import ImageColor

from s2flow import methods
from s2flow.process.timing import Clock
from s2flow.report.windowmap import COLOURS, RARER, read_windows, save_windows, window_picture
from s2flow.store import clip_key

SMALL = ("steps=4", "t_i=3", "frames=2")
PROMPTS = ["a large red ball moves left on grass", "a small blue star"]


STEPS = [("hr", n) for n in (3, 2, 1)]


def rgb(colour):
    return ImageColor.getrgb(colour)


@pytest.mark.parametrize("windows", ["adaptive", "oracle", "full"])
def test_what_is_kept_is_what_ran(windows, micro, recipe, tmp_path):
    made = methods.generate(micro, recipe(f"windows={windows}", *SMALL), PROMPTS, [0, 0])
    router = micro.router
    (tmp_path / "windows").mkdir()
    for i, kept in enumerate(made.windows):
        path = tmp_path / "windows" / f"{clip_key(PROMPTS[i], 0)}.npz"
        save_windows(path, kept)
        found = read_windows(tmp_path, {"video": f"clips/{path.stem}.mp4"})
        assert found["steps"].tolist() == [3, 2, 1] and path.stat().st_size < 4096
        assert found["boxes"].shape[:2] == (3, router.layers) and found["boxes"].dtype == np.uint8
        words = ["x".join(map(str, box)) for box in found["boxes"].reshape(-1, 3)]
        counted = {w: words.count(w) for w in set(words)}
        assert counted == made.reports[i]["window_histogram"]  # tested by test_policies
        boxes, grids = (found[k].prod(-1, dtype=int) for k in ("boxes", "grid"))
        share = boxes / grids[:, None, None]
        assert (share <= 1).all() and (windows != "full" or (share == 1).all())


def test_several_hr_sizes_have_their_own_grids(micro, recipe):
    words = ("scales=[1,1.5,2]", "switches=[0.9,0.5]", "steps=4", "frames=2", "handoff=latent")
    kept = methods.generate(micro, recipe(*words), PROMPTS[:1], [0]).windows[0]
    n = len(kept["steps"])
    assert kept["steps"].tolist() == list(range(n, 0, -1)) and len(kept["boxes"]) == n
    assert len({tuple(g) for g in kept["grid"].tolist()}) == 2  # it grows
    assert (kept["boxes"] <= kept["grid"][:, None, None]).all()


@pytest.mark.parametrize("words", [("method=native",), ("windows=moba",), ("method=bicubic",)])
def test_what_has_no_boxes_keeps_none(words, micro, recipe):
    made = methods.generate(micro, recipe(*words, *SMALL), PROMPTS[:1], [0])
    assert not any(made.windows)


def test_seconds_of_every_step_are_kept_per_clip_and_add_up(micro, recipe):
    clock, seen = Clock(), []
    how = {"clock": clock, "on_step": seen.append}
    methods.generate(micro, recipe("method=cascade", *SMALL), PROMPTS, [0, 0], **how)
    assert list(clock.steps["lr"]) == [4, 3, 2, 1] and list(clock.steps["hr"]) == [3, 2, 1]
    for stage in ("lr", "hr"):
        total = clock.seconds[stage] / 2  # clips
        assert 0.5 * total < sum(clock.steps[stage].values()) <= total + 1e-4
    assert [(s.stage, s.n) for s in seen] == [*(("lr", n) for n in (4, 3, 2, 1)), *STEPS]
    assert [s.density for s in seen] == [[]] * 4 + [[1.0, 1.0]] * 3


def test_a_broken_or_absent_file_is_none(tmp_path):
    record = {"video": "clips/a.mp4"}
    assert read_windows(tmp_path, record) is None
    (tmp_path / "windows").mkdir()
    for data in (b"", b"PK\x03\x04 torn", b"text"):
        (tmp_path / "windows" / "a.npz").write_bytes(data)
        assert read_windows(tmp_path, record) is None


def test_the_picture_has_a_cell_per_step_layer_and_head():
    boxes = np.array([[1, 2, 3], [2, 1, 3], [2, 4, 6]], np.uint8)
    chosen = np.array([[[0, 1], [1, 1]], [[2, 2], [0, 1]]])  # steps, layers, heads
    windows = {
        "steps": np.array([2, 1]),
        "boxes": boxes[chosen],
        "grid": np.full((2, 3), (2, 4, 6)),
    }
    picture = window_picture(windows, "a title of a prompt " * 40)
    wide, high = 320 // 2, 240 // 4
    colours = [rgb(c) for c in COLOURS[:3]]
    for i, layer, head in np.ndindex(2, 2, 2):
        at = (66 + i * wide + wide // 2, 30 + (layer * 2 + head) * high + high // 2)
        assert picture.getpixel(at) == colours[chosen[i, layer, head]]
    assert picture.width < 900  # however long the prompt
    many = torch.randint(1, 9, (3, 4, 20, 3), generator=torch.Generator().manual_seed(0)).numpy()
    windows = {"steps": np.array([3, 2, 1]), "boxes": many, "grid": np.full((3, 3), 9)}
    assert rgb(RARER) in {c for _, c in window_picture(windows).getcolors(1 << 24)}
