"""Provenance of a record: versions, device, host, threads, commit, command."""

import functools
import os
import platform
import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch


def provenance(device: str) -> dict[str, Any]:
    """Provenance of this process: versions, device, threads, host, commit, command."""
    return {**_provenance(device), "threads": torch.get_num_threads()}


@functools.lru_cache
def _provenance(device: str) -> dict[str, Any]:
    names = ("s2flow", "torch", "diffusers", "transformers", "accelerate", "hydra-core", "numpy")
    names += ("imageio-ffmpeg",)  # the encoder decides the bytes of an mp4
    cuda = device.startswith("cuda")
    folder = Path(__file__).parent
    tracked = _git(folder, "ls-files", "--error-unmatch", Path(__file__).name) is not None
    commit = _git(folder, "rev-parse", "HEAD") if tracked else None
    dirty = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {
        "versions": {"python": platform.python_version(), **{n: _version(n) for n in names}}
        | ({"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()} if cuda else {}),
        "device": torch.cuda.get_device_name(device) if cuda else _processor(),
        "host": socket.gethostname(),
        "commit": commit,
        "dirty": bool(dirty) if tracked else None,
        "command": " ".join(sys.argv),
    }


def _processor() -> str:
    """The CPU's model name and the cores this process may use."""
    try:
        rows = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(r.split(":")[1].strip() for r in rows if r.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"cpu, {name}, {cores} cores"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", folder, *arguments], capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
