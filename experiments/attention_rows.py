"""What `bench_attention.py` measures of one size: rows of times, errors, memory, planning.

Every group is timed side by side with the best dense kernel, and with our own kernel over the whole
grid, so that ratios are within one group. Each row is written as soon as its group is done.
"""

import itertools
import math
from dataclasses import dataclass
from typing import Any

import benching
import torch
from benching import Result, sig, summed_up
from torch import Tensor

from s2flow.attention import Problem, dispatch, window_attention
from s2flow.coverage import coverage_by_heads, sample_rows
from s2flow.errors import UserError
from s2flow.grid import Box, brick_grid, realised_density, window_mask
from s2flow.windows import DEFAULT_EXPONENTS, candidates

DENSITIES = (0.75, 0.5, 0.25, 0.125, 0.0156)
QUADRATIC = 2**12  # tokens up to which the reference, which writes its mask out, is timed
WHOLE, MIXED = "whole grid", "mixed"


@dataclass(frozen=True)
class Size:
    """One problem: token grid, brick, heads, head_dim, text tokens, type."""

    tokens: Box
    brick: Box
    heads: int
    d: int
    text: int
    dtype: torch.dtype


@dataclass(frozen=True)
class Timing:
    """A call to be timed: window attention of one window a head; words: what the file calls them."""

    words: str
    f: float
    windows: tuple[Box, ...]
    ordered: bool = False


class Bench:
    """All measurements of one size, each written as soon as it is made."""

    def __init__(self, name: str, size: Size, args: Any, result: Result) -> None:
        self.name, self.size, self.args, self.result = name, size, args, result
        self.n = math.prod(size.tokens)
        self.length = self.n + size.text
        shape = (1, size.heads, self.length, size.d)
        self.sets = benching.random_qkv(shape, args.device, size.dtype)
        self.problem = Problem.of(self.sets[0][0], size.tokens, size.brick)
        self.g = brick_grid(size.tokens, size.brick)
        self.whole = (self.g,) * size.heads
        self.dense_flops = 4 * self.length**2 * size.d * size.heads
        self.dense: dict[str, Any] = {}
        self.best, self.once = "", 0.0  # the fastest dense kernel, its seconds
        self.about = {
            "tokens": size.tokens,
            "video_tokens": self.n,
            "text_tokens": size.text,
            "brick": size.brick,
            "bricks": self.g,
            "heads": size.heads,
            "head_dim": size.d,
            "dtype": str(size.dtype).removeprefix("torch."),
        }

    def measure(self) -> None:
        """Dense kernels; per backend mixed windows, error, memory; then each shape; planning."""
        self.result.data["sizes"][self.name] = self.about
        rate = {"cpu": 2e10, "cuda": 2e14}[self.args.device]  # FLOP/s, a modest one
        if not self.result.time_for(f"{self.name}: all", 12 * self.dense_flops / rate):
            return
        self._time_dense()
        reasons = self.about["backends"] = self._unusable()
        auto = dispatch.choose(self.problem)
        self.about |= {"auto": auto, "auto_in_bricks": dispatch.module(auto).IN_BRICKS}
        usable = sorted((n for n, why in reasons.items() if why is None), key=lambda n: n != auto)
        for backend in usable:
            try:
                self._mixed(backend)
                self._error(backend)
                self._memory(backend)
            except Exception as error:  # of one backend; the lent minutes are for the others, too
                reasons[backend] = f"failed with {benching.reason(error)}"
                self.result.write()
        usable = [n for n in usable if reasons[n] is None]
        self.planning()
        for backend in usable[:1] if self.args.device == "cuda" else usable:
            for f in DENSITIES:
                self._shapes(backend, f)

    def _unusable(self) -> dict[str, str | None]:
        """Why each backend is not timed here, or None."""
        reasons = {n: dispatch.why_not(n, self.problem) for n in dispatch.NAMES if n != "auto"}
        for n, why in reasons.items():
            if why is None and self.args.device not in dispatch.module(n).AUTO:
                reasons[n] = f"on a {self.args.device} only by name, and not timed here"
        if self.length > QUADRATIC:
            reasons["reference"] = "its memory is quadratic"
        return reasons

    def _time_dense(self) -> None:
        self.dense, missing = benching.dense_kernels(self.sets[0][0], self.args.device)
        times, failed = self.timed({n: self.dense_call(n) for n in self.dense})
        rows = {n: summed_up(t) for n, t in times.items()}
        self.best = min(rows, key=lambda n: rows[n]["seconds"])
        self.once = rows[self.best]["seconds"]
        for row in rows.values():
            row["tflops"] = sig(self.dense_flops / row["seconds"] / 1e12, 4)
        self.about |= {"dense": rows, "dense_unusable": missing | failed, "best_dense": self.best}
        self.result.write()
        print(f"{self.name}: best dense is {self.best}, {self.once:.4g} s")

    def timed(self, calls: dict[Any, Any]) -> tuple[dict, dict]:
        """Side by side; a group takes a twelfth of the time at most, three rounds at least."""
        share = 60 * self.args.minutes / 12
        return benching.interleaved(calls, self.args.device, self.args.repeats, share)

    def dense_call(self, name: str):
        """Dense attention by a kernel, on the sets in turn."""
        return lambda i: self.dense[name](*self.sets[i % len(self.sets)])

    def call(self, backend: str, windows: tuple[Box, ...], ordered: bool = False):
        """window_attention of these windows, one a head."""
        grid, table = (self.size.tokens, self.size.brick), torch.tensor(windows)
        problem = Problem.of(self.sets[0][0], *grid, table, ordered=ordered)
        return lambda i: window_attention(*self.sets[i % len(self.sets)], problem, backend)

    def boxes(self, f: float) -> list[Box]:
        """Candidates of density f, or of the nearest number of bricks within a tenth of it.

        Empty where this grid has neither, which is listed as left out.
        """
        bricks = math.prod(self.g)
        nearest = max(round(f * bricks), 1) / bricks
        for wanted in (f, nearest) if abs(nearest - f) <= 0.1 * f else (f,):
            try:
                return candidates(wanted, DEFAULT_EXPONENTS, self.g)
            except UserError as error:
                line = f"{self.name}, f = {f:g}: {error}"
        if line not in self.result.data.get("left_out", []):
            self.result.add("left_out", line)
        return []

    def mixture(self, f: float) -> tuple[Box, ...]:
        """One window a head, the candidates in turn."""
        return tuple(itertools.islice(itertools.cycle(self.boxes(f)), self.size.heads))

    def density(self, windows: tuple[Box, ...]) -> float:
        """Realised f, the mean over heads."""
        s = self.size
        return sum(realised_density(s.tokens, s.brick, b) for b in windows) / len(windows)

    def _mixed(self, backend: str) -> None:
        """A plan's windows at every density beside the whole grid and the best dense kernel."""
        orders = (False, True) if dispatch.module(backend).IN_BRICKS else (False,)
        densities = [f for f in DENSITIES if self.boxes(f)]
        group = [Timing(WHOLE, 1.0, self.whole, o) for o in orders]
        group += [Timing(MIXED, f, self.mixture(f), o) for f in densities for o in orders]
        slow = 30 if backend == "reference" else 4
        seconds = slow * self.once * (1 + len(orders) * (1 + sum(densities)))
        if self.result.time_for(f"{self.name}, {backend}: mixed", seconds):
            self._group("mixed", backend, group)

    def _shapes(self, backend: str, f: float) -> None:
        """Every candidate of one density, the same for all heads; permutation included."""
        boxes = self.boxes(f)
        seconds = 4 * self.once * (2 + f * len(boxes))
        if boxes and self.result.time_for(f"{self.name}, {backend}: f = {f:g}", seconds):
            group = [Timing("x".join(map(str, b)), f, (b,) * self.size.heads) for b in boxes]
            self._group(f"shapes {f:g}", backend, [*group, Timing(WHOLE, 1.0, self.whole)])

    def _group(self, group: str, backend: str, timings: list[Timing]) -> None:
        """Time one group with the best dense kernel, and write a row for each call."""
        calls = {t: self.call(backend, t.windows, t.ordered) for t in timings}
        times, failed = self.timed({"dense": self.dense_call(self.best), **calls})
        self.result.failed(f"{self.name}, {backend}", failed, lambda t: getattr(t, "words", t))
        if "dense" not in times:
            return
        dense = summed_up(times.pop("dense"))
        rows = {t: summed_up(seconds) for t, seconds in times.items()}
        whole = {t.ordered: row["seconds"] for t, row in rows.items() if t.words == WHOLE}
        n, text = self.n, self.size.text
        for t, row in rows.items():
            own = whole.get(t.ordered)
            share = own and own / row["seconds"]  # our kernel over the whole grid over this
            density = self.density(t.windows)
            pairs = (density * n**2 + 2 * n * text + text**2) / (n + text) ** 2
            ratio = dense["seconds"] / row["seconds"]
            line = {
                **{"size": self.name, "backend": backend, "group": group, "windows": t.words},
                **{"f": t.f, "density": sig(density), "pairs": sig(pairs), "ordered": t.ordered},
                **row,
                "best_dense": self.best,
                "dense_seconds": dense["seconds"],
                "dense_spread": dense["spread"],
                "ratio": sig(ratio),
                "share_of_1_over_f": share and sig(share * density),
                "share_of_1_over_pairs": share and sig(share * pairs),
            }
            self.result.add("rows", line)
            words = f"{self.name} {backend} f={t.f:g} {t.words}{' ordered' * t.ordered}"
            print(f"{words}: {row['seconds']:.4g} s, {ratio:.2f} x best dense")

    @torch.no_grad()
    def _error(self, backend: str) -> None:
        """rel-L2 of sampled rows at every density, and of the best dense kernel."""
        rows = sample_rows(self.n, self.args.rows, seed=1)
        at = rows.to(self.sets[0][0].device)
        errors = self.about.setdefault("error", {})
        if "dense" not in errors:
            out = self.dense_call(self.best)(0)[:, :, at]
            errors["dense"] = rel_l2(out, self.exact(self.whole, rows))
        for f in DENSITIES:
            if self.boxes(f) and self.result.time_for("error", 4 * f * self.once):
                windows = self.mixture(f)
                out = self.call(backend, windows)(0)[:, :, at]
                errors.setdefault(backend, {})[str(f)] = rel_l2(out, self.exact(windows, rows))
                self.result.write()

    def exact(self, windows: tuple[Box, ...], rows: Tensor) -> Tensor:
        """(1, heads, R, d) float32: softmax over each head's window and text, of these rows."""
        s, (q, k, v) = self.size, self.sets[0]
        masks = {b: window_mask(s.tokens, s.brick, b, rows).to(q.device) for b in set(windows)}
        out = []
        for h, box in enumerate(windows):
            logits = q[:, h, rows.to(q.device)].float() @ k[:, h].float().mT / math.sqrt(s.d)
            logits[..., : self.n].masked_fill_(~masks[box], -math.inf)
            out.append(logits.softmax(-1) @ v[:, h].float())
        return torch.stack(out, 1)

    def _memory(self, backend: str) -> None:
        """Peak of a call at f = .5 (or the nearest that there is), its tokens in its own order."""
        f = next((f for f in (0.5, 0.25, 0.125) if self.boxes(f)), None)
        if f is None or not self.result.time_for("memory", 4 * self.once):
            return
        own = dispatch.module(backend).IN_BRICKS
        calls = {"dense": self.dense_call(self.best)}
        calls["in_its_order"] = self.call(backend, self.mixture(f), own)
        calls["row_major"] = self.call(backend, self.mixture(f))
        device, inputs = self.args.device, self.sets[0]
        peaks = {k: benching.peak_bytes(c, device, inputs) for k, c in calls.items()}
        ratios = {f"{k}_over_dense": sig(peaks[k] / peaks["dense"]) for k in list(calls)[1:]}
        self.about.setdefault("memory", {})[backend] = {"f": f, **peaks, **ratios}
        self.result.write()

    def planning(self) -> None:
        """Coverage of all boxes of one layer from 128 rows a head, beside dense attention."""
        if not self.result.time_for(f"{self.name}: planning", 6 * self.once):
            return

        def cover(i: int) -> Tensor:
            q, k, _ = self.sets[i % len(self.sets)]
            rows = sample_rows(self.n, 128, i)
            return coverage_by_heads(q, k, rows, self.size.tokens, self.size.brick)

        times, failed = self.timed({"dense": self.dense_call(self.best), "coverage": cover})
        self.result.failed(self.name, failed)
        if failed:
            return
        rows = {name: summed_up(t) for name, t in times.items()}
        share = sig(rows["coverage"]["seconds"] / rows["dense"]["seconds"])
        self.about["planning"] = {**rows, "share": share, "rows": min(128, self.n)}
        self.result.write()


def rel_l2(out: Tensor, exact: Tensor) -> float:
    """|out - exact| / |exact|."""
    return sig(float((out.float() - exact).norm() / exact.norm()), 3)
