"""One block of each kind of the true HunyuanVideo and Wan 1.3B, scaled to a step of the whole model.

    python experiments/bench_step.py                # on a GPU: true width; on a CPU: toy width
    cost      a minute on two CPU cores; --minutes on a GPU (`bench_on_gpu.sh`), not yet run there
    expected  the step at f against the dense one as `s2flow.costs` has it: 1.9 times at .5, 6 at .125

A transformer with one block of each kind and random weights runs the backbone's own `velocity`,
windows through its router as in an HR step; speed-ups are over the fastest dense kernel at hand, in
one group. The blocks are timed inside, by events before and after them; rest is what lies in none of
them:

    step = rest + sum over kinds of (blocks of that kind in the model) x (seconds of one)

Beside it: FLOPs by `s2flow.costs`, their seconds at the rate assumed there and at the one that the
dense step achieved. planning: the coverage of one layer (Eq. 8) over the forward of one block. Writes
results/bench_step_<device>.json with picture, `_toy` in its name at toy width.
"""

import itertools
import math
import time
from collections.abc import Callable
from typing import Any

import random_models
import torch
from benching import Result, checked, dense_kernels, interleaved, judge, parser_of, sig, summed_up
from random_models import Model, Problem, build, model, random_condition, sizes_of
from script import run
from torch import Tensor, nn

from s2flow import attention
from s2flow.costs.blank import blank
from s2flow.costs.forward import forward_cost
from s2flow.coverage import coverage_by_heads, sample_rows
from s2flow.grid import brick_grid
from s2flow.plan import Plan
from s2flow.windows import DEFAULT_EXPONENTS, candidates

MODELS = ("hunyuan", "wan_1_3b")
DENSITIES = (0.5, 0.25, 0.125)
N = 1  # the step that the plan is made for


def main() -> None:
    """LR of all models, then HR, as far as the time goes."""
    parser = parser_of(__doc__)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--sizes", nargs="+", choices=("lr", "hr"), default=("lr", "hr"))
    parser.add_argument("--tiny", action="store_true", help="toy width, as on a CPU")
    args = checked(parser.parse_args())
    toy = args.tiny or args.device == "cpu"
    result = Result("step", args, "toy" * toy, toy=toy)
    for size, name in itertools.product(args.sizes, args.models):
        with model(name, toy) as known:
            Bench(known, size, sizes_of(known)[size], args, result).measure()
    lines = []
    for r in result.data.get("planning", []) if not toy else ():  # nothing is asked of a toy
        words = f"{r['model']}: planning over an LR layer's forward"
        lines.append(judge(words, 0.01, r["share"], least=False))
    result.finish(lines)


class Bench:
    """One model at one size: dense and windowed steps side by side, and planning at LR."""

    def __init__(
        self, known: Model, word: str, problem: Problem, args: Any, result: Result
    ) -> None:
        self.name, self.word, self.args, self.result = known.name, word, args, result
        self.brick, guidance = problem.brick, known.conf.guidance
        changes = random_models.ONE_OF_EACH[known.family]
        self.backbone = build(known, args.device, ("transformer",), **changes)
        shape = self.backbone.latent_shape(*problem.size, problem.frames)
        self.tokens = self.backbone.token_grid(shape)
        whole = blank(known.family, known.origin)  # the model, from its configs alone
        self.estimate = forward_cost(whole, shape, 1, guidance)
        self.rate = random_models.assumed_rate(result.data["device"]) * 1e12  # FLOP/s
        self.layers = known.layers()
        self.z = torch.randn(1, *shape, device=args.device)
        self.text = random_condition(self.backbone, 1, guidance)
        kinds = {k: getattr(self.backbone.transformer, k)[0] for k in self.layers}
        self.watch = Watch(kinds, args.device)

    def measure(self) -> None:
        """Dense kernels, then the fastest of them beside the windows; rows as they are known."""
        flops = sum(self.estimate.flops(f) for f in (1, 1, 1, *DENSITIES))
        once = flops * len(self.layers) / sum(self.layers.values()) / self.rate
        if not self.result.time_for(f"{self.name} {self.word}", 8 * once):
            return
        best, dense_call, kernels = self._best_dense()
        plans = {f: plan_of(self.backbone, self.tokens, self.brick, f) for f in DENSITIES}
        calls = {1.0: dense_call}
        calls |= {f: windowed(self.backbone, p, self.z, self.text) for f, p in plans.items()}
        times, failed = self._timed(calls, self.args.repeats, 60 * self.args.minutes / 5)
        self.watch.remove()
        self.result.failed(f"{self.name} {self.word}", failed, lambda f: f"f = {f:g}")
        if 1.0 not in times:
            return
        steps = {f: step_of(rows, self.layers) for f, rows in times.items()}
        for f, step in steps.items():
            row = self._row(f, step, steps[1.0]["step_seconds"], best)
            row["density"] = 1.0 if f == 1 else sig(plans[f].density(N))
            self.result.add("rows", row | ({"dense_kernels": kernels} if f == 1 else {}))
        if self.word == "lr" and self.result.time_for(f"{self.name}: planning", 8 * once):
            blocks = steps[1.0]["block_seconds"].items()
            self._planning(*min(blocks, key=lambda pair: pair[1]["seconds"]))

    def _timed(self, calls: dict, repeats: int, seconds: float = math.inf) -> tuple[dict, dict]:
        """Side by side, with the seconds of the blocks inside."""
        watch = self.watch
        return interleaved(calls, self.args.device, repeats, seconds, lambda call, i: watch(call))

    def _row(self, f: float, step: dict, dense: float, best: str) -> dict[str, Any]:
        """A step beside the dense one, and beside the runtime model's; dense: seconds."""
        flops, whole = self.estimate.flops(f), self.estimate.flops()
        achieved, took = whole / dense, step["step_seconds"]
        ratio, guess, videos = sig(dense / took), sig(whole / flops), math.prod(self.tokens)
        print(
            f"{self.name} {self.word}, {videos} tokens, f = {f:g}: a step {took:.4g} s, "
            f"{ratio:.2f} x; s2flow.costs {flops / self.rate:.4g} s, {guess:.2f} x"
        )
        m = self.backbone.transformer
        kind = (m.config.attention_head_dim, m.dtype, m.device)
        auto = attention.dispatch.choose(attention.Problem(self.brick, self.brick, *kind))
        return {
            **{"model": self.name, "size": self.word, "tokens": self.tokens},
            **{"video_tokens": videos, "brick": self.brick},
            **{"attention": best if f == 1 else auto, "best_dense": best},
            **{"f": f, "layers": self.layers, **step, "ratio": ratio},
            "estimate": {
                "pflop": sig(flops / 1e15),
                "assumed_tflops": self.rate / 1e12,
                "seconds": sig(flops / self.rate),
                "achieved_tflops_dense": sig(achieved / 1e12),
                "seconds_at_achieved": sig(flops / achieved),
                "ratio": guess,
            },
        }

    def _best_dense(self) -> tuple[str, Callable, dict[str, Any]]:
        """Name and call of the fastest dense step; {name: seconds or why it failed}."""
        m, router = self.backbone.transformer, self.backbone.router
        shape = (1, m.config.num_attention_heads, math.prod(self.tokens))
        q = torch.empty((*shape, m.config.attention_head_dim), device="meta", dtype=m.dtype)
        kernels, missing = dense_kernels(q, self.args.device)
        kernels.pop("default")  # which the model itself calls
        calls = {"the model's own": lambda i: self.backbone.velocity(self.z, 0.5, self.text)}

        def replaced(kernel: Callable) -> Callable[[int], Tensor]:
            def velocity(i: int) -> Tensor:
                with router.replacing(lambda layer, q, k, v: kernel(q, k, v)):
                    return self.backbone.velocity(self.z, 0.5, self.text)

            return velocity

        calls |= {name: replaced(kernel) for name, kernel in kernels.items()}
        times, failed = self._timed(calls, 1)
        steps = {k: step_of(rows, self.layers)["step_seconds"] for k, rows in times.items()}
        best = min(steps, key=lambda k: steps[k])
        return best, calls[best], {**steps, **failed, **missing}

    def _planning(self, kind: str, block: dict[str, Any]) -> None:
        """Coverage of one layer's q and k, as the LR flow records it, over the forward of one block."""
        kept, n, router = {}, math.prod(self.tokens), self.backbone.router
        with router.observing(lambda layer, q, k: kept.update({layer: (q, k)})):
            self.backbone.velocity(self.z, 0.5, self.text)
        q, k = kept[router.layers - 1]

        def cover(i: int) -> Tensor:
            rows = sample_rows(n, 128, i)
            return coverage_by_heads(q, k, rows, self.tokens, self.brick, router.text)

        device, repeats, seconds = self.args.device, self.args.repeats, self.args.minutes * 3
        times, failed = interleaved({"planning": cover}, device, repeats, seconds)
        self.result.failed(self.name, failed)
        if failed:
            return
        coverage = summed_up(times["planning"])
        # the block's seconds are of all passes; coverage is taken in the conditional one alone
        passes = 2 if getattr(self.text, "negative", None) is not None else 1
        share = sig(coverage["seconds"] / block["seconds"])
        row = {"model": self.name, "tokens": n, "rows": 128, "coverage": coverage}
        row |= {"block": kind, "block_seconds": block["seconds"], "passes": passes}
        self.result.add("planning", row | {"share": share})
        print(f"{self.name}: planning is {100 * share:.2g} % of an LR block's forward")


def plan_of(backbone: Any, tokens: tuple, brick: tuple, f: float) -> Plan:
    """Every head another candidate of density f, in every layer."""
    boxes = candidates(f, DEFAULT_EXPONENTS, brick_grid(tokens, brick))
    layers, heads = backbone.router.layers, backbone.transformer.config.num_attention_heads
    turn = itertools.islice(itertools.cycle(boxes), layers * heads)
    table = torch.tensor(list(turn), dtype=torch.int16).view(1, layers, 1, heads, 3)
    return Plan(table.expand(N + 1, -1, -1, -1, -1).contiguous(), tokens, brick)


def windowed(backbone: Any, plan: Plan, z: Tensor, text: Any) -> Callable[[int], Tensor]:
    """One velocity inside a plan's windows, as `Cascade` makes it in an HR step."""
    router = backbone.router

    def velocity(i: int) -> Tensor:
        with router.replacing(plan.replacer(N, "auto", router), plan.work(N)):
            return backbone.velocity(z, 0.5, text)

    return velocity


class Watch:
    """Seconds of a call and of the blocks in it; CUDA events, so that nothing waits in between."""

    def __init__(self, kinds: dict[str, nn.Module], device: str) -> None:
        self.cuda, self.marks, self.hooks = device == "cuda", {}, []
        for name, block in kinds.items():
            note = lambda *_, name=name, **__: self.mark(name)  # noqa: E731
            self.hooks.append(block.register_forward_pre_hook(note, with_kwargs=True))
            self.hooks.append(block.register_forward_hook(note, with_kwargs=True))

    def mark(self, name: str) -> None:
        """A moment of the device's own time; nothing is returned, so the hook changes nothing."""
        moment = torch.cuda.Event(enable_timing=True) if self.cuda else time.perf_counter()
        if self.cuda:
            moment.record()
        self.marks.setdefault(name, []).append(moment)

    def __call__(self, call: Callable[[int], Any]) -> dict[str, float]:
        """{"all": seconds, and of each kind of block the sum over its calls}."""
        self.marks, wait = {}, torch.cuda.synchronize if self.cuda else lambda: None
        wait()
        self.mark("all")
        call(0)
        self.mark("all")
        wait()
        between = (lambda a, b: a.elapsed_time(b) / 1000) if self.cuda else (lambda a, b: b - a)
        return {k: sum(map(between, at[::2], at[1::2])) for k, at in self.marks.items()}

    def remove(self) -> None:
        """Leave the blocks as they were."""
        for hook in self.hooks:
            hook.remove()


def step_of(rows: list[dict[str, float]], layers: dict[str, int]) -> dict[str, Any]:
    """Medians of blocks and rest, and the step of the whole model that follows from them."""
    blocks = {k: summed_up([r[k] for r in rows]) for k in layers}
    rest = summed_up([r["all"] - sum(r[k] for k in layers) for r in rows])
    whole = rest["seconds"] + sum(n * blocks[k]["seconds"] for k, n in layers.items())
    return {"block_seconds": blocks, "rest_seconds": rest, "step_seconds": sig(whole)}


if __name__ == "__main__":
    run(main)
