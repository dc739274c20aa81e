"""Fidelity: known errors give known numbers, and a missing reference says what to type."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from s2flow.errors import UserError
from s2flow.scorers import Clip
from s2flow.scorers.fidelity import ALEXNET, Fidelity, Lpips, psnr, relative_error, ssim
from s2flow.store import clip_key
from s2flow.video import write_video


def clip(frames: int = 3, seed: int = 0) -> torch.Tensor:
    coarse = torch.rand(frames, 3, 5, 7, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, (32, 48), mode="bilinear").movedim(1, -1)


def test_psnr_and_relative_error_of_known_noise():
    b = torch.full((4, 64, 64, 3), 0.5)
    noise = 0.1 * torch.randn(b.shape, generator=torch.Generator().manual_seed(0))
    assert psnr(b + noise, b) == pytest.approx(20.0, abs=0.05)
    assert relative_error(b + noise, b) == pytest.approx(0.2, abs=0.002)


def test_identical_clips_are_perfect_and_what_has_no_scale_or_window_has_no_score():
    b = clip()
    assert psnr(b, b) == 100.0 and relative_error(b, b) == 0.0
    assert ssim(b, b) == pytest.approx(1.0, abs=1e-6)
    assert relative_error(b, 0 * b) is None and ssim(b[:, :9], b[:, :9]) is None


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


def add(folder, run, video, recipe, latent=None):
    """A finished clip of "a ball", seed 0, in a run, as a scorer gets it."""
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
EULER = {"solver": "euler"}
CASCADE = {"method": "cascade", "t_i": 8, "steps": 20}


def scores(reference, clip):
    """By the parts that lack nothing, under the names that they state."""
    found = {}
    for part in Fidelity(reference).parts().values():
        if not part.needs:
            given = part.score(clip)
            assert tuple(given) == part.names
            found |= given
    return found


def test_finds_the_same_prompt_and_seed_and_the_latents_where_both_kept_theirs(tmp_path):
    z = torch.randn(4, 2, 8, 12, generator=torch.Generator().manual_seed(0))
    for name, latent in (("ref", z), ("small", z[:, :1].contiguous()), ("none", None)):
        add(tmp_path, name, clip(), FULL, latent)
    own = add(tmp_path, "own", clip() * 0.8 + 0.1, SPARSE, 1.25 * z)
    expected = psnr(clip() * 0.8 + 0.1, clip())
    assert scores("ref", own)["psnr"] == pytest.approx(expected, abs=0.3)
    found = {name: scores(name, own)["latent_relative_error"] for name in ("ref", "own")}
    assert found == {"ref": pytest.approx(0.25, abs=1e-6), "own": 0}
    assert scores("small", own)["latent_relative_error"] is None
    assert scores("none", own)["latent_relative_error"] is None


@pytest.mark.parametrize("full", [FULL, CASCADE])
def test_auto_finds_the_same_recipe_with_full_attention_and_euler_steps(full, tmp_path):
    others = full | {"steps": 30}, SPARSE | {"windows": {"name": "full"}}, SPARSE | EULER
    for i, other in enumerate(others):
        add(tmp_path, f"a{i}", clip() * 0, other)
    own = add(tmp_path, "own", clip(), SPARSE)
    with pytest.raises(UserError, match="no run of this recipe with full attention"):
        scores("auto", own)
    add(tmp_path, "b", clip(), full)
    assert scores("auto", own)["psnr"] == 100


def test_auto_has_no_reference_for_methods_that_are_no_such_cascade(tmp_path):
    for name, full in (("s2flow", FULL), ("cascade", CASCADE)):
        add(tmp_path, name, clip(), full)
    for method in ("native", "macs", "diffusehigh", "hiflow", "rectifiedhr"):
        own = add(tmp_path, "own", clip(), CASCADE | {"method": method})
        assert set(scores("auto", own).values()) == {None}
        assert {part.depends(own) for part in Fidelity("auto").parts().values()} == {None}


def test_a_missing_reference_and_one_of_another_size_say_what_to_type(tmp_path):
    own = add(tmp_path, "own", clip(), SPARSE)
    add(tmp_path, "ref", clip(), FULL)
    record = next(tmp_path.glob("ref/records/*.json"))
    for broken in (lambda: record.write_text('{"error": "killed"}'), record.unlink):
        broken()
        with pytest.raises(UserError, match="ref.*'a ball'.*seed 0.*python run.py") as error:
            scores("ref", own)
        assert "\n" not in str(error.value)
    add(tmp_path, "ref", torch.rand(3, 64, 96, 3), FULL)
    with pytest.raises(UserError, match="64x96: name a reference of the same resolution"):
        scores("ref", own)


def test_lpips_without_its_weights_names_them_and_downloads_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", None)
    part = Lpips("ref")
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
    reference = add(tmp_path, "ref", clip(2), FULL)
    own = add(tmp_path, "own", clip(2, seed=1), SPARSE)
    part = Lpips("ref")
    assert part.needs == [] and len(part.weights[ALEXNET]) == 64
    with monkeypatch.context() as m:  # the package's own way, given the same backbone
        m.setattr("lpips.pretrained_networks.tv.alexnet", lambda pretrained: backbone)
        model = lpips.LPIPS(net="alex", verbose=False).eval()
    a, b = (c.frames.movedim(-1, 1).float() / 127.5 - 1 for c in (own, reference))
    with torch.no_grad():
        expected = model(a, b).mean().item()
    assert expected > 0.001
    assert part.score(own)["lpips"] == pytest.approx(expected, rel=1e-4)
    assert Lpips("own").score(own)["lpips"] == 0
