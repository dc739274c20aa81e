"""Run one config: make the clips that the store lacks, and print a summary.

Recorded clips are skipped, so repeating a command resumes it (unless `cache` changes that, see
`tasks.py`). A clip that fails leaves its traceback, the others are made, and the job ends non-zero with
counts and the command to type.
"""

import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from s2flow import methods
from s2flow.backbones.base import Origin
from s2flow.backbones.inspect import State
from s2flow.errors import UserError
from s2flow.policies import sta
from s2flow.process import loading
from s2flow.process.parallel import Team, join
from s2flow.process.stopping import Preempted
from s2flow.recipe.given import Given, fitted
from s2flow.recipe.identity import Recipe
from s2flow.recipe.resolve import plain, resolve
from s2flow.recipe.schema import TEXTS
from s2flow.run import executor
from s2flow.run.job import Job
from s2flow.run.reproduce import reproduce
from s2flow.scorers import build
from s2flow.scorers.score import Scoring
from s2flow.store import Store
from s2flow.store.recipes import VERSION
from s2flow.store.tasks import Task, clip_tasks, work
from s2flow.terminal.cli import typed
from s2flow.terminal.plans import print_plan
from s2flow.terminal.progress import check as check_progress
from s2flow.terminal.summary import in_sweep, print_run
from s2flow.tracking.tracker import check as check_tracker
from s2flow.tracking.tracker import experiment


def run(cfg: DictConfig) -> dict[str, Any]:
    """Make all clips of one config; returns the summary that tables are printed from.

    Raises UserError for invalid values and, at the end, if any clip failed or is missing; Preempted
    after a signal.
    """
    check_progress(cfg.progress)
    check_tracker(cfg.tracker)
    if cfg.reproduce is not None:
        return reproduce(cfg)
    executor.check(cfg)
    tasks = clip_tasks(cfg)
    given = _given(cfg)
    if cfg.plan:
        return _plan(cfg, tasks)
    recipe = _recipe(cfg, tasks, given)
    arguments = plain(cfg, "scorer")
    scorers = {name: build(name, conf) for name, conf in arguments.items()}
    if cfg.threads is not None:
        torch.set_num_threads(cfg.threads)
    write = cfg.cache != "read-only"
    identity = {"version": VERSION, **recipe.identity()}
    store = Store(cfg.runs_dir, recipe.run_id, identity, write=write)
    scoring = Scoring(store.book, scorers if write else {}, arguments)
    # under Ray the driver is alone, and actors form their own teams
    alone, device = cfg.executor == "ray", loading.device_here(cfg.device)
    team = Team() if alone else join(cfg.context_parallel, device)
    share = team.share(tasks)
    workload = team.agree(work(cfg.cache, store, share))
    job = Job(cfg, recipe, store, scoring, team, workload.stale, given=given)
    counts = {"made": 0, "failed": 0, "failed_before": len(workload.failed), "unscored": 0}
    with _summed_over_processes(team, counts):
        counts["unscored"] = job.rescore(workload.recorded) if team.leads else 0
        if workload.todo and cfg.executor == "local":
            counts["failed"] = job.make_all(workload.todo, tasks, len(share))
        elif workload.todo:
            counts["failed"] = executor.make_all(job, workload.todo, tasks, len(share))
        made = [store.record(t.key) for t in workload.todo if not job.lacks(t)]
        counts["made"] = len(made)
        counts["unscored"] += sum(not scoring.scored(r) for r in made if team.leads)
    store.book.refresh()  # with verdicts of other processes
    keys = [t.key for t in tasks]
    summary = {
        "run_id": recipe.run_id,
        "label": recipe.label + ("" if cfg.shard == "1/1" else f", shard {cfg.shard}"),
        "experiment": experiment(),
        "clips": len(tasks),
        **counts,
        "folder": str(store.folder),
        "tally": store.tally(keys),
        "records": store.records(keys),  # records are read on demand
    }
    if team.first:
        print_run(summary)
    problem = _problem(cfg, summary, workload.failed)
    if problem:
        error = UserError(problem)
        error.summary, error.reported = summary, not team.first  # for the sweep's table
        raise error
    return summary


def _plan(cfg: DictConfig, tasks: list[Task]) -> dict[str, Any]:
    """The plan of `plan=true`; printed now, or at the end of a sweep."""
    from s2flow.costs.planning import plan  # loads diffusers, which takes seconds

    here = cfg.backbone.source and Path(cfg.backbone.source).is_dir()  # no network for a plan
    state = _state(cfg) if here else None
    recipe = resolve(cfg, "", methods.method(cfg.method.name).KNOBS, state)
    estimate = plan(cfg, recipe, loading.device_here(cfg.device), tasks)
    if not in_sweep():
        print_plan(estimate)
    return estimate


def _given(cfg: DictConfig) -> Given | None:
    """The clip of `input=`, fitted to the config."""
    if cfg.input is None:
        return None
    if cfg.prompt is None:
        raise UserError(
            f"input={cfg.input} needs the clip's own prompt; type prompt='what the clip shows'"
        )
    return fitted(cfg.input, cfg)


def _state(cfg: DictConfig) -> State | None:
    """What the checkpoint says besides its weights. Raises UserError for what is not supported."""
    origin = Origin.of(cfg.backbone)
    state = loading.pipeline_state(cfg.backbone.family, origin)
    if state is not None:
        state.check(f"backbone.source={origin.source}", cfg.method.name)
    return state


def _recipe(cfg: DictConfig, tasks: list[Task], given: Given | None) -> Recipe:
    """The recipe with the hash of its weights. Raises UserError for a config that cannot run here."""
    if cfg.offload != "none" and loading.device_here(cfg.device) == "cpu":
        raise UserError(
            f"offload={cfg.offload} keeps weights on the CPU while a GPU computes, and the device "
            "here is the CPU; leave offload out"
        )
    weights = loading.weights_hash(cfg.backbone.family, Origin.of(cfg.backbone))
    knobs = methods.method(cfg.method.name).KNOBS
    recipe = resolve(cfg, weights, knobs, _state(cfg), given and given.sha256)
    sta.check_prompts(recipe, [t.prompt for t in tasks])
    return recipe


@contextmanager
def _summed_over_processes(team: Team, counts: dict[str, int]) -> Iterator[None]:
    """Add up `counts` over all processes, which leave this block together.

    Raises UserError and Preempted, from this process or another one.
    """
    refused = preempted = None
    try:
        yield
    except UserError as error:  # raised after the counts of all groups are added
        refused = error
    except Preempted as stop:
        if stop.at_once:
            raise
        preempted = stop
    *sums, any_refused, any_preempted = team.total(
        *counts.values(), refused is not None, preempted is not None
    )
    counts |= dict(zip(counts, sums, strict=True))
    if refused is not None:
        raise refused
    if any_refused:
        raise UserError("another process could not go on and printed why; recorded clips stay")
    if any_preempted:
        raise preempted or Preempted("another process's signal")


def _problem(cfg: DictConfig, summary: dict[str, Any], failed_before: list[Task]) -> str:
    """Missing, failed and unscored clips, and what to type; "" if there are none."""
    clips, folder, messages = summary["clips"], summary["folder"], []
    complete = summary["tally"]["clips"]
    if cfg.cache == "read-only" and complete < clips:
        return (
            f"{clips - complete} of {clips} clips are not in {folder}, and cache=read-only makes "
            f"none; type {command(cfg)}"
        )
    if summary["failed"]:
        messages += [
            f"{summary['failed']} of {clips} clips failed, {complete} are complete; tracebacks are "
            f"in {folder}/failures"
        ]
    if summary["failed_before"]:
        names = [json.dumps(t.prompt, ensure_ascii=False) for t in failed_before[:3]]
        names += ["..."] if summary["failed_before"] > len(names) else []
        messages += [
            f"{summary['failed_before']} of {clips} clips failed before and were left out "
            f"({', '.join(names)}); tracebacks are in {folder}/failures"
        ]
    if messages:
        messages += ["type cache=retry to try them again"]
    if nan := summary["tally"]["nan"]:
        first = next((r["first_nan"] for r in summary["records"] if r.get("first_nan")), None)
        where = f"the velocity of {first}; try" if first else "the decoded frames; try vae_tile or"
        messages += [f"{nan} of {clips} clips are NaN, first in {where} backbone.dtype=bfloat16"]
    if summary["unscored"]:
        messages += [
            f"{summary['unscored']} of {clips} clips lack scores; the reasons are in "
            f"{folder}/scores; the same command tries again"
        ]
    return "; ".join(messages)


def command(cfg: DictConfig) -> str:
    """The command for this job of a sweep alone, without cache=."""
    hydra = HydraConfig.instance().cfg
    words = [] if hydra is None else list(hydra.hydra.overrides.task)
    given = {w.partition("=")[0].lstrip("+"): w for w in words if not w.startswith("cache=")}
    given |= {} if cfg.prompt is None else {"prompt": ""}
    given |= {key: typed(key, OmegaConf.select(cfg, key)) for key in given.keys() & TEXTS}
    return shlex.join(["python", "run.py", *given.values()])
