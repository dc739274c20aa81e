"""Fidelity: known errors give known numbers, and a missing reference says what to type."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from s2flow.errors import UserError
from s2flow.scorers import Clip
from s2flow.scorers.fidelity import (
    ALEXNET,
    Fidelity,
    Lpips,
    find_clip,
    find_reference,
    psnr,
    relative_error,
    ssim,
)
from s2flow.store import clip_key
from s2flow.video import read_frames, write_video


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


def test_identical_clips_are_perfect_and_a_black_reference_has_no_relative_error():
    b = clip()
    assert psnr(b, b) == 100.0 and relative_error(b, b) == 0.0
    assert ssim(b, b) == pytest.approx(1.0, abs=1e-6)
    assert (
        relative_error(b, torch.zeros(3, 32, 48, 3)) is None and ssim(b[:, :9], b[:, :9]) is None
    )


def test_ssim_is_symmetric_and_falls_with_noise():
    b = clip()
    noise = torch.randn(b.shape, generator=torch.Generator().manual_seed(1))
    little, much = b + 0.02 * noise, b + 0.2 * noise
    assert ssim(little, b) == pytest.approx(ssim(b, little), abs=1e-6)
    assert 1 > ssim(little, b) > ssim(much, b)


@pytest.mark.parametrize("size", [(3, 32, 48), (2, 141, 207), (1, 11, 300)])
def test_bytes_give_the_definition_in_float64(size):
    """In pieces, from bytes or floats: the same to 1e-6 as the equations written down at once."""
    draw = torch.Generator().manual_seed(4)
    a = torch.randint(0, 256, (*size, 3), generator=draw, dtype=torch.uint8)
    b = (a.int() + torch.randint(-9, 10, a.shape, generator=draw)).clamp(0, 255).byte()
    x, y = (v.double().movedim(-1, 1) / 255 for v in (a, b))
    k = torch.arange(11).double() - 5
    w = torch.exp(-(k[:, None] ** 2 + k[None] ** 2) / 4.5)
    w = (w / w.sum()).expand(3, 1, 11, 11)
    mx, my, xx, yy, xy = (F.conv2d(v, w, groups=3) for v in (x, y, x * x, y * y, x * y))
    top = (2 * mx * my + 1e-4) * (2 * (xy - mx * my) + 9e-4)
    down = (mx * mx + my * my + 1e-4) * (xx - mx * mx + yy - my * my + 9e-4)
    expected = {
        ssim: (top / down).mean().item(),
        psnr: -10 * math.log10((x - y).square().mean().item()),
        relative_error: ((x - y).norm() / y.norm()).item(),
    }
    for score, value in expected.items():
        assert score(a, b) == pytest.approx(value, abs=1e-6)
        assert score(a.float() / 255, b.float() / 255) == pytest.approx(value, abs=1e-6)


# -- against another run ----------------------------------------------------------------------


def add(folder, run, video, recipe, latent=None):
    """A finished clip of "a ball", seed 0, in a run; its record."""
    key = clip_key("a ball", 0)
    for kind in ("records", "clips", "latents"):
        (folder / run / kind).mkdir(parents=True, exist_ok=True)
    write_video(folder / run / "clips" / f"{key}.mp4", video, 8)
    if latent is not None:
        save_file({"latent": latent}, folder / run / "latents" / f"{key}.safetensors")
    record = {"prompt": "a ball", "video": f"clips/{key}.mp4", "recipe": recipe, "run_id": run}
    (folder / run / "records" / f"{key}.json").write_text(json.dumps(record))
    (folder / run / "recipe.json").write_text(json.dumps({"version": 1, **recipe}))
    return Clip(folder / run / "clips" / f"{key}.mp4", "a ball", 0, folder, None, record)


FULL = {"method": "s2flow", "t_i": 8, "steps": 20, "windows": {"name": "full"}, "solver": "euler"}
SPARSE = FULL | {"windows": {"name": "adaptive"}, "sparsity": 0.5, "solver": "lri", "order": 2}
CASCADE = {"method": "cascade", "t_i": 8, "steps": 20}


def scores(reference, clip):
    """What the parts say that lack nothing, under the names that they state."""
    found = {}
    for part in Fidelity(reference).parts().values():
        if not part.needs:
            said = part.score(clip)
            assert tuple(said) == part.names
            found |= said
    return found


def test_finds_the_same_prompt_and_seed_in_the_reference(tmp_path):
    add(tmp_path, "ref", clip(), FULL)
    found = scores("ref", add(tmp_path, "own", clip() * 0.8 + 0.1, SPARSE))
    expected = psnr(clip() * 0.8 + 0.1, clip())
    assert found["psnr"] == pytest.approx(expected, abs=0.3)
    assert found["latent_relative_error"] is None  # neither kept it


def test_the_final_latents_are_compared_where_both_kept_theirs(tmp_path):
    z = torch.randn(4, 2, 8, 12, generator=torch.Generator().manual_seed(0))
    add(tmp_path, "ref", clip(), FULL, z)
    add(tmp_path, "small", clip(), FULL, z[:, :1].contiguous())
    own = add(tmp_path, "own", clip(), SPARSE, 1.25 * z)
    name = "latent_relative_error"
    assert scores("ref", own)[name] == pytest.approx(0.25, abs=1e-6)
    assert scores("own", own)[name] == 0
    assert scores("small", own)[name] is None


@pytest.mark.parametrize("full", [FULL, CASCADE])
def test_auto_finds_the_same_recipe_with_full_attention_and_euler_steps(full, tmp_path):
    for i, other in enumerate((full | {"steps": 30}, SPARSE | {"windows": {"name": "full"}})):
        add(tmp_path, f"a{i}", clip() * 0, other)
    own = add(tmp_path, "own", clip(), SPARSE)
    with pytest.raises(UserError, match="no run of this recipe with full attention"):
        scores("auto", own)
    add(tmp_path, "b", clip(), full)
    assert scores("auto", own)["psnr"] == 100


@pytest.mark.parametrize(
    "other",
    [
        {"method": "native", "steps": 20},
        CASCADE | {"method": "macs"},
        CASCADE | {"method": "diffusehigh", "params": {"guided_steps": 5, "space": "latent"}},
        CASCADE | {"method": "hiflow", "params": {"alpha": 1.0, "beta": 0.5, "cutoff": 0.2}},
        CASCADE | {"method": "rectifiedhr", "params": {"guidance": 2.0}},
    ],
    ids=lambda other: other["method"],
)
def test_auto_has_no_reference_for_methods_that_are_no_such_cascade(other, tmp_path):
    for name, full in (("s2flow", FULL), ("cascade", CASCADE)):
        add(tmp_path, name, clip(), full)
    own = add(tmp_path, "own", clip(), other)
    assert find_reference(own, "auto") is None
    assert set(scores("auto", own).values()) == {None}
    for part in Fidelity("auto").parts().values():
        assert part.depends(own) is None


def test_a_missing_reference_says_what_to_type(tmp_path):
    own = add(tmp_path, "own", clip(), SPARSE)
    add(tmp_path, "ref", clip(), FULL)
    record = next(tmp_path.glob("ref/records/*.json"))
    for broken in (lambda: record.write_text('{"error": "killed"}'), record.unlink):
        broken()
        with pytest.raises(UserError) as error:
            scores("ref", own)
        message = str(error.value)
        assert "\n" not in message
        assert all(x in message for x in ("ref", "'a ball'", "seed 0", "python run.py"))


def test_another_resolution_is_refused(tmp_path):
    add(tmp_path, "ref", clip(), FULL)
    with pytest.raises(UserError, match="32x48: name a reference of the same resolution"):
        scores("ref", add(tmp_path, "own", torch.rand(3, 64, 96, 3), SPARSE))


# -- LPIPS ------------------------------------------------------------------------------------


def test_lpips_without_its_weights_names_them_and_downloads_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", None)
    part = Fidelity("ref").parts()["fidelity_lpips"]
    assert str(tmp_path / "checkpoints" / ALEXNET) in part.needs[-1] and part.weights == {}


def test_lpips_is_that_of_the_package_over_the_file_of_torchvision(tmp_path, monkeypatch):
    """AlexNet with random weights, saved as torchvision names it: plumbing, no score."""
    try:
        import lpips
        from torchvision.models import alexnet
    except (ImportError, RuntimeError) as error:  # torchvision for another torch raises the second
        pytest.skip(f"lpips: {error}")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    torch.manual_seed(0)
    backbone = alexnet(weights=None)
    torch.save(backbone.state_dict(), tmp_path / "checkpoints" / ALEXNET)
    add(tmp_path, "ref", clip(2), FULL)
    own = add(tmp_path, "own", clip(2, seed=1), SPARSE)
    part = Lpips("ref")
    assert part.needs == [] and len(part.weights[ALEXNET]) == 64
    with monkeypatch.context() as m:  # the package's own way, given the same backbone
        m.setattr("lpips.pretrained_networks.tv.alexnet", lambda pretrained: backbone)
        model = lpips.LPIPS(net="alex", verbose=False).eval()
    frames = (own.frames, read_frames(find_clip(tmp_path, "ref", "a ball", 0)))
    a, b = (f.movedim(-1, 1).float() / 127.5 - 1 for f in frames)
    with torch.no_grad():
        expected = model(a, b).mean().item()
    assert expected > 0.001
    assert part.score(own)["lpips"] == pytest.approx(expected, rel=1e-4)
    assert Lpips("own").score(own)["lpips"] == 0
