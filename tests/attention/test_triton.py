"""The Triton backend: its kernels in the interpreter (`triton_cases.py`), and compiled for a GPU."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from benchmark import script
from plain import kind

from s2flow.attention import dispatch, triton

ROOT = Path(__file__).parents[2]
needed = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="the package triton is not installed"
)


@needed
def test_the_kernels_in_the_interpreter():
    """In another process: Triton reads TRITON_INTERPRET when it is imported, and only then."""
    words = "-m pytest -o addopts= --noconftest -p no:cacheprovider -p no:xdist --durations=5"
    words = [*words.split(), "tests/triton_cases.py"]
    if os.environ.get("S2FLOW_SLOW") != "1":
        words += ["-k", "not head_dims and not many_tiles and not half_precision"]
    folders = [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    own = {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(folders)}
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")} | own
    done = subprocess.run(
        [sys.executable, *words], env=env, cwd=ROOT, capture_output=True, text=True
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout and "skipped" not in done.stdout


@needed
def test_compiled_for_hopper_nothing_spills():
    kernels = script("compile_kernels")
    name, kernel, options = next(kernels.cases(90, 128, torch.bfloat16))
    found = kernels.looked_at(kernels.compiled(kernel, 90, torch.bfloat16, options))
    print(name, found)
    assert found["spilled"] == 0 and found["shared_kib"] <= 227
    assert found["matrix"]["wgmma.mma_async"]
    assert found["async_copies"] > 0  # keys are in flight while others are computed


def test_without_a_gpu_it_says_so_and_auto_is_tiled(monkeypatch):
    q = torch.zeros(1, 1, 8, 16)
    assert dispatch.choose(kind(q, (1, 1, 1))) == "tiled"
    monkeypatch.setattr(triton.importlib.util, "find_spec", lambda name: None)
    assert "not installed" in triton.unusable(kind(q, (1, 1, 1)))
    monkeypatch.setattr(triton.importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(triton, "interpreted", lambda: False)
    assert "no CUDA device" in triton.unusable(kind(q, (1, 1, 1)))
