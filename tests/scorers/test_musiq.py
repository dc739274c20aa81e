"""MUSIQ on native crops: plumbing with random weights of the real class; nothing is downloaded."""

import os
from pathlib import Path

import pytest
import torch

from s2flow.errors import UserError
from s2flow.scorers import Clip, musiq
from s2flow.scorers.musiq import FILE, Musiq, crops


def test_crops_are_pieces_of_the_frame_from_border_to_border():
    frame = torch.arange(1100 * 1700).reshape(1100, 1700, 1)
    found = crops(frame)
    assert [tuple(c.shape[:2]) for c in found] == [(512, 512)] * 6  # 2 rows, 3 columns
    assert found[0][0, 0] == frame[0, 0] and found[-1][-1, -1] == frame[-1, -1]
    assert len(crops(torch.zeros(1536, 2560, 3))) == 9
    for size, piece in (((64, 96), (64, 96)), ((480, 832), (480, 512))):
        assert [tuple(c.shape[:2]) for c in crops(torch.zeros(*size, 3))] == [piece]


def test_what_is_missing_is_named_and_there_is_no_score(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", None)
    scorer = Musiq(cache_dir=tmp_path)
    assert str(tmp_path / "pyiqa_model" / FILE) in scorer.needs[-1]
    assert "https://" in scorer.needs[-1] and scorer.weights == {}
    assert scorer.score(Clip.of(torch.rand(2, 32, 48, 3), "")) == {"musiq_512": None}
    monkeypatch.setenv("VBENCH_CACHE_DIR", str(tmp_path / "other"))
    assert Musiq().path == tmp_path / "other" / "pyiqa_model" / FILE
    monkeypatch.delenv("VBENCH_CACHE_DIR")
    assert Musiq().path == Path("~/.cache/vbench/pyiqa_model").expanduser() / FILE


def test_the_device_can_be_left_to_the_machine(monkeypatch):
    for cards, device in ((0, "cpu"), (2, "cuda")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda n=cards: n > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda n=cards: n)
        assert Musiq(device="auto").device == device
    assert Musiq(device="cuda:1").device == "cuda:1"
    with pytest.raises(UserError, match=r"device=cuda:2: torch finds 2 CUDA devices"):
        Musiq(device="cuda:2")


def test_the_score_is_the_mean_over_native_crops_by_bare_tensors(tmp_path):
    try:
        network = musiq._network()
    except (ImportError, RuntimeError) as error:  # torchvision for another torch raises the second
        pytest.skip(f"pyiqa: {error}")
    torch.manual_seed(0)
    model = network(pretrained=False).eval()
    path = tmp_path / "pyiqa_model" / FILE
    path.parent.mkdir()
    torch.save(model.state_dict(), path)
    scorer = Musiq(cache_dir=tmp_path)
    assert scorer.needs == [] and len(scorer.weights[FILE]) == 64
    clip = Clip.of(torch.rand(1, 32, 1024, 3), "")
    frame = clip.frames.movedim(-1, 1).float() / 255
    with torch.no_grad():
        expected = sum(model(half).item() for half in frame.split(512, -1)) / 2 / 100
    assert scorer.score(clip)["musiq_512"] == pytest.approx(expected, rel=1e-5)
    torch.save({"x": os.system}, path)
    with pytest.raises(Exception, match="weights_only|Unsupported"):
        Musiq(cache_dir=tmp_path).score(clip)
