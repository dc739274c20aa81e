"""One config: which of its clips are not yet in the store; make those, and say what there is.

Whatever is already recorded is skipped, so re-issuing a command continues it (`cache` says otherwise,
see `tasks.py`). A clip that fails leaves its traceback, the others go on, and the job ends non-zero
with counts and the command to type.
"""

import gc
import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from s2flow import methods
from s2flow.backbones.base import Origin
from s2flow.errors import UserError
from s2flow.policies import sta
from s2flow.process import loading
from s2flow.process.parallel import Team
from s2flow.process.stopping import Preempted
from s2flow.recipe.identity import Recipe
from s2flow.recipe.resolve import plain, resolve
from s2flow.run import executor
from s2flow.run.job import Job
from s2flow.run.reproduce import reproduce
from s2flow.scorers import build
from s2flow.scorers.score import Scoring
from s2flow.store import Store
from s2flow.store.recipes import VERSION
from s2flow.store.tasks import Task, clip_tasks, work
from s2flow.terminal.plans import print_plan
from s2flow.terminal.progress import check as check_progress
from s2flow.terminal.summary import in_sweep, print_run
from s2flow.tracking.tracker import check as check_tracker
from s2flow.tracking.tracker import experiment


def run(cfg: DictConfig) -> dict[str, Any]:
    """Make all clips of one config; returns the summary that tables are printed from.

    Raises UserError for values that cannot work and, at the end, if any clip failed or is missing, and
    Preempted after a signal.
    """
    check_progress(cfg.progress)
    check_tracker(cfg.tracker)
    if cfg.reproduce is not None:
        return reproduce(cfg)
    executor.check(cfg)
    with long_lists():
        tasks = clip_tasks(cfg)
    if cfg.plan:
        return _plan(cfg, tasks)
    recipe = _recipe(cfg, tasks)
    arguments = plain(cfg, "scorer")
    scorers = {name: build(name, conf) for name, conf in arguments.items()}
    if cfg.threads is not None:
        torch.set_num_threads(cfg.threads)
    write = cfg.cache != "read-only"
    described = {"version": VERSION, **recipe.identity()}
    store = Store(cfg.runs_dir, recipe.run_id, described, write=write)
    scoring = Scoring(store.book, scorers if write else {}, arguments)
    team = executor.team_here(cfg)
    with long_lists():
        mine = team.share(tasks)
        asked = team.agree(work(cfg.cache, store, mine))
    job = Job(cfg, recipe, store, scoring, team, asked.stale)
    counts = {"made": 0, "failed": 0, "failed_before": len(asked.failed), "unscored": 0}
    with _counted_together(team, counts):
        counts["unscored"] = job.rescore(asked.recorded) if team.leads else 0
        if asked.todo and cfg.executor == "local":
            counts["failed"] = job.make_all(asked.todo, tasks, len(mine))
        elif asked.todo:
            counts["failed"] = executor.make_all(job, asked.todo, tasks, len(mine))
        made = [store.record(t.key) for t in asked.todo if not job.lacks(t)]
        counts["made"] = len(made)
        counts["unscored"] += sum(not scoring.scored(r) for r in made if team.leads)
    summary = _summary(job, tasks, counts)
    if team.first:
        print_run(summary)
    ended = _what_failed(summary, asked.failed)
    if not write and summary["tally"]["clips"] < len(tasks):
        ended = _what_lacks(cfg, summary)
    if ended:
        error = UserError(ended)
        error.summary, error.reported = summary, not team.first  # for the sweep's table
        raise error
    return summary


def _plan(cfg: DictConfig, tasks: list[Task]) -> dict[str, Any]:
    """What `plan=true` prints, at once or at the end of a sweep."""
    from s2flow.costs.planning import plan  # loads diffusers, which takes seconds

    recipe = resolve(cfg, "", methods.method(cfg.method.name).KNOBS)
    planned = plan(cfg, recipe, loading.device_here(cfg.device), tasks)
    if not in_sweep():
        print_plan(planned)
    return planned


def _recipe(cfg: DictConfig, tasks: list[Task]) -> Recipe:
    """The recipe with its weights' hash. Raises UserError for what cannot run here."""
    if cfg.offload != "none" and loading.device_here(cfg.device) == "cpu":
        raise UserError(
            f"offload={cfg.offload} keeps weights on the CPU while a GPU computes, and the device "
            "here is the CPU; leave offload out"
        )
    weights = loading.weights_hash(cfg.backbone.family, Origin.of(cfg.backbone))
    recipe = resolve(cfg, weights, methods.method(cfg.method.name).KNOBS)
    sta.check_prompts(recipe, [t.prompt for t in tasks])
    return recipe


@contextmanager
def _counted_together(team: Team, counts: dict[str, int]) -> Iterator[None]:
    """Add up the counts of all processes, which leave together: `counts` then holds the sums.

    Raises UserError and Preempted, of this process or another one.
    """
    refused = preempted = None
    try:
        yield
    except UserError as error:  # the other groups count with this one before anybody leaves
        refused = error
    except Preempted as stop:
        if stop.at_once:
            raise
        preempted = stop
    *sums, stopped, left = team.total(*counts.values(), refused is not None, preempted is not None)
    counts |= dict(zip(counts, sums, strict=True))
    if refused is not None:
        raise refused
    if stopped:
        raise UserError("another process could not go on and says why; what is recorded stays")
    if left:
        raise preempted or Preempted("another process's signal")


def _summary(job: Job, tasks: list[Task], counts: dict[str, int]) -> dict[str, Any]:
    """What the closing table and the sweep's table are made from."""
    cfg, store, keys = job.cfg, job.store, [t.key for t in tasks]
    store.book.refresh()  # verdicts that other processes entered meanwhile
    with long_lists():
        tally = store.tally(keys)
    return {
        "run_id": job.recipe.run_id,
        "label": job.recipe.label + ("" if cfg.shard == "1/1" else f", shard {cfg.shard}"),
        "experiment": experiment(),
        "clips": len(tasks),
        **counts,
        "folder": str(store.folder),
        "tally": tally,
        "records": store.records(keys),  # read by those who ask for them
    }


@contextmanager
def long_lists() -> Iterator[None]:
    """Without garbage collections, each of which would go through a million objects of modules."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


def _what_failed(summary: dict[str, Any], before: list[Task]) -> str:
    """What is not as it should be and what to type; "" if nothing is."""
    clips, said = summary["clips"], []
    if summary["failed"]:
        said += [
            f"{summary['failed']} of {clips} clips failed, {summary['tally']['clips']} are complete; "
            f"tracebacks are in {summary['folder']}/failures"
        ]
    if summary["failed_before"]:
        names = [json.dumps(t.prompt, ensure_ascii=False) for t in before[:3]]
        names += ["..."] if summary["failed_before"] > len(names) else []
        said += [
            f"{summary['failed_before']} of {clips} clips failed before and were left out "
            f"({', '.join(names)}); tracebacks are in {summary['folder']}/failures"
        ]
    if said:
        said += ["type cache=retry to try them again"]
    if summary["unscored"]:
        said += [
            f"{summary['unscored']} of {clips} clips lack scores; why stands in "
            f"{summary['folder']}/scores; the same command asks again"
        ]
    return "; ".join(said)


def _what_lacks(cfg: DictConfig, summary: dict[str, Any]) -> str:
    """What cache=read-only did not find, and the command that makes it."""
    lacking = summary["clips"] - summary["tally"]["clips"]
    return (
        f"{lacking} of {summary['clips']} clips are not in {summary['folder']}, and cache=read-only "
        f"makes none; type {command(cfg)}"
    )


def command(cfg: DictConfig) -> str:
    """What to type for this job of a sweep alone, without cache=."""
    hydra = HydraConfig.instance().cfg
    words = [] if hydra is None else list(hydra.hydra.overrides.task)
    words = [w for w in words if not w.startswith(("cache=", "prompt="))]
    words += [] if cfg.prompt is None else [f"prompt={cfg.prompt}"]
    return shlex.join(["python", "run.py", *words])
