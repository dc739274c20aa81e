"""What the device at hand achieves, timed in seconds: `python -m s2flow.costs --measure`.

    tflops      a large matrix product in the type that models compute in
    attention   full attention at head_dim 128, the fastest kernel that torch has there
    float32     a 3-D convolution as the autoencoder has them, in float32 as torch does them by default
    bandwidth   a copy of a large tensor, read and written

Medians of repeats, on CUDA by events. The link to other GPUs takes several processes and is not
measured: the assumption by the device's name stays, or what `--link` says. Written as JSON under
"rates"; `load_rates` takes any JSON with such an entry, so that a benchmark's file serves as well.

The CUDA side has not yet been run on a GPU.
"""

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from s2flow.costs.clock import Rates, known
from s2flow.errors import UserError
from s2flow.process.provenance import provenance

CUDA = {
    "product": (8192, 8192, 8192),
    "attention": (1, 24, 16384, 128),
    "convolution": (1, 128, 9, 256, 256),
    "copied": 2**30,
    "repeats": 10,
}
CPU = {
    "product": (1024, 1024, 1024),
    "attention": (1, 4, 2048, 64),
    "convolution": (1, 32, 5, 64, 64),
    "copied": 2**27,
    "repeats": 3,
}
KERNELS = (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION)
NAMES = ("tflops", "bandwidth", "link", "attention", "float32")


def measure_rates(device: str, sizes: dict[str, Any] | None = None) -> dict[str, Any]:
    """{"rates": {...}, device, versions, sizes} of "cuda", "cuda:1" or "cpu"."""
    cuda = device.startswith("cuda")
    sizes = sizes or (CUDA if cuda else CPU)
    kind = torch.bfloat16 if cuda else torch.float32
    timed = {
        "tflops": _product(device, kind, sizes),
        "attention": _attention(device, kind, sizes),
        "float32": _convolution(device, sizes),
        "bandwidth": _copy(device, sizes),
    }
    name = torch.cuda.get_device_name(device) if cuda else "cpu"
    assumed = known(name)
    rates = {k: float(f"{v:.4g}") for k, v in timed.items()}
    rates |= {"link": assumed and assumed.link, "kernels": True}
    about = {k: v for k, v in provenance(device).items() if k not in ("command", "host")}
    return {"rates": rates, "name": name, "dtype": str(kind), "sizes": sizes, **about}


def load_rates(path: str | Path) -> Rates:
    """The rates of a file that `--measure` or a benchmark wrote. Raises UserError for any other."""
    path = Path(path)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["rates"]
        given = {k: found[k] for k in NAMES if found.get(k) is not None}
        return Rates(**given, kernels=bool(found.get("kernels", False)))
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}); type another --rates"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(
            f"{path} holds no rates; type python -m s2flow.costs --measure --json rates.json"
        ) from None


def _product(device: str, kind: torch.dtype, sizes: dict[str, Any]) -> float:
    m, k, n = sizes["product"]
    a, b = (torch.randn(s, device=device, dtype=kind) for s in ((m, k), (k, n)))
    return 2 * m * k * n / seconds(lambda: a @ b, device, sizes["repeats"]) / 1e12


def _attention(device: str, kind: torch.dtype, sizes: dict[str, Any]) -> float:
    B, heads, L, d = sizes["attention"]
    q, k, v = (torch.randn(B, heads, L, d, device=device, dtype=kind) for _ in range(3))
    found = []
    for kernel in KERNELS if device.startswith("cuda") else (None,):
        try:
            if kernel is None:
                found.append(_timed_attention(q, k, v, device, sizes))
            else:
                with sdpa_kernel(kernel):
                    found.append(_timed_attention(q, k, v, device, sizes))
        except RuntimeError:  # not on this card
            continue
    if not found:
        raise UserError(f"no attention kernel of torch runs on {device}; type --tflops instead")
    return 4 * B * heads * L * L * d / min(found) / 1e12


def _timed_attention(q, k, v, device: str, sizes: dict[str, Any]) -> float:
    return seconds(lambda: F.scaled_dot_product_attention(q, k, v), device, sizes["repeats"])


def _convolution(device: str, sizes: dict[str, Any]) -> float:
    x = torch.randn(sizes["convolution"], device=device)
    C, volume = x.shape[1], x[0, 0].numel()
    w = torch.randn(C, C, 3, 3, 3, device=device)
    took = seconds(lambda: F.conv3d(x, w, padding=1), device, sizes["repeats"])
    return 2 * 27 * C * C * len(x) * volume / took / 1e12


def _copy(device: str, sizes: dict[str, Any]) -> float:
    x = torch.ones(sizes["copied"] // 4, device=device)
    y = torch.empty_like(x)
    return 2 * x.nbytes / seconds(lambda: y.copy_(x), device, sizes["repeats"]) / 1e9


@torch.no_grad()
def seconds(work: Callable[[], Any], device: str, repeats: int) -> float:
    """Median time of one call, after one that warms up."""
    work()
    times = []
    for _ in range(repeats):
        if device.startswith("cuda"):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            work()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) / 1000)
        else:
            begun = time.perf_counter()
            work()
            times.append(time.perf_counter() - begun)
    return statistics.median(times)
