"""`python -m s2flow.calibrate`: windows fixed offline over calibration prompts.

    python -m s2flow.calibrate windows.file=sta.json backbone=micro sparsity=0.5 prompts=world \
        prompts.count=8 prompts.subset_seed=1
    python run.py windows=sta windows.file=sta.json backbone=micro sparsity=0.5 prompts=world ...

Takes the overrides of `run.py`. The cascade runs with full attention and Euler steps. Eq. 8 is
evaluated on the HR q, k of the conditional pass, on `coverage_rows` rows, at every HR step and layer,
and averaged over prompts and steps. Eq. 9 then chooses one candidate of `windows.exponents` per layer
and head.
"""

from collections.abc import Sequence
from typing import Any

import hydra
import torch
from omegaconf import DictConfig
from torch import Tensor

from s2flow import methods
from s2flow.backbones.base import Origin
from s2flow.backbones.routing import AttentionRouter, Replacer
from s2flow.backbones.tiles import tile_vae
from s2flow.cascade import Cascade
from s2flow.coverage import coverage_by_heads, sample_rows
from s2flow.errors import UserError
from s2flow.grid import Box
from s2flow.policies import sta
from s2flow.policies.base import Calibration, Case, candidates_of
from s2flow.policies.oracle import coverage_of
from s2flow.process.loading import device_here, load_backbone, weights_hash
from s2flow.process.provenance import provenance
from s2flow.recipe import CONF
from s2flow.recipe.identity import Recipe
from s2flow.recipe.resolve import resolve
from s2flow.store.tasks import clip_tasks
from s2flow.terminal.cli import reported
from s2flow.windows import choose, fraction_of_volume


class MeanCoverage:
    """Records coverage in an HR flow with full attention; `mean` is Eq. 8 over clips and steps."""

    def __init__(self, tokens: Box, brick: Box, rows: int) -> None:
        self.tokens, self.brick, self.rows = tokens, brick, rows
        self.seen: set[tuple[int, int]] = set()
        self.sums: dict[int, Tensor] = {}
        self.count: dict[int, int] = {}

    def replacer(self, n: int, attention: str, router: AttentionRouter) -> Replacer:
        """See `plan.Windows`; records coverage and replaces nothing."""

        def watch(layer: int, q: Tensor, k: Tensor, v: Tensor) -> None:
            if (n, layer) in self.seen:  # the unconditional pass
                return
            self.seen.add((n, layer))
            T, H, W = self.tokens
            rows = sample_rows(T * H * W, self.rows, seed=1000 * n + layer)
            r = coverage_by_heads(q, k, rows, self.tokens, self.brick, router.text)  # (Eq. 8)
            self.sums[layer] = self.sums.get(layer, 0) + r.double().sum(0)
            self.count[layer] = self.count.get(layer, 0) + len(r)

        return watch

    def work(self, n: int) -> None:
        """Every head costs the same."""

    def report(self, steps: Sequence[int], clip: int) -> dict[str, Any]:
        """No report; resets the state for the next batch."""
        self.seen.clear()
        return {}

    def kept(self, steps: Sequence[int], clip: int) -> None:
        """No windows: full attention in every step."""

    @property
    def mean(self) -> Tensor:
        """(layers, heads, g_t, g_h, g_w), on the CPU; sums stay on the device of the model."""
        return torch.stack([self.sums[i] / self.count[i] for i in sorted(self.sums)]).cpu()


REQUIRED_VALUES = {  # knobs with the only value that a calibration supports
    **{"context_parallel": 1, "compile": False, "shard": "1/1"},
    **{"plan": False, "scales": None, "switches": None},
}


def calibrate(cfg: DictConfig) -> Calibration:
    """Choose the windows of a config (Eq. 9), and write them to `windows.file`.

    Raises UserError for values that cannot work.
    """
    path = cfg.windows.file
    if path is None:
        raise UserError("windows.file is not set; type windows.file=sta.json, the file to write")
    for name, required in REQUIRED_VALUES.items():
        if cfg[name] != required:
            raise UserError(f"{name}={cfg[name]} is not for calibration; leave {name} out")
    device = device_here(cfg.device)
    weights = weights_hash(cfg.backbone.family, Origin.of(cfg.backbone))
    r = recipe_of(cfg, weights)
    if cfg.threads is not None:
        torch.set_num_threads(cfg.threads)
    tasks = clip_tasks(cfg)
    backbone = load_backbone(cfg.backbone, device, cfg.offload, cfg.fp8)
    tile_vae(backbone.vae, r.vae_tile)
    grids = [
        backbone.token_grid(backbone.latent_shape(*size, r.frames)) for size in (r.low, r.high)
    ]
    coverage = MeanCoverage(grids[1], r.brick_high, r.coverage_rows)
    for i in range(0, len(tasks), cfg.batch):
        group = tasks[i : i + cfg.batch]
        run = Cascade(backbone, r, [t.prompt for t in group], [t.seed for t in group])
        run.high_flow(run.hand_off(run.low_flow()), r.t_i, plan=coverage)
        print(f"{i + len(group)}/{len(tasks)} clips", flush=True)
    calibration = chosen(coverage, r, grids[0], weights, tuple(t.prompt for t in tasks))
    best = coverage_of(coverage.mean.float(), torch.tensor(calibration.boxes, dtype=torch.int16))
    where = {k: v for k, v in provenance(backbone.device).items() if k in ("commit", "dirty")}
    settings = {"seed": cfg.seed, "t_i": r.t_i, "steps": r.steps, "rows": r.coverage_rows}
    covered = [[round(x, 4) for x in heads] for heads in best.tolist()]
    sta.write(path, calibration, **settings, **where, coverage=covered)
    print(f"{path}: {len(calibration.boxes)} layers, content {sta.content_hash(calibration)}")
    return calibration


def recipe_of(cfg: DictConfig, weights: str) -> Recipe:
    """The recipe of the calibration flow, whose policy defines the candidates."""
    cfg = cfg.copy()
    if cfg.windows.policy == "sta":  # sta takes its candidates from adaptive
        cfg.windows.policy = "adaptive"
    cfg.solver, cfg.method.name = "euler", "s2flow"
    r = resolve(cfg, weights, methods.method("s2flow").KNOBS)
    if "exponents" not in r.windows.module.OPTIONS or r.whole_grid:
        raise UserError(
            f"windows={r.windows.name} with sparsity={r.sparsity:g} has no candidates to choose "
            "from; type windows=sta and sparsity=0.5"
        )
    return r


def chosen(
    coverage: MeanCoverage, r: Recipe, low: Box, weights: str, prompts: tuple[str, ...]
) -> Calibration:
    """Per layer and head the candidate of the highest mean coverage (Eq. 9)."""
    f, grid = fraction_of_volume(r.sparsity, r.density), (coverage.tokens, coverage.brick)
    boxes = candidates_of(r.windows, Case(f, low, r.brick_low, *grid))
    table = choose(coverage.mean.float(), boxes).tolist()
    table = tuple(tuple(map(tuple, heads)) for heads in table)
    return Calibration(r.backbone, weights, *grid, f, prompts, table)


@hydra.main(version_base="1.3", config_path=str(CONF.resolve()), config_name="config")
def main(cfg: DictConfig) -> None:
    """Calibrate one config."""
    with reported():
        calibrate(cfg)
