"""The Triton backend: its kernels in the interpreter (`triton_cases.py`), and compiled for a GPU."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from plain import kind

from s2flow.attention import dispatch, triton

ROOT = Path(__file__).parents[2]
needed = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="the package triton is not installed"
)


def python(*arguments: str, **variables: str) -> subprocess.CompletedProcess:
    """Python in another process: Triton reads TRITON_INTERPRET when it is imported, and only then."""
    without = {k: v for k, v in os.environ.items() if not k.startswith(("TRITON_INT", "PYTEST_"))}
    folders = [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH")]
    path = os.pathsep.join(filter(None, folders))
    variables |= {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, env=without | variables, cwd=ROOT, capture_output=True, text=True
    )


@needed
def test_the_kernels_in_the_interpreter():
    options = (
        "-o",
        "addopts=",
        "--noconftest",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        "--durations=5",
    )
    if os.environ.get("S2FLOW_SLOW") != "1":
        options += ("-k", "not head_dims and not many_tiles and not half_precision")
    done = python(*("-m", "pytest", *options, "tests/triton_cases.py"), TRITON_INTERPRET="1")
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout and "skipped" not in done.stdout


@needed
def test_by_name_in_the_interpreter_and_never_by_itself():
    """The dispatcher's self-check included; bad input is one line."""
    code = """
import torch
from plain import kind, windowed
from s2flow.attention import dispatch
from s2flow.errors import UserError
q, k, v = torch.randn(3, 1, 2, 8, 16)
call = ([(1, 2, 1), (2, 2, 2)], (2, 2, 2), (1, 1, 1))
assert dispatch.choose(kind(q, (1, 1, 1))) == "tiled"
a, b = (windowed(q, k, v, *call, backend) for backend in ("triton", "reference"))
assert float((a - b).abs().max()) < 1e-5
for bad in (q.double(), q[..., :12]):
    try:
        windowed(bad, bad, bad, *call, "triton")
    except UserError as error:
        print(error)
"""
    done = python("-c", code, TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "attention=triton cannot be used: float64 is none of float16, bfloat16, float32; "
        "type attention=auto",
        "attention=triton cannot be used: head_dim 12 is none of 16, 32, 64, 96, 128; "
        "type attention=auto",
    ]


@needed
def test_compiled_for_hopper_nothing_spills():
    code = """
import torch
from experiments.compile_kernels import compiled, looked_at, cases
name, kernel, options = next(cases(90, 128, torch.bfloat16))
found = looked_at(compiled(kernel, 90, torch.bfloat16, options))
print(name, found)
assert found["spilled"] == 0 and found["shared_kib"] <= 227 and found["matrix"]["wgmma.mma_async"]
assert found["async_copies"] > 0  # keys are in flight while others are computed
"""
    done = python("-c", code)
    assert done.returncode == 0, done.stdout + done.stderr


def test_without_a_gpu_it_says_so_and_auto_is_tiled(monkeypatch):
    q = torch.zeros(1, 1, 8, 16)
    assert dispatch.choose(kind(q, (1, 1, 1))) == "tiled"
    monkeypatch.setattr(triton.importlib.util, "find_spec", lambda name: None)
    assert "not installed" in triton.unusable(kind(q, (1, 1, 1)))
    if "TRITON_INTERPRET" not in os.environ:
        monkeypatch.setattr(triton.importlib.util, "find_spec", lambda name: True)
        monkeypatch.setattr(triton, "interpreted", lambda: False)
        assert "no CUDA device" in triton.unusable(kind(q, (1, 1, 1)))
