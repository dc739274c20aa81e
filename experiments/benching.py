"""What the benchmarks share: timing side by side, dense kernels, files that grow as they run.

    warm up each call once, then A B C A B C ...: drift of clocks and neighbours meets all alike;
    median and spread (interquartile range over the median) of each; ratios only within such a group

Short calls are repeated until one timing takes `LEAST` seconds; several sets of inputs take turns
where one would stay in a cache. CUDA is timed by events, a CPU by the clock. The file is written anew
after every measurement, so a killed run keeps what it has. The CUDA half has not run yet: no GPU was
at hand.
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
from script import RESULTS, load, result, write_result
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


class Result:
    """The file `bench_<what>_<device>_<kind>_<name>.json`, written anew whenever something is added."""

    def __init__(self, what: str, args: argparse.Namespace, kind: str = "", **more: Any) -> None:
        words = sys.argv[1:]
        if "--out" in words:  # results name no folder of a machine
            i = words.index("--out")
            words = words[:i] + words[i + 2 :]
        device = "cpu"
        if args.device == "cuda":  # "h200", "rtx_4090", ...
            device = re.sub(r"nvidia|geforce", "", torch.cuda.get_device_name().lower())
            device = re.sub(r"\W+", "_", device).strip("_")
        name = "_".join(filter(None, (f"bench_{what}", device, kind, args.name)))
        self.what, self.path = what, args.out / f"{name}.json"
        self.data = result(f"bench_{what}", words, args.device, load_average=load())
        try:
            triton = metadata.version("triton")
        except metadata.PackageNotFoundError:
            triton = None
        self.data["versions"] = self.data["versions"] | {"triton": triton}
        self.data |= {"finished": False, **more}
        self.end = time.monotonic() + 60 * args.minutes
        try:
            self.write()
        except OSError as error:
            hint = f"{error.strerror}; type a folder to write to"
            raise UserError(f"out={args.out}: {hint}") from None

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

    def failed(self, of: str, reasons: dict, word: Callable[[Any], Any] = str) -> None:
        """Which calls of a group failed, and why."""
        if reasons:
            self.add("failed", *(f"{of}, {word(k)}: {why}" for k, why in reasons.items()))

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

    def finish(self, judged: list[dict] | None = None) -> None:
        """Add what is judged, mark as finished; then the picture, if matplotlib is here."""
        if judged is not None:
            self.data["judged"] = judged
            print(*judged, sep="\n", end="\n" * bool(judged))
        self.data["load_average_after"] = load()
        self.put("finished", True)
        print(self.path)
        try:
            import bench_plots
        except ModuleNotFoundError as error:
            print(f"no picture: {error}; type python experiments/bench_plots.py {self.path}")
            return
        bench_plots.DRAW[self.what](self.data, self.path.with_suffix(""))


# -- timing -----------------------------------------------------------------------------------


def clock(device: str, call: Call, i: int) -> float:
    """Seconds of call(i)."""
    if device == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begin.record()
        call(i)
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1000
    start = time.perf_counter()
    call(i)
    return time.perf_counter() - start


@torch.no_grad()
def interleaved(
    calls: dict[Any, Call], device: str, repeats: int, seconds: float = math.inf, timed=None
) -> tuple[dict[Any, list[Any]], dict[Any, str]]:
    """({name: what was timed, by repeat}, {name: why it failed}), all calls in turn.

    seconds: of the whole group; there are three rounds at least (or `repeats`, if fewer).
    timed(call, i): what takes the time, if not `clock`; may return more than a number.
    """
    failed, inner, once = {}, {}, 0.0
    for name, call in calls.items():
        try:
            clock(device, call, 0)  # compiles, tunes, allocates
            took = clock(device, call, 1)
        except (RuntimeError, NotImplementedError, UserError, ImportError) as error:
            failed[name] = reason(error)
            continue
        inner[name] = 1 if timed else max(math.ceil(LEAST[device] / max(took, 1e-6)), 1)
        once += took * inner[name]

    def one(call: Call, n: int, i: int) -> Any:
        if timed:
            return timed(call, i)
        return clock(device, lambda start: [call(start + j) for j in range(n)], i * n) / n

    affordable = min(seconds / max(once, 1e-9), 1e6) - 1
    rounds = max(min(repeats, int(affordable)), min(3, repeats))
    by_round = [{k: one(calls[k], n, i) for k, n in inner.items()} for i in range(rounds)]
    return {k: [took[k] for took in by_round] for k in inner}, failed


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

    def met(limit: float) -> bool | None:
        if measured is None:
            return None
        return measured >= limit if least else measured <= limit

    line = {"what": what, "asked": (">= " if least else "<= ") + f"{asked:g}"}
    line |= {"measured": measured, "met": met(asked)}
    return line if goal is None else line | {"goal": goal, "goal_met": met(goal)}


# -- inputs, dense kernels, memory ------------------------------------------------------------


def random_qkv(shape: tuple, device: str, dtype: torch.dtype, seed: int = 0) -> list[Any]:
    """Sets of (q, k, v), standard normal: as many as together leave the cache, or one."""
    draw = {"generator": torch.Generator(device).manual_seed(seed)}
    draw |= {"device": device, "dtype": dtype}
    one = 3 * math.prod(shape) * dtype.itemsize
    sets = max(min(math.ceil(ROTATED[device] / one), 8), 1)
    return [tuple(torch.randn(shape, **draw) for _ in range(3)) for _ in range(sets)]


def dense_kernels(q: Tensor, device: str) -> tuple[dict[str, Callable], dict[str, str]]:
    """({name: f(q, k, v)}, {name: why not}): dense attention that may run on such a q."""
    kernels, missing = {"default": F.scaled_dot_product_attention}, {}
    for name, backend in SDPA.items():
        if name == "math" and math.prod(q.shape[:-1]) * q.shape[2] * 4 > QUADRATIC:
            missing[name] = "its logits would take too much memory"
        else:
            kernels[name] = sdpa_kernel(backend)(lambda *qkv: F.scaled_dot_product_attention(*qkv))
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
