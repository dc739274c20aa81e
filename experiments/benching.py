"""What the benchmarks share: timing side by side, dense kernels, files that grow as they run.

    warm up each call once, then A B C A B C ...: drift of clocks and neighbours meets all alike;
    median and spread (interquartile range over the median) of each; ratios only within such a group

Short calls are repeated until one timing takes `LEAST` seconds. Inputs are fresh random numbers, and
several sets take turns where one would stay in a cache. CUDA is timed by events, a CPU by the clock.
The file is written anew after every measurement, so a killed run keeps what it has measured. The
CUDA half of this file has not run yet: no GPU was at hand.
"""

import argparse
import math
import re
import sys
import time
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from commands import load
from script import RESULTS, result, write_result
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from s2flow.errors import UserError

LEAST = {"cpu": 0.02, "cuda": 0.005}  # seconds of one timing
ROTATED = {"cpu": 2**26, "cuda": 2**28}  # bytes of inputs that together leave any cache
SDPA = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
QUADRATIC = 2**33  # bytes of logits up to which the math kernel is tried

Call = Callable[[int], Any]  # given the number of the repeat, by which inputs take turns
Timed = Callable[[Call, int], Any]


# -- the command line and the file ------------------------------------------------------------


def parser_of(doc: str) -> argparse.ArgumentParser:
    """Options that all benchmarks have."""
    parser = argparse.ArgumentParser(description=doc.split("\n")[0])
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--minutes", type=float, default=9, help="begin nothing after that")
    parser.add_argument("--repeats", type=int, default=7, help="timings of each call at most")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON file")
    parser.add_argument("--name", default="", help="added to the file's name")
    return parser


def checked(args: argparse.Namespace) -> argparse.Namespace:
    """Options with the device resolved. Raises UserError for what cannot work."""
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda: no CUDA device is here; type --device cpu")
    if args.device == "auto":
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    if not args.minutes > 0:
        raise UserError(f"minutes={args.minutes:g} leaves no time; type --minutes 5")
    if args.repeats < 1:
        raise UserError(f"repeats={args.repeats} measures nothing; type --repeats 3")
    if re.search(r"[^\w.=-]", args.name):
        raise UserError(f"name={args.name} is part of a file's name; type letters and digits")
    return args


def label(device: str) -> str:
    """The device in a file's name: "cpu", "h200", "rtx_4090", ..."""
    if device == "cpu":
        return "cpu"
    words = re.sub(r"nvidia|geforce", "", torch.cuda.get_device_name().lower())
    return re.sub(r"\W+", "_", words).strip("_")


class Result:
    """One JSON file, `bench_<what>_<device><_name>.json`, written anew whenever something is added."""

    def __init__(self, what: str, args: argparse.Namespace, **more: Any) -> None:
        words = filter(None, (f"bench_{what}", label(args.device), args.name))
        self.path = args.out / ("_".join(words) + ".json")
        self.data = result(f"bench_{what}", _words(), args.device, load_average=load())
        self.data["versions"] = self.data["versions"] | {"triton": _triton()}
        self.data |= {"finished": False, **more}
        self.end = time.monotonic() + 60 * args.minutes
        try:
            self.write()
        except OSError as error:
            raise UserError(
                f"out={args.out}: {error.strerror}; type a folder to write to"
            ) from None

    def write(self) -> None:
        """Whole or not at all."""
        write_result(self.path, self.data)

    def add(self, key: str, *rows: Any) -> None:
        """More rows of a list."""
        self.data.setdefault(key, []).extend(rows)
        self.write()

    def put(self, key: str, value: Any) -> None:
        """One entry."""
        self.data[key] = value
        self.write()

    def left(self) -> float:
        """Seconds of the budget."""
        return self.end - time.monotonic()

    def time_for(self, what: str, seconds: float) -> bool:
        """Whether so many seconds are left; if not, `what` is listed as left out."""
        left = self.left()
        if seconds <= left:
            return True
        self.add("left_out", f"{what}: about {seconds:.0f} s, {max(left, 0):.0f} s were left")
        return False

    def finish(self, draw: str) -> None:
        """Mark as finished; then the picture, if matplotlib is here."""
        self.data["load_average_after"] = load()
        self.put("finished", True)
        print(self.path)
        try:
            import bench_plots
        except ModuleNotFoundError as error:
            print(f"no picture: {error}; type python experiments/bench_plots.py {self.path}")
            return
        getattr(bench_plots, draw)(self.data, self.path.with_suffix(""))


def _words() -> list[str]:
    """The words typed, without --out: results name no folder of a machine."""
    words = sys.argv[1:]
    if "--out" in words:
        i = words.index("--out")
        words = words[:i] + words[i + 2 :]
    return words


def _triton() -> str | None:
    try:
        return metadata.version("triton")
    except metadata.PackageNotFoundError:
        return None


# -- timing -----------------------------------------------------------------------------------


def timer(device: str) -> Timed:
    """(call, number of the repeat) -> seconds."""

    def on_cuda(call: Call, i: int) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begin.record()
        call(i)
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1000

    def on_cpu(call: Call, i: int) -> float:
        start = time.perf_counter()
        call(i)
        return time.perf_counter() - start

    return on_cuda if device == "cuda" else on_cpu


@torch.no_grad()
def interleaved(
    calls: dict[str, Call], device: str, repeats: int, seconds: float = math.inf, timed=None
) -> tuple[dict[str, list[Any]], dict[str, str]]:
    """({name: what was timed, by repeat}, {name: why it failed}), all calls in turn.

    seconds: of the whole group; there are three rounds at least (or `repeats`, if fewer).
    timed: what takes the time, if not `timer`; may return more than a number.
    """
    clock = timer(device)
    failed, inner, once = {}, {}, 0.0
    for name, call in calls.items():
        try:
            clock(call, 0)  # compiles, tunes, allocates
            took = clock(call, 1)
        except (RuntimeError, NotImplementedError, UserError, ImportError) as error:
            failed[name] = reason(error)
            continue
        inner[name] = 1 if timed else max(math.ceil(LEAST[device] / max(took, 1e-6)), 1)
        once += took * inner[name]

    def one(name: str, i: int) -> Any:
        if timed:
            return timed(calls[name], i)
        n = inner[name]
        return clock(lambda start: [calls[name](start + j) for j in range(n)], i * n) / n

    affordable = min(seconds / max(once, 1e-9), 1e6) - 1
    rounds = max(min(repeats, int(affordable)), min(3, repeats))
    times: dict[str, list[Any]] = {name: [] for name in inner}
    for i in range(rounds):
        for name in inner:
            times[name].append(one(name, i))
    return times, failed


def reason(error: Exception) -> str:
    """Type and first line of an error."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"


def summed_up(seconds: list[float]) -> dict[str, Any]:
    """Median, spread and number of some timings."""
    low, middle, high = np.quantile(seconds, (0.25, 0.5, 0.75))
    spread = round(float((high - low) / middle), 4)
    return {"seconds": sig(middle), "spread": spread, "repeats": len(seconds)}


def sig(x: float, digits: int = 5) -> float:
    """Rounded to so many digits."""
    return float(f"{x:.{digits}g}")


def judge(what: str, asked: float, measured: float | None, goal: float | None = None, least=True):
    """One line of what is asked for, as the file has it; least: more is better."""
    good = (lambda limit: measured >= limit) if least else (lambda limit: measured <= limit)
    line = {"what": what, "asked": (">= " if least else "<= ") + f"{asked:g}"}
    line |= {"measured": measured, "met": None if measured is None else good(asked)}
    if goal is not None:
        line |= {"goal": goal, "goal_met": None if measured is None else good(goal)}
    return line


# -- inputs, dense kernels, memory ------------------------------------------------------------


def random_qkv(shape: tuple, device: str, dtype: torch.dtype, seed: int = 0) -> list[Any]:
    """Sets of (q, k, v), standard normal: as many as together leave the cache, or one."""
    one = 3 * math.prod(shape) * dtype.itemsize
    generator = torch.Generator(device).manual_seed(seed)
    draw = {"generator": generator, "device": device, "dtype": dtype}
    sets = max(min(math.ceil(ROTATED[device] / one), 8), 1)
    return [tuple(torch.randn(shape, **draw) for _ in range(3)) for _ in range(sets)]


def dense_kernels(q: Tensor, device: str) -> tuple[dict[str, Callable], dict[str, str]]:
    """({name: f(q, k, v)}, {name: why not}): dense attention that may run on such a q."""
    kernels, missing = {"default": F.scaled_dot_product_attention}, {}
    for name, backend in SDPA.items():
        if name == "math" and math.prod(q.shape[:-1]) * q.shape[2] * 4 > QUADRATIC:
            missing[name] = "its logits would take too much memory"
        else:
            kernels[name] = lambda q, k, v, b=backend: _forced(q, k, v, b)
    try:
        from flash_attn.cute import flash_attn_func
    except Exception as error:  # an optional package, which may fail in its own ways
        missing["flash-attn-4"] = reason(error)
        return kernels, missing

    def fa4(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = flash_attn_func(*(x.transpose(1, 2) for x in (q, k, v)))
        return (out[0] if isinstance(out, tuple) else out).transpose(1, 2)

    if device == "cuda":
        kernels["flash-attn-4"] = fa4
    else:
        missing["flash-attn-4"] = "it needs a CUDA device"
    return kernels, missing


def _forced(q: Tensor, k: Tensor, v: Tensor, backend: SDPBackend) -> Tensor:
    with sdpa_kernel(backend):
        return F.scaled_dot_product_attention(q, k, v)


@torch.no_grad()
def peak_bytes(call: Call, device: str, inputs: Iterable[Tensor]) -> int:
    """Bytes of a call at its worst moment, its inputs included.

    On a CPU of tensors only (`s2flow.costs.trace.Trace`): what a kernel allocates inside is not seen.
    """
    given = sum(x.nbytes for x in inputs)
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call(0)
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before + given
    from s2flow.costs.trace import tracing  # heavy, and of no use on a GPU

    with tracing(fused=False) as trace:
        call(0)
    return trace.peak + given
