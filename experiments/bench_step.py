"""One block of each kind of the true HunyuanVideo and Wan 1.3B, scaled to a step of the whole model.

    python experiments/bench_step.py                # on a GPU: true width; on a CPU: toy width
    python experiments/bench_step.py --models hunyuan --sizes lr
    cost      a minute on two CPU cores; --minutes on a GPU (`bench_on_gpu.sh`), not yet run there
    expected  the step at f against the dense one as `s2flow.costs` has it: 1.9 times at .5, 6 at .125

A transformer with one block of each kind (HunyuanVideo: one double, one single) and random weights runs
the backbone's own `velocity`, windows through its router as in an HR step. Dense steps are made with
the model's own call and with every dense kernel at hand; speed-ups are over the fastest of these, in
one group. The blocks are timed inside, by events before and after them:

    step = rest + sum over kinds of (blocks of that kind in the model) x (seconds of one)

rest is what lies in no block: embeddings, text refiner, head, conversions. Of Wan both passes of the
guidance are in it. Beside it stand the FLOPs of the whole model's forward by `s2flow.costs` and its
seconds at the rate assumed there, and at the rate that the dense step of this run achieved (so the
speed-ups compare). planning: the coverage of one layer (Eq. 8) over the forward of one block.

Writes results/bench_step_<device>.json with picture, `_toy` in its name at toy width.
"""

import itertools
import math
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from benching import (
    Result,
    checked,
    dense_kernels,
    interleaved,
    judge,
    parser_of,
    run,
    sig,
    summed_up,
)
from random_models import (
    ONE_OF_EACH,
    Model,
    Problem,
    assumed_rate,
    build,
    estimated_forward,
    model,
    random_condition,
    sizes_of,
)
from torch import Tensor, nn

from s2flow import attention
from s2flow.coverage import coverage_by_heads, sample_rows
from s2flow.grid import brick_grid
from s2flow.plan import Plan
from s2flow.windows import DEFAULT_EXPONENTS, candidates

MODELS = ("hunyuan", "wan_1_3b")
DENSITIES = (0.5, 0.25, 0.125)
N = 1  # the step that the plan is made for


def main() -> None:
    """LR of all models, then HR, as far as the time goes."""
    parser = parser_of(__doc__, minutes=9)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--sizes", nargs="+", choices=("lr", "hr"), default=("lr", "hr"))
    parser.add_argument("--tiny", action="store_true", help="toy width, as on a CPU")
    args = checked(parser.parse_args())
    toy = args.tiny or args.device == "cpu"
    args.name = "_".join(filter(None, ("toy" if toy else "", args.name)))
    result = Result("step", args, toy=toy)
    for size, name in itertools.product(args.sizes, args.models):
        with model(name, toy) as known:
            measure(known, size, sizes_of(known)[size], args, result)
    result.put("judged", judged(result.found))
    for line in result.found["judged"]:
        print(line)
    result.finish("step")


def measure(known: Model, word: str, problem: Problem, args: Any, result: Result) -> None:
    """One model at one size: dense and windowed steps side by side, and planning at LR."""
    guidance = known.conf.guidance
    backbone = build(known, args.device, ("transformer",), **ONE_OF_EACH[known.family])
    shape = backbone.latent_shape(*problem.size, problem.frames)
    tokens = backbone.token_grid(shape)
    estimate = estimated_forward(known, shape, guidance)
    rate = assumed_rate(result.found["device"]) * 1e12
    share = 1 / sum(known.layers().values())
    once = (
        sum(estimate.flops(f) for f in (1, 1, 1, *DENSITIES)) * len(known.layers()) * share / rate
    )
    if not result.time_for(f"{known.name} {word}", 8 * once):
        return
    kinds = {k: getattr(backbone.transformer, k)[0] for k in known.layers()}
    z = torch.randn(1, *shape, device=args.device)
    text = random_condition(backbone, 1, guidance)
    watch = Watch(kinds, args.device)
    timed = lambda call, i: watch(call)  # noqa: E731
    best, dense_rows = best_dense(known, backbone, z, text, (args, result, timed))
    f_of = {"dense": 1.0, **{f"f = {f:g}": f for f in DENSITIES}}
    plans = {k: plan_of(backbone, tokens, problem.brick, f) for k, f in f_of.items() if f < 1}
    calls = {k: windowed(backbone, plan, z, text) for k, plan in plans.items()}
    group, failed = interleaved(
        {"dense": best[1], **calls}, args.device, args.repeats, 60 * args.minutes / 5, timed
    )
    watch.remove()
    result.add("failed", *(f"{known.name} {word}, {k}: {v}" for k, v in failed.items()))
    if "dense" not in group:
        return
    steps = {k: step_of(rows, known.layers()) for k, rows in group.items()}
    dense = steps["dense"]["step_seconds"]
    achieved = estimate.flops() / dense
    for k, step in steps.items():
        f = f_of[k]
        row = {
            "model": known.name,
            "size": word,
            "tokens": tokens,
            "video_tokens": math.prod(tokens),
            "brick": problem.brick,
            "attention": best[0] if f == 1 else dispatch_of(backbone, problem.brick),
            "best_dense": best[0],
            "f": f,
            "density": 1.0 if f == 1 else sig(plans[k].density(N)),
            "layers": known.layers(),
            **step,
            "ratio": sig(dense / step["step_seconds"]),
            "estimate": {
                "pflop": sig(estimate.flops(f) / 1e15),
                "assumed_tflops": rate / 1e12,
                "seconds": sig(estimate.flops(f) / rate),
                "achieved_tflops_dense": sig(achieved / 1e12),
                "seconds_at_achieved": sig(estimate.flops(f) / achieved),
                "ratio": sig(estimate.flops() / estimate.flops(f)),
            },
        }
        row |= {"dense_kernels": dense_rows} if f == 1 else {}
        result.add("rows", row)
        print(
            f"{known.name} {word}, {row['video_tokens']} tokens, f = {f:g}: a step "
            f"{row['step_seconds']:.4g} s, {row['ratio']:.2f} x; s2flow.costs "
            f"{row['estimate']['seconds']:.4g} s, {row['estimate']['ratio']:.2f} x"
        )
    if word == "lr" and result.time_for(f"{known.name}: planning", 8 * once):
        kind = min(steps["dense"]["block_seconds"].items(), key=lambda pair: pair[1]["seconds"])
        planning(known, backbone, (z, text), tokens, problem.brick, kind, args, result)


def best_dense(known: Model, backbone: Any, z: Tensor, text: Any, how: tuple) -> tuple:
    """((name, call) of the fastest dense step, {name: seconds or why it failed})."""
    args, result, timed = how
    m = backbone.transformer
    length = math.prod(backbone.token_grid(z.shape[1:]))
    shape = (1, m.config.num_attention_heads, length, m.config.attention_head_dim)
    kernels, missing = dense_kernels(torch.empty(shape, device="meta", dtype=m.dtype), args.device)
    kernels.pop("default")  # what the model itself calls
    calls = {"the model's own": lambda i: backbone.velocity(z, 0.5, text)}
    for name, kernel in kernels.items():
        calls[name] = replaced(backbone, kernel, z, text)
    found, failed = interleaved(calls, args.device, 1, timed=timed)
    steps = {k: step_of(rows, known.layers())["step_seconds"] for k, rows in found.items()}
    best = min(steps, key=lambda k: steps[k])
    return (best, calls[best]), {**steps, **failed, **missing}


def replaced(backbone: Any, kernel: Callable, z: Tensor, text: Any) -> Callable[[int], Tensor]:
    """One velocity with another dense attention."""

    def velocity(i: int) -> Tensor:
        with backbone.router.replacing(lambda layer, q, k, v: kernel(q, k, v)):
            return backbone.velocity(z, 0.5, text)

    return velocity


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


def dispatch_of(backbone: Any, brick: tuple) -> str:
    """The backend that auto takes for this model."""
    m = backbone.transformer
    kind = (m.config.attention_head_dim, m.dtype, m.device)
    return attention.dispatch.choose(attention.Problem(brick, brick, *kind))


class Watch:
    """Seconds of a call and of the blocks in it; CUDA events, so that nothing waits in between."""

    def __init__(self, kinds: dict[str, nn.Module], device: str) -> None:
        self.cuda, self.marks = device == "cuda", {}
        self.hooks = []
        for name, block in kinds.items():
            note = lambda *_, name=name, **__: self.mark(name)  # noqa: E731
            self.hooks.append(block.register_forward_pre_hook(note, with_kwargs=True))
            self.hooks.append(block.register_forward_hook(note, with_kwargs=True))

    def mark(self, name: str) -> None:
        """A moment of the device's own time; nothing is returned, so the hook changes nothing."""
        if self.cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.setdefault(name, []).append(event)
        else:
            self.marks.setdefault(name, []).append(time.perf_counter())

    def __call__(self, call: Callable[[int], Any]) -> dict[str, float]:
        """{"all": seconds, and of each kind of block the sum over its calls}."""
        self.marks = {}
        if self.cuda:
            torch.cuda.synchronize()
        self.mark("all")
        call(0)
        self.mark("all")
        if self.cuda:
            torch.cuda.synchronize()
        return {
            name: sum(self._between(a, b) for a, b in zip(at[::2], at[1::2], strict=True))
            for name, at in self.marks.items()
        }

    def _between(self, a: Any, b: Any) -> float:
        return a.elapsed_time(b) / 1000 if self.cuda else b - a

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


def planning(
    known: Model,
    backbone: Any,
    inputs: tuple,
    tokens,
    brick,
    kind: tuple,
    args: Any,
    result: Result,
) -> None:
    """Coverage of one layer's q and k, as the LR flow records it, over the forward of one block."""
    kept, n = {}, math.prod(tokens)
    with backbone.router.observing(lambda layer, q, k: kept.update({layer: (q, k)})):
        backbone.velocity(inputs[0], 0.5, inputs[1])
    q, k = kept[backbone.router.layers - 1]
    text = backbone.router.text

    def cover(i: int) -> Tensor:
        return coverage_by_heads(q, k, sample_rows(n, 128, i), tokens, brick, text)

    times, failed = interleaved({"coverage": cover}, args.device, args.repeats, args.minutes * 3)
    if failed:
        result.add("failed", f"{known.name}, planning: {failed['coverage']}")
        return
    found = summed_up(times["coverage"])
    passes = 2 if getattr(inputs[1], "negative", None) is not None else 1
    # the block's seconds are of all passes; coverage is taken in the conditional one alone
    share = sig(found["seconds"] / kind[1]["seconds"])
    row = {"model": known.name, "tokens": n, "rows": 128, "coverage": found}
    row |= {
        "block": kind[0],
        "block_seconds": kind[1]["seconds"],
        "passes": passes,
        "share": share,
    }
    result.add("planning", row)
    print(f"{known.name}: planning is {100 * share:.2g} % of an LR block's forward")


def judged(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Planning as a share of an LR layer; nothing is asked at toy width."""
    if found["toy"]:
        return []
    return [
        judge(
            f"{row['model']}: planning over an LR layer's forward", 0.01, row["share"], least=False
        )
        for row in found.get("planning", [])
    ]


if __name__ == "__main__":
    sys.exit(run(main))
