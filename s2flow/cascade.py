"""Figure 2 as code: an LR flow, a hand-off, and an HR flow that the LR one guides (Eqs. 4-6).

    LR   z_N ~ N(0, I), N Euler steps with full attention to z_0; every z_n, v_n and the coverage of
         every window are recorded                                                          (Eq. 4)
    up   hand-off with t_i steps remaining                                                  (Eq. 5)
    HR   n = t_i ... 1 on the same noise levels, from the hand-off to z_0                   (Eq. 6)

The LR flow runs to its end, as Eqs. 9 and 12 need it at every HR step. It does not depend on sparsity,
windows, order, t_i or HR method, and is computed once for all variants that share it.

`s2flow.methods` composes each row of Table 1 from these stages. At each step, the HR flow applies
ordered *correctors* to the velocity, then its solver:

    v = model(z, sigma);   for corrector in correctors: v = corrector(n, sigma, z, v);   solver.step
"""

import copy
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from s2flow.attention import Problem, dispatch
from s2flow.backbones import caches, rope
from s2flow.backbones.base import Backbone
from s2flow.coverage import Recorder
from s2flow.errors import note
from s2flow.flow import Trajectory, add_noise, noise, sigma_grid
from s2flow.grid import brick_grid
from s2flow.handoff import aligned_noise, hand_off, resize_latent
from s2flow.plan import Plan, Windows
from s2flow.policies import decide
from s2flow.policies.base import Case
from s2flow.process.timing import Clock
from s2flow.solver import AB2, AB3, LRI, Euler, Heun, LRICv, derivative_cosines
from s2flow.store.lowflow import LowFlow, LowFlowCache, low_key
from s2flow.unipc import UniPC
from s2flow.windows import fraction_of_volume

if TYPE_CHECKING:
    from s2flow.recipe.identity import Recipe

Corrector = Callable[[int, float, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Generated:
    """What a method returns: the HR video, the LR video if there is one, and what to record.

    video, low_video: (B, T, H, W, 3) in [0, 1], or None where nothing was decoded; latent: (B, C, T,
    h, w), the HR z_0; reports: each clip's densities, window histogram, cosines and so on, ready for
    JSON. windows: of clips whose windows are boxes, the HR steps taken (steps remaining), their boxes
    (steps, layers, heads, 3) in bricks and the brick grid (steps, 3).
    """

    video: Tensor | None
    low_video: Tensor | None
    latent: Tensor
    reports: list[dict[str, Any]]
    windows: list[dict[str, Tensor]] = field(default_factory=list)


@dataclass(frozen=True)
class Step:
    """One finished step of the "lr" or "hr" flow, with n steps remaining before it.

    sigma: its noise level; seconds: per clip of the batch; density: each clip's realised f, at HR.
    """

    stage: str
    n: int
    sigma: float
    seconds: float
    density: list[float]


class Stopped(Exception):
    """`on_low` returned False: there is no HR stage. low_video: (B, T, h, w, 3) in [0, 1]."""

    def __init__(self, low_video: Tensor) -> None:
        super().__init__("stopped after the LR flow")
        self.low_video = low_video


class Cascade:
    """One batch of clips under one recipe: the stages that methods are composed of."""

    def __init__(
        self,
        backbone: Backbone,
        recipe: "Recipe",
        prompts: Sequence[str],
        seeds: Sequence[int],
        clock: Clock | None = None,
        cache: LowFlowCache | None = None,
        progress: Callable[[str, int, int], None] | None = None,
        on_low: Callable[[Tensor], bool | None] | None = None,
        on_step: Callable[[Step], None] | None = None,
        on_latent: Callable[[Step, Tensor], Tensor] | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        decode: bool = True,
        video: Tensor | None = None,
    ) -> None:
        """on_latent: may replace the latent after every step. generator: draws all noise, as in
        diffusers, in place of (prompt, seed). decode: False where no video is wanted. video: a clip,
        (1, T, h, w, 3) in [0, 1], that takes the place of the LR flow; its hash is `recipe.input`.
        """
        self.backbone, self.recipe = backbone, recipe
        self.prompts, self.seeds = list(prompts), list(seeds)
        self.clock = clock or Clock(backbone.device)
        self.cache = LowFlowCache() if cache is None else cache
        self.progress = progress or (lambda stage, done, total: None)
        self.on_low, self.on_step, self.on_latent = on_low, on_step, on_latent
        self.generator, self.decodes = generator, decode
        # decoded on first use
        self.low_video = None if video is None else video.expand(len(self.prompts), -1, -1, -1, -1)
        self.sigma = self.sigma_high = sigma_grid(recipe.steps, recipe.shift)
        if recipe.shift_high is not None:  # t_i and n count steps of this grid
            self.sigma_high = sigma_grid(recipe.steps, recipe.shift_high)
        self.low_shape = backbone.latent_shape(*recipe.low, recipe.frames)
        self.size, self.n_from, self.n_to = recipe.high, recipe.t_i, 0
        self.reports: list[dict[str, Any]] = [{} for _ in self.prompts]
        self.kept: list[dict[str, list[Tensor]]] = [{} for _ in self.prompts]  # windows by level
        with self.clock("text"):
            self.condition = backbone.encode_prompt(
                self.prompts, recipe.negative_prompt, *recipe.guidances
            )
            for prompt, report in zip(self.prompts, self.reports, strict=True):
                tokens, words = (0, "") if backbone.embeds else backbone.lost_words(prompt)
                if tokens:
                    report["truncated_tokens"] = tokens
                    note(
                        f"the text encoder of {backbone.name} cuts off the last {tokens} tokens of "
                        f"the prompt, from {json.dumps(words[:40], ensure_ascii=False)} on"
                    )

    @property
    def high_shape(self) -> tuple[int, ...]:
        """(C, T, h, w) of the latent at this level's size."""
        return self.backbone.latent_shape(*self.size, self.recipe.frames)

    def levels(self) -> Iterator["Cascade"]:
        """A copy of this cascade per HR size, in order, with the steps [n_from, n_to) taken there."""
        stages = self.recipe.stages or ((self.recipe.high, self.recipe.t_i),)
        ends = [*(n for _, n in stages[1:]), 0]
        for (size, n_from), n_to in zip(stages, ends, strict=True):
            level = copy.copy(self)
            level.size, level.n_from, level.n_to = size, n_from, n_to
            yield level

    # -- the three stages of Figure 2 ---------------------------------------------------------

    def low_flow(self) -> LowFlow:
        """The LR flow to its end (Eq. 4), from the cache where another variant has computed it.

        On the HR grid: with `shift_high` it is interpolated. Raises Stopped if `on_low` returns False.
        """
        identity, ranks = self.recipe.low_identity(), self.backbone.router.ranks
        k = None if ranks is None else ranks.k
        clips = zip(self.prompts, self.seeds, strict=True)
        keys = [low_key(identity, prompt, seed, k) for prompt, seed in clips]
        flows = [self.cache.get(key) for key in keys]
        missing = [i for i, flow in enumerate(flows) if flow is None]
        if missing:
            make = self._make_low_flow if self.recipe.input is None else self._flow_of_input
            for i, flow in zip(missing, make(missing).clips(), strict=True):
                flows[i] = flow
                self.cache.put(keys[i], flow)
        low = LowFlow.batch(flows)
        self.clock.seconds["lr"] = low.seconds
        for i, report in enumerate(self.reports):
            report["low_flow_reused"] = i not in missing
        if self.on_low is not None and self.on_low(self.preview(low)) is False:
            raise Stopped(self.low_video)
        return low if self.recipe.shift_high is None else low.at(self.sigma_high)

    def preview(self, low: LowFlow, stage: str = "preview") -> Tensor:
        """The LR video, (B, T, h, w, 3) in [0, 1]."""
        if self.low_video is None and (self.decodes or self.on_low is not None):
            with self.clock(stage):
                self.low_video = self.backbone.decode(low.flow.z[0])
        return self.low_video

    def hand_off(self, low: LowFlow, below: Trajectory | None = None) -> Tensor:
        """HR latent with n_from steps remaining (Eq. 5), from the LR flow or the level below."""
        r, backbone = self.recipe, self.backbone
        flow = low.flow if below is None else below
        with self.clock("handoff"):
            last = self.size == r.high
            eps = self.noise(self.high_shape, "high" if last else "high {}x{}".format(*self.size))
            if r.noise == "aligned":
                eps = aligned_noise(eps, low.flow.z[r.steps].to(eps))
            decode = backbone.decode
            if r.input is not None and below is None:  # x0 is the clip itself, at every level
                flow = Trajectory(flow.sigma, flow.z, [flow.z[r.steps] - flow.z[0]] * len(flow.z))
                decode = (lambda _: self.low_video.to(eps)) if r.handoff == "x0" else decode
            call = (flow, self.n_from, eps, r.handoff, decode, backbone.encode)
            return hand_off(*call, self.size, r.adain)

    def restart(self, clean: Tensor) -> Tensor:
        """A clean HR latent with fresh white noise added, at the level with t_i steps remaining."""
        eps, sigma = self.noise(self.high_shape, "high"), float(self.sigma_high[self.recipe.t_i])
        return add_noise(clean.to(eps), eps, sigma)

    def high_flow(
        self,
        z: Tensor,
        n_from: int,
        solver: Euler | None = None,
        plan: Windows | None = None,
        correctors: Sequence[Corrector] = (),
    ) -> Trajectory:
        """HR flow from n_from steps remaining to n_to, usually 0 (Eq. 6), inside the plan's windows."""
        with self.clock("hr"), self.high_attention(), self.brick_order(plan):
            flow = self._integrate(z, n_from, solver or Euler(), plan, correctors, "hr")
        steps = range(n_from, self.n_to, -1)
        for clip, report in enumerate(self.reports):
            if plan is None:
                report["density"] = report.get("density", {}) | {str(n): 1.0 for n in steps}
                continue
            level, boxes = plan.report(steps, clip), plan.kept(steps, clip)
            report |= level if n_from == self.recipe.t_i else _merged(report, level)
            if boxes is not None:
                grid = brick_grid(
                    self.backbone.token_grid(self.high_shape), self.recipe.brick_high
                )
                grids = torch.tensor(grid).expand(len(steps), 3)
                kept = {"steps": torch.tensor(steps), "boxes": boxes, "grid": grids}
                for name, values in kept.items():
                    self.kept[clip].setdefault(name, []).append(values)
        return flow

    @contextmanager
    def high_attention(self):
        """Apply the HR stage's positions and attention temperature; the LR stage uses neither."""
        r, backbone = self.recipe, self.backbone
        with ExitStack() as stack:
            if r.rope != "none":
                low, high = (backbone.token_grid(s) for s in (self.low_shape, self.high_shape))
                scale = tuple(b / a for a, b in zip(low, high, strict=True))
                stack.enter_context(rope.scaled(backbone.ropes, r.rope, scale))
            if r.temperature != 1.0:
                stack.enter_context(backbone.router.tempered(r.temperature))
            yield

    def brick_order(self, plan: Windows | None) -> AbstractContextManager:
        """Video tokens in brick order for the whole HR flow, if its attention backend needs it."""
        order = self.backbone.router.order if isinstance(plan, Plan) else None
        if order is None or plan.whole(plan.boxes):
            return nullcontext()
        name = attention_of(self.backbone, self.recipe, self.size)
        for report in self.reports:
            report["attention"] = name
        if not dispatch.module(name).IN_BRICKS:
            return nullcontext()
        return order.of(plan.tokens, plan.brick, self.backbone.device)

    # -- parts that methods choose from -------------------------------------------------------

    def plan(self, low: LowFlow) -> Windows:
        """Windows of every HR step, layer and head, by the recipe's policy (Eqs. 8-9: LR attention)."""
        r = self.recipe
        low_grid, grid = (self.backbone.token_grid(s) for s in (self.low_shape, self.high_shape))
        f = 1.0 if r.whole_grid else fraction_of_volume(r.sparsity, r.density)
        requested = f if r.whole_grid or r.windows.module.BY_VOLUME else None
        for report in self.reports:
            report["density_requested"] = requested
        with self.clock("plan"):
            bricks = (low_grid, r.brick_low, grid, r.brick_high)
            case = Case(f, *bricks, self.n_from, r.coverage_rows)
            plan = decide(r.windows, case, low.coverage)
            if isinstance(plan, Plan) and self.backbone.router.order is not None:
                attention_of(self.backbone, r, self.size)  # compiles and checks kernels
            return plan

    def solver(self, low: LowFlow) -> Euler:
        """A new instance of the recipe's solver (Eqs. 10-12): history never crosses a hand-off."""
        r = self.recipe
        if r.solver == "lri":
            return self.lri(low, r.order)
        if r.solver == "lri_cv":
            return LRICv(low.flow, self.upsample)
        solvers = {"euler": Euler, "ab2": AB2, "ab3": AB3, "unipc": UniPC, "heun": Heun}
        return solvers[r.solver]()

    def lri(self, low: LowFlow, order: int) -> LRI:
        """The paper's solver at the given order, with the recipe's stencil, LR time and U."""
        r = self.recipe
        (h, w), (H, W) = self.low_shape[-2:], self.high_shape[-2:]
        scale = (H * W / (h * w)) ** 0.5
        return LRI(low.flow, self.upsample, order, r.stencil, r.lr_time, scale)

    def upsample(self, v: Tensor) -> Tensor:
        """U of Eq. 12: an LR latent field at HR, on the backbone's device."""
        v = v.to(self.backbone.device)
        return resize_latent(v, *self.high_shape[-2:], mode=self.recipe.upsample)

    def noise(self, shape: tuple[int, ...], purpose: str) -> Tensor:
        """White noise for every clip of the batch; depends on its prompt and seed alone, or is drawn
        by the generator, LR before HR."""
        device = torch.device(self.backbone.device)
        if self.generator is not None:
            size = (len(self.prompts), *shape)
            return randn_tensor(size, self.generator, device, torch.float32)
        pairs = zip(self.prompts, self.seeds, strict=True)
        return torch.stack([noise(shape, p, s, purpose) for p, s in pairs]).to(device)

    def finish(
        self, high: Trajectory, low: LowFlow | None = None, solver: Euler | None = None
    ) -> Generated:
        """Decode (Eq. 13) and collect the reports."""
        video = None
        if self.decodes:
            with self.clock("decode"):
                video = self.backbone.decode(high.z[0])
        low_video = None if low is None else self.preview(low)
        if solver is not None:
            with self.clock("diagnostics"):
                cosines = derivative_cosines(high, self._reference_derivative(low), self.n_from)
            for clip, report in enumerate(self.reports):
                report["derivative_cosine"] = _of_clip(cosines, clip)
                if solver.report:
                    report["solver"] = _of_clip(solver.report, clip)
        windows = [{k: torch.cat(v) for k, v in of_clip.items()} for of_clip in self.kept]
        z = high.z[0].to(self.backbone.device)
        return Generated(video, low_video, z, self.reports, windows)

    def _reference_derivative(self, low: LowFlow) -> LRI:
        """The LR derivative whose cosine is recorded: the recipe's, or LRI with default settings.

        Other solvers' recipes hold no stencil, LR time and U, which must not change the record.
        """
        if self.recipe.identity().get("solver") == "lri":
            return self.lri(low, 2)
        device = self.backbone.device
        return LRI(low.flow, lambda v: resize_latent(v.to(device), *self.high_shape[-2:]))

    def _make_low_flow(self, clips: Sequence[int]) -> LowFlow:
        """Compute the LR flow of these clips (indices into the batch)."""
        r, backbone = self.recipe, self.backbone
        tokens = backbone.token_grid(self.low_shape)
        bricks = brick_grid(tokens, r.brick_low)
        watch = Recorder(backbone.router, tokens, r.brick_low, r.coverage_rows, r.steps)
        with self.clock("lr"):
            z = self.noise(self.low_shape, "low")[list(clips)]
            condition = self._condition_of(clips)
            flow = self._integrate(z, r.steps, Euler(), None, (), "lr", watch, condition)
        for i in clips if watch.reused else ():
            self.reports[i]["low_attention_reused"] = watch.reused
        return LowFlow(flow, watch.table(), bricks, self.clock.seconds["lr"])

    def _flow_of_input(self, clips: Sequence[int]) -> LowFlow:
        """The given clip x0 in place of an LR flow: z_n = (1 - sigma) x0 + sigma eps at every level.

        One forward per HR step, and one above for the solver's stencil, gives velocity and coverage;
        higher up v = eps - x0, and the coverage is that of the first forward.
        """
        r, backbone = self.recipe, self.backbone
        tokens = backbone.token_grid(self.low_shape)
        watch = Recorder(backbone.router, tokens, r.brick_low, r.coverage_rows, r.steps)
        top = min(r.t_i + 1, r.steps)
        with self.clock("lr"):
            x0 = backbone.encode(self.low_video[list(clips)])
            eps = self.noise(self.low_shape, "low")[list(clips)].to(x0)
            noised = [add_noise(x0, eps, s) for s in self.sigma.tolist()]
            call = (Noised(noised), None, (), "lr", watch, self._condition_of(clips))
            flow = self._integrate(noised[top], top, *call)
        coverage = watch.table()
        above = r.steps - top
        coverage = torch.cat([coverage, coverage[-1:].expand(above, *coverage.shape[1:])])
        z = [*flow.z[: top + 1], *(x.cpu() for x in noised[top + 1 :])]
        v = [*flow.v[: top + 1], *[(eps - x0).cpu()] * above]
        bricks = brick_grid(tokens, r.brick_low)
        return LowFlow(Trajectory(flow.sigma, z, v), coverage, bricks, self.clock.seconds["lr"])

    def _condition_of(self, clips: Sequence[int]) -> Any:
        """The condition of some clips of the batch (indices)."""
        if len(clips) == len(self.prompts):
            return self.condition
        r, prompts = self.recipe, [self.prompts[i] for i in clips]
        with self.clock("text"):
            return self.backbone.encode_prompt(prompts, r.negative_prompt, *r.guidances)

    def _integrate(
        self,
        z: Tensor,
        n_from: int,
        solver: Euler,
        plan: Windows | None,
        correctors: Sequence[Corrector],
        stage: str,
        observe: Recorder | None = None,
        condition: Any = None,
    ) -> Trajectory:
        """Taylor steps n = n_from ... 1 (Eqs. 4, 6, 10); the state stays in float32."""
        condition = self.condition if condition is None else condition
        grid, last = (self.sigma_high, self.n_to) if stage == "hr" else (self.sigma, 0)
        sigma, router = grid.tolist(), self.backbone.router
        zs: list[Tensor | None] = [None] * len(sigma)
        vs = list(zs)
        caches.forget(self.backbone.pipeline)

        def field(z: Tensor, n: int) -> Tensor:
            v = self.backbone.velocity(z, sigma[n], condition)
            for corrector in correctors:
                v = corrector(n, sigma[n], z, v)
            return v

        for n in range(n_from, last - (last > 0), -1):
            start, zs[n] = time.perf_counter(), z.cpu()
            windows = nullcontext()
            if plan is not None:
                replacer = plan.replacer(n, self.recipe.attention, router)
                windows = router.replacing(replacer, plan.work(n))
            with windows, router.observing(observe):
                v = field(z, n)
                if observe is not None:
                    observe.finish_step()
                self._check_finite(v, f"{stage} step n={n}")
                if n == last:  # the next level's hand-off needs it (Eq. 5)
                    vs[n] = v.cpu()
                    break
                z = solver.step(n, sigma, z, v, field)  # (Eq. 10)
            vs[n] = v.cpu()  # synchronises with the device
            seconds = (time.perf_counter() - start) / len(z)
            self.clock.steps.setdefault(stage, {})[n] = seconds
            self.progress(stage, n_from - n + 1, n_from - last)
            if self.on_step is not None or self.on_latent is not None:
                step = Step(stage, n, sigma[n], seconds, self._densities(stage, n, plan))
            if self.on_step is not None:
                self.on_step(step)
            if self.on_latent is not None:
                z = self.on_latent(step, z)
        zs[last] = z.cpu()
        return Trajectory(grid, zs, vs)

    def _check_finite(self, v: Tensor, where: str) -> None:
        """Record where a clip's velocity first held NaN or infinity."""
        for finite, report in zip(
            v.flatten(1).isfinite().all(1).tolist(), self.reports, strict=False
        ):
            if not finite:
                report.setdefault("first_nan", where)

    def _densities(self, stage: str, n: int, plan: Windows | None) -> list[float]:
        """Each clip's realised f in a finished step; empty at LR."""
        if stage == "lr" or plan is None:
            return [] if stage == "lr" else [1.0] * len(self.prompts)
        return [plan.report([n], clip)["density"][str(n)] for clip in range(len(self.prompts))]


class Noised(Euler):
    """No flow: the next state is the clip noised to the next level; noised: by steps remaining."""

    def __init__(self, noised: list[Tensor]) -> None:
        super().__init__()
        self.noised = noised

    def step(self, n: int, sigma: list[float], z: Tensor, v: Tensor, field: Any) -> Tensor:
        """z with n - 1 steps remaining."""
        return self.noised[n - 1]


def attention_of(backbone: Backbone, recipe: "Recipe", size: tuple[int, int]) -> str:
    """The attention backend for windows at an HR size (height, width) in pixels.

    Raises UserError if the backend that the recipe names cannot be used.
    """
    model = backbone.transformer
    tokens = backbone.token_grid(backbone.latent_shape(*size, recipe.frames))
    kind = (model.config.attention_head_dim, model.dtype, torch.device(backbone.device))
    return dispatch.resolve(recipe.attention, Problem(tokens, recipe.brick_high, *kind))


def _merged(report: dict[str, Any], level: dict[str, Any]) -> dict[str, Any]:
    """A report with one more level merged in: steps side by side, window counts added up."""
    merged = report | level
    for k in report.keys() & level.keys():
        if k == "window_histogram":
            merged[k] = dict((Counter(report[k]) + Counter(level[k])).most_common())
        elif isinstance(level[k], dict):
            merged[k] = _merged(report[k], level[k])
    return merged


def _of_clip(table: dict[str, dict[int, list[float]]], clip: int) -> dict[str, dict[str, float]]:
    """One clip's values by step; JSON keys are strings."""
    return {k: {str(n): round(x[clip], 6) for n, x in v.items()} for k, v in table.items()}
