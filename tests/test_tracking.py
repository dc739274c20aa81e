"""wandb sees what the store holds, offline and without a login; `none` sees nothing."""

import time
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from s2flow import tracking
from s2flow.errors import UserError
from s2flow.video import write_video

wandb = pytest.importorskip("wandb")

CONF = Path(__file__).parents[1] / "conf"


def config(*overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", list(overrides))


@pytest.fixture
def clip(tmp_path):
    """A record and the folder that it belongs to."""
    (tmp_path / "clips").mkdir()
    write_video(tmp_path / "clips" / "a.mp4", torch.rand(2, 32, 48, 3), fps=8)
    scores = {"temporal_flickering": 0.9, "world_agreement": None}
    record = {"prompt": "a cat", "video": "clips/a.mp4", "scores": scores, "seconds": {"hr": 1.5}}
    return record, tmp_path


def test_none_logs_nothing(clip, monkeypatch, recipe):
    monkeypatch.setattr(wandb, "init", None)
    with tracking.tracked(config(), recipe()) as track:
        track(*clip)


def test_an_unknown_mode_is_refused(recipe):
    cfg = config("tracker=wandb", "tracker.mode=onlin")
    with (
        pytest.raises(
            UserError, match=r"tracker.mode=onlin is unknown; type one of tracker.mode="
        ),
        tracking.tracked(cfg, recipe()),
    ):
        pass


def test_offline_needs_no_login(clip, monkeypatch, recipe, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("DIR", "CACHE_DIR", "CONFIG_DIR", "DATA_DIR"):
        monkeypatch.setenv(f"WANDB_{name}", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    recipe = recipe()
    try:
        with tracking.tracked(config("tracker=wandb"), recipe) as track:
            track(*clip)
    except wandb.errors.Error as error:
        pytest.skip(f"wandb cannot start here: {error}")
    (folder,) = tmp_path.glob("wandb/offline-run-*")
    assert folder.name.endswith(recipe.run_id)
    assert list(folder.glob("files/media/videos/*.mp4"))
    (log,) = folder.glob("*.wandb")
    for _ in range(200):  # wandb's own process may still be writing
        logged = log.read_bytes()
        if b"a cat" in logged:
            break
        time.sleep(0.05)
    for said in (b"score/temporal_flickering", b"seconds/hr", b"a cat", b"sparsity"):
        assert said in logged, said
    assert b"world_agreement" not in logged  # None is not a number
