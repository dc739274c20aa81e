"""Measured rates of this machine's device: `python -m s2flow.costs --measure`.

    tflops      a large matrix product in the models' dtype
    attention   full attention at head_dim 128, with torch's fastest kernel on the device
    float32     a 3-D convolution as in the autoencoder, in float32 with torch's defaults
    bandwidth   a copy of a large tensor, read and written

Medians of repeats, on CUDA by events. The link to other GPUs needs several processes and is not
measured: the assumption for the device's name, or `--link`, is used. Written as JSON under "rates";
`load_rates` reads any JSON with that entry, including a benchmark's file.

The CUDA side has not yet been run on a GPU.
"""

import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from s2flow.costs.clock import Rates, known
from s2flow.errors import UserError
from s2flow.process.provenance import provenance

CUDA = {"product": (8192, 8192, 8192), "attention": (1, 24, 16384, 128), "repeats": 10}
CUDA |= {"convolution": (1, 128, 9, 256, 256), "copied": 2**30}
CPU = {"product": (1024, 1024, 1024), "attention": (1, 4, 2048, 64), "repeats": 3}
CPU |= {"convolution": (1, 32, 5, 64, 64), "copied": 2**27}
KERNELS = (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION)
RATE_NAMES = ("tflops", "bandwidth", "link", "attention", "float32")


@torch.no_grad()
def measure_rates(device: str, sizes: dict[str, Any] | None = None) -> dict[str, Any]:
    """{"rates": {...}, device, versions, sizes} of "cuda", "cuda:1" or "cpu"."""
    cuda = device.startswith("cuda")
    sizes = sizes or (CUDA if cuda else CPU)
    kind = torch.bfloat16 if cuda else torch.float32

    def rate(amount: float, work: Callable[[], Any]) -> float:
        return float(f"{amount / seconds(work, device, sizes['repeats']):.4g}")

    rows, inner, columns = sizes["product"]
    a, b = (torch.randn(s, device=device, dtype=kind) for s in ((rows, inner), (inner, columns)))
    B, heads, L, d = sizes["attention"]
    q, k, v = torch.randn(3, B, heads, L, d, device=device, dtype=kind)
    flops = 4 * B * heads * L * L * d / 1e12
    attention = []
    for kernel in KERNELS if cuda else KERNELS[1:2]:
        try:
            with sdpa_kernel(kernel):
                attend = partial(F.scaled_dot_product_attention, q, k, v)
                attention.append(rate(flops, attend))
        except RuntimeError:  # not supported on this GPU
            continue
    if not attention:
        raise UserError(f"no attention kernel of torch runs on {device}; type --tflops instead")
    x = torch.randn(sizes["convolution"], device=device)
    C = x.shape[1]
    w = torch.randn(C, C, 3, 3, 3, device=device)
    old, new = torch.ones(2, sizes["copied"] // 4, device=device)
    name = torch.cuda.get_device_name(device) if cuda else "cpu"
    assumed = known(name)
    rates = {
        "tflops": rate(2 * rows * inner * columns / 1e12, lambda: a @ b),
        "attention": max(attention),
        "float32": rate(2 * 27 * C * x.numel() / 1e12, lambda: F.conv3d(x, w, padding=1)),
        "bandwidth": rate(2 * old.nbytes / 1e9, lambda: new.copy_(old)),
        "link": assumed and assumed.link,
        "kernels": True,
    }
    about = {k: v for k, v in provenance(device).items() if k not in ("command", "host")}
    return {"rates": rates, "name": name, "dtype": str(kind), "sizes": sizes, **about}


def load_rates(path: Path) -> Rates:
    """The rates of a file that `--measure` or a benchmark wrote. Raises UserError for any other."""
    try:
        rates = json.loads(path.read_text(encoding="utf-8"))["rates"]
        given = {k: rates.get(k) for k in RATE_NAMES}
        return Rates(rates["tflops"], kernels=bool(rates.get("kernels"))).having(**given)
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}); type another --rates"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(
            f"{path} holds no rates; type python -m s2flow.costs --measure --json rates.json"
        ) from None


def seconds(work: Callable[[], Any], device: str, repeats: int) -> float:
    """Median seconds of one call, after a warm-up call."""
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
            start_time = time.perf_counter()
            work()
            times.append(time.perf_counter() - start_time)
    return statistics.median(times)
