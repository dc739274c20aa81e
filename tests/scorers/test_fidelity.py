"""Fidelity: known errors give known numbers, and a missing reference says what to type."""

import json
import sys
from types import ModuleType

import pytest
import torch

from s2flow.errors import UserError
from s2flow.scorers import Clip, fidelity
from s2flow.scorers.fidelity import Fidelity, psnr, relative_error, ssim


def clip(frames: int = 3, seed: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    coarse = torch.rand(frames, 3, 5, 7, generator=draw)
    return torch.nn.functional.interpolate(coarse, (32, 48), mode="bilinear").movedim(1, -1)


def test_psnr_and_relative_error_of_known_noise():
    b = torch.full((4, 64, 64, 3), 0.5)
    noise = 0.1 * torch.randn(b.shape, generator=torch.Generator().manual_seed(0))
    assert psnr(b + noise, b) == pytest.approx(20.0, abs=0.05)
    assert relative_error(b + noise, b) == pytest.approx(0.2, abs=0.002)
    assert psnr(b + 0.1, b) == pytest.approx(20.0, abs=1e-4)


def test_identical_clips_are_perfect():
    b = clip()
    assert psnr(b, b) == 100.0
    assert ssim(b, b) == pytest.approx(1.0, abs=1e-6)
    assert relative_error(b, b) == 0.0


def test_ssim_is_symmetric_and_falls_with_noise():
    b = clip()
    noise = torch.randn(b.shape, generator=torch.Generator().manual_seed(1))
    little, much = b + 0.02 * noise, b + 0.2 * noise
    assert ssim(little, b) == pytest.approx(ssim(b, little), abs=1e-6)
    assert 1 > ssim(little, b) > ssim(much, b)


def test_ssim_of_constants_equals_its_luminance_term():
    a, b = torch.full((1, 16, 16, 3), 0.3), torch.full((1, 16, 16, 3), 0.6)
    expected = (2 * 0.3 * 0.6 + 1e-4) / (0.3**2 + 0.6**2 + 1e-4)
    assert ssim(a, b) == pytest.approx(expected, abs=1e-3)


def test_ssim_equals_a_direct_sum_over_one_window():
    a, b = torch.rand(2, 1, 11, 11, 3, generator=torch.Generator().manual_seed(2)).double()
    k = torch.arange(11).double() - 5
    w = torch.exp(-(k[:, None] ** 2 + k[None] ** 2) / 4.5)
    w = (w / w.sum())[None, :, :, None]
    ma, mb = (w * a).sum((1, 2)), (w * b).sum((1, 2))
    va, vb = (w * a * a).sum((1, 2)) - ma**2, (w * b * b).sum((1, 2)) - mb**2
    vab = (w * a * b).sum((1, 2)) - ma * mb
    top = (2 * ma * mb + 1e-4) * (2 * vab + 9e-4)
    expected = (top / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4))).mean().item()
    assert ssim(a, b) == pytest.approx(expected, abs=1e-5)


def test_black_reference_has_no_relative_error():
    assert relative_error(clip(), torch.zeros(3, 32, 48, 3)) is None


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """A runs folder with one finished and one failed clip in run `ref`."""
    store = ModuleType("s2flow.store")
    store.clip_key = lambda prompt, seed: f"{prompt.replace(' ', '-')}-{seed}"
    monkeypatch.setitem(sys.modules, "s2flow.store", store)
    monkeypatch.setattr(fidelity, "read_video", torch.load)
    (tmp_path / "ref/records").mkdir(parents=True)
    (tmp_path / "ref/clips").mkdir()
    torch.save(clip(), tmp_path / "ref/clips/a.mp4")
    record = {"prompt": "a ball", "video": "clips/a.mp4"}
    (tmp_path / "ref/records/a-ball-0.json").write_text(json.dumps(record))
    (tmp_path / "ref/records/a-ball-1.json").write_text(json.dumps({"error": "killed"}))
    return tmp_path


def test_finds_the_same_prompt_and_seed_in_the_reference(runs):
    scores = Fidelity("ref")(Clip.of(clip() + 0.1, "a ball", 0, runs))
    assert set(scores) == {"psnr", "ssim", "relative_error"}
    assert scores["psnr"] == pytest.approx(20.0, abs=1e-3)


@pytest.mark.parametrize(("prompt", "seed"), [("a car", 0), ("a ball", 1), ("a ball", 2)])
def test_missing_reference_says_what_to_type(runs, prompt, seed):
    with pytest.raises(UserError) as error:
        Fidelity("ref")(Clip.of(clip(), prompt, seed, runs))
    message = str(error.value)
    assert "\n" not in message
    assert all(part in message for part in ("ref", repr(prompt), f"seed {seed}", "python run.py"))


def test_other_resolution_is_refused(runs):
    with pytest.raises(ValueError, match="32x48"):
        Fidelity("ref")(Clip.of(torch.rand(3, 64, 96, 3), "a ball", 0, runs))
