"""What `bench_attention.py` measures of one size: rows of times, errors, memory, planning.

Every group is timed side by side with the best dense kernel, and with our own kernel over the whole
grid, so that ratios are within one group. Each row is written as soon as its group is done.
"""

import itertools
import math
from dataclasses import dataclass
from typing import Any

import torch
from benching import (
    Result,
    dense_kernels,
    interleaved,
    peak_bytes,
    random_qkv,
    sig,
    summed_up,
)
from torch import Tensor

from s2flow.attention import Problem, dispatch, window_attention
from s2flow.coverage import coverage_by_heads, sample_rows
from s2flow.errors import UserError
from s2flow.grid import Box, brick_grid, realised_density, window_mask
from s2flow.windows import DEFAULT_EXPONENTS, candidates

DENSITIES = (0.75, 0.5, 0.25, 0.125, 0.0156)
QUADRATIC = 2**12  # tokens up to which the reference, which writes its mask out, is timed


@dataclass(frozen=True)
class Size:
    """One problem: token grid, brick, heads, head_dim, text tokens, type."""

    tokens: Box
    brick: Box
    heads: int
    d: int
    text: int
    dtype: torch.dtype

    @property
    def length(self) -> int:
        """Tokens, text included."""
        return math.prod(self.tokens) + self.text


class Bench:
    """All measurements of one size, each written as soon as it is made."""

    def __init__(self, name: str, size: Size, args: Any, result: Result) -> None:
        self.name, self.size, self.args, self.result = name, size, args, result
        shape = (1, size.heads, size.length, size.d)
        self.sets = random_qkv(shape, args.device, size.dtype)
        self.g = brick_grid(size.tokens, size.brick)
        self.dense: dict[str, Any] = {}
        self.best, self.once = "", 0.0
        self.found = {
            "tokens": size.tokens,
            "video_tokens": math.prod(size.tokens),
            "text_tokens": size.text,
            "brick": size.brick,
            "bricks": self.g,
            "heads": size.heads,
            "head_dim": size.d,
            "dtype": str(size.dtype).removeprefix("torch."),
        }
        result.found["sizes"][name] = self.found

    def measure(self) -> None:
        """Dense kernels; per backend mixed windows, error, memory; then each shape; planning."""
        if not self.result.time_for(f"{self.name}: all", self._guess()):
            return
        self.dense_ones()
        problem = Problem.of(self.sets[0][0], self.size.tokens, self.size.brick)
        names = [n for n in dispatch.NAMES if n != "auto"]
        reasons = {n: dispatch.why_not(n, problem) for n in names}
        for n in names:
            if reasons[n] is None and self.args.device not in dispatch.module(n).AUTO:
                reasons[n] = f"on a {self.args.device} only by name, and not timed here"
        if self.size.length > QUADRATIC:
            reasons["reference"] = "its memory is quadratic"
        self.found["backends"] = reasons
        self.found["auto"] = auto = dispatch.choose(problem)
        self.found["auto_in_bricks"] = dispatch.module(auto).IN_BRICKS
        usable = [n for n in names if reasons[n] is None]
        usable.sort(key=lambda n: n != self.found["auto"])
        for backend in usable:
            try:
                self.mixed(backend)
                self.error(backend)
                self.memory(backend)
            except Exception as error:  # of one backend; the lent minutes are for the others, too
                said = (str(error).splitlines() or [""])[0][:200]
                reasons[backend] = f"failed with {type(error).__name__}: {said}"
                self.result.write()
        usable = [n for n in usable if reasons[n] is None]
        self.planning()
        for backend in usable[:1] if self.args.device == "cuda" else usable:
            for f in DENSITIES:
                self.shapes(backend, f)

    def _guess(self) -> float:
        """Seconds that the dense kernels may take, 4 L^2 d heads FLOPs at a modest rate."""
        rate = {"cpu": 2e10, "cuda": 2e14}[self.args.device]
        return 12 * 4 * self.size.length**2 * self.size.d * self.size.heads / rate

    def dense_ones(self) -> None:
        """Which dense kernel is the best one here."""
        self.dense, missing = dense_kernels(self.sets[0][0], self.args.device)
        times, failed = self.timed({n: self._dense(n) for n in self.dense})
        rows = {n: summed_up(t) for n, t in times.items()}
        self.best = min(rows, key=lambda n: rows[n]["seconds"])
        self.once = rows[self.best]["seconds"]
        flops = 4 * self.size.length**2 * self.size.d * self.size.heads
        for row in rows.values():
            row["tflops"] = sig(flops / row["seconds"] / 1e12, 4)
        self.found |= {"dense": rows, "dense_unusable": missing | failed, "best_dense": self.best}
        self.result.write()
        print(f"{self.name}: best dense is {self.best}, {self.once:.4g} s")

    def timed(self, calls: dict[str, Any]) -> tuple[dict, dict]:
        """Side by side; a group takes a twelfth of the time at most, three rounds at least."""
        share = 60 * self.args.minutes / 12
        return interleaved(calls, self.args.device, self.args.repeats, share)

    def _dense(self, name: str):
        return lambda i: self.dense[name](*self.sets[i % len(self.sets)])

    def call(self, backend: str, windows: list[Box], ordered: bool):
        """window_attention of these windows, one a head."""
        kind, table = (self.size.tokens, self.size.brick), torch.tensor(windows)
        problem = Problem.of(self.sets[0][0], *kind, table, ordered=ordered)
        return lambda i: window_attention(*self.sets[i % len(self.sets)], problem, backend)

    def boxes(self, f: float) -> list[Box]:
        """Candidates of density f, or of the nearest number of bricks within a tenth of it.

        None where this grid has neither, which is listed as left out.
        """
        bricks = math.prod(self.g)
        nearest = max(round(f * bricks), 1) / bricks
        for wanted in (f, nearest) if abs(nearest - f) <= 0.1 * f else (f,):
            try:
                return candidates(wanted, DEFAULT_EXPONENTS, self.g)
            except UserError as error:
                line = f"{self.name}, f = {f:g}: {error}"
        if line not in self.result.found.get("left_out", []):
            self.result.add("left_out", line)
        return []

    def mixture(self, f: float) -> list[Box]:
        """One window a head, the candidates in turn."""
        return list(itertools.islice(itertools.cycle(self.boxes(f)), self.size.heads))

    def mixed(self, backend: str) -> None:
        """A plan's windows at every density beside the whole grid and the best dense kernel."""
        tables = {1.0: [self.g] * self.size.heads}
        tables |= {f: self.mixture(f) for f in DENSITIES if self.boxes(f)}
        orders = (False, True) if dispatch.module(backend).IN_BRICKS else (False,)
        calls = {
            (f, ordered): self.call(backend, table, ordered)
            for f, table in tables.items()
            for ordered in orders
        }
        slow = 30 if backend == "reference" else 4
        seconds = slow * self.once * (1 + len(orders) * sum(tables))
        if self.result.time_for(f"{self.name}, {backend}: mixed", seconds):
            words = {f: "whole grid" if f == 1 else "mixed" for f in tables}
            self.group("mixed", backend, calls, tables, words)

    def shapes(self, backend: str, f: float) -> None:
        """Every candidate of one density, the same for all heads; permutation included."""
        found = self.boxes(f)
        seconds = 4 * self.once * (2 + f * len(found))
        if not found or not self.result.time_for(f"{self.name}, {backend}: f = {f:g}", seconds):
            return
        tables = {(f, box): [box] * self.size.heads for box in found}
        tables[1.0, self.g] = [self.g] * self.size.heads
        calls = {((f, b), False): self.call(backend, t, False) for (f, b), t in tables.items()}
        words = {key: "x".join(map(str, key[1])) for key in tables}
        words[1.0, self.g] = "whole grid"
        self.group(f"shapes {f:g}", backend, calls, tables, words)

    def group(self, group: str, backend: str, calls: dict, tables: dict, words: dict) -> None:
        """Time one group with the best dense kernel, and write a row for each call."""
        times, failed = self.timed({"dense": self._dense(self.best), **calls})
        if failed:
            lines = [f"{self.name}, {backend}, {words[k[0]]}: {v}" for k, v in failed.items()]
            self.result.add("failed", *lines)
        if "dense" not in times:
            return
        dense = summed_up(times.pop("dense"))
        rows = {key: summed_up(t) for key, t in times.items()}
        whole = {o: r["seconds"] for (k, o), r in rows.items() if words[k] == "whole grid"}
        for (key, ordered), row in rows.items():
            f = key if isinstance(key, float) else key[0]
            n, row_f = math.prod(self.size.tokens), self.density(tables[key])
            text, own = self.size.text, whole.get(ordered)
            pairs = (row_f * n**2 + 2 * n * text + text**2) / (n + text) ** 2
            share = None if own is None else own / row["seconds"]
            known = {
                "size": self.name,
                "backend": backend,
                "windows": words[key],
                "group": group,
                "f": f,
                "density": sig(row_f),
                "pairs": sig(pairs),
                "ordered": ordered,
                **row,
                "best_dense": self.best,
                "dense_seconds": dense["seconds"],
                "dense_spread": dense["spread"],
                "ratio": sig(dense["seconds"] / row["seconds"]),
                "share_of_1_over_f": share and sig(share * row_f),
                "share_of_1_over_pairs": share and sig(share * pairs),
            }
            self.result.add("rows", known)
            said = f"{self.name} {backend} f={f:g} {words[key]}{' ordered' if ordered else ''}: "
            print(f"{said}{row['seconds']:.4g} s, {known['ratio']:.2f} x best dense")

    def density(self, windows: list[Box]) -> float:
        """Realised f, the mean over heads."""
        s = self.size
        return sum(realised_density(s.tokens, s.brick, b) for b in windows) / len(windows)

    @torch.no_grad()
    def error(self, backend: str) -> None:
        """rel-L2 of sampled rows at every density, and of the best dense kernel."""
        rows = sample_rows(math.prod(self.size.tokens), self.args.rows, seed=1)
        q, k, v = self.sets[0]
        at = rows.to(q.device)
        if "dense" not in self.found.setdefault("error", {}):
            exact = self.exact([self.g] * self.size.heads, rows)
            self.found["error"]["dense"] = rel_l2(self._dense(self.best)(0)[:, :, at], exact)
        for f in DENSITIES:
            if not self.boxes(f) or not self.result.time_for("error", 4 * f * self.once):
                continue
            windows = self.mixture(f)
            out = self.call(backend, windows, False)(0)[:, :, at]
            found = rel_l2(out, self.exact(windows, rows))
            self.found["error"].setdefault(backend, {})[str(f)] = found
            self.result.write()

    def exact(self, windows: list[Box], rows: Tensor) -> Tensor:
        """(1, heads, R, d) float32: softmax over each head's window and text, of these rows."""
        s, (q, k, v) = self.size, self.sets[0]
        n = math.prod(s.tokens)
        masks = {b: window_mask(s.tokens, s.brick, b, rows).to(q.device) for b in set(windows)}
        out = []
        for h, box in enumerate(windows):
            logits = q[:, h, rows.to(q.device)].float() @ k[:, h].float().mT / math.sqrt(s.d)
            logits[..., :n].masked_fill_(~masks[box], -math.inf)
            out.append(logits.softmax(-1) @ v[:, h].float())
        return torch.stack(out, 1)

    def memory(self, backend: str) -> None:
        """Peak of a call at f = .5 (or the nearest that there is), its tokens in its own order."""
        f = next((f for f in (0.5, 0.25, 0.125) if self.boxes(f)), None)
        if f is None or not self.result.time_for("memory", 4 * self.once):
            return
        own = dispatch.module(backend).IN_BRICKS
        peak = lambda call: peak_bytes(call, self.args.device, self.sets[0])  # noqa: E731
        dense = peak(self._dense(self.best))
        found = {"f": f, "dense": dense}
        for word, ordered in (("in_its_order", own), ("row_major", False)):
            found[word] = peak(self.call(backend, self.mixture(f), ordered))
            found[f"{word}_over_dense"] = sig(found[word] / dense)
        self.found.setdefault("memory", {})[backend] = found
        self.result.write()

    def planning(self) -> None:
        """Coverage of all boxes of one layer from 128 rows a head, beside dense attention."""
        s, n = self.size, math.prod(self.size.tokens)
        if not self.result.time_for(f"{self.name}: planning", 6 * self.once):
            return

        def cover(i: int) -> Tensor:
            q, k, _ = self.sets[i % len(self.sets)]
            return coverage_by_heads(q, k, sample_rows(n, 128, i), s.tokens, s.brick)

        times, failed = self.timed({"dense": self._dense(self.best), "coverage": cover})
        if failed:
            self.result.add("failed", *(f"{self.name}, {k}: {v}" for k, v in failed.items()))
            return
        found = {name: summed_up(t) for name, t in times.items()}
        found["share"] = sig(found["coverage"]["seconds"] / found["dense"]["seconds"])
        self.found["planning"] = found | {"rows": min(128, n)}
        self.result.write()


def rel_l2(out: Tensor, exact: Tensor) -> float:
    """|out - exact| / |exact|."""
    return sig(float((out.float() - exact).norm() / exact.norm()), 3)
