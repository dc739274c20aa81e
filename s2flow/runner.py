"""One config: which of its clips are not yet in the store; make those, and say what there is.

Whatever is already recorded is skipped, so re-issuing a command continues it. A clip that fails
leaves its traceback, the others go on, and the job ends non-zero with counts and the command to
type.
"""

from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from s2flow import loading, methods
from s2flow.backbones.base import Origin
from s2flow.config import plain, resolve
from s2flow.errors import UserError
from s2flow.job import Job
from s2flow.parallel import join
from s2flow.planning import plan
from s2flow.policies import sta
from s2flow.progress import check as check_progress
from s2flow.recipe import VERSION
from s2flow.score import Scoring
from s2flow.store import Store
from s2flow.summary import label, print_run
from s2flow.tasks import clip_tasks
from s2flow.tracking import check as check_tracker
from s2flow.tracking import experiment


def run(cfg: DictConfig) -> dict[str, Any]:
    """Make all clips of one config; returns the summary that tables are printed from.

    Raises UserError for values that cannot work and, at the end, if any clip failed.
    """
    check_progress(cfg.progress)
    check_tracker(cfg.tracker)
    tasks = clip_tasks(cfg)
    knobs = methods.method(cfg.method.name).KNOBS
    if cfg.plan:
        return plan(cfg, resolve(cfg, "", knobs), loading.device_here(cfg.device), len(tasks))
    if cfg.offload != "none" and loading.device_here(cfg.device) == "cpu":
        raise UserError(
            f"offload={cfg.offload} keeps weights on the CPU while a GPU computes, and the device "
            "here is the CPU; leave offload out"
        )
    weights = loading.weights_hash(cfg.backbone.family, Origin.of(cfg.backbone))
    recipe = resolve(cfg, weights, knobs)
    sta.check_prompts(recipe, [t.prompt for t in tasks])
    arguments = plain(cfg, "scorer")
    scorers = {name: instantiate(conf) for name, conf in arguments.items()}
    if cfg.threads is not None:
        torch.set_num_threads(cfg.threads)
    store = Store(cfg.runs_dir, recipe.run_id, {"version": VERSION, **recipe.identity()})
    team = join(cfg.context_parallel, loading.device_here(cfg.device))
    scoring = Scoring(store.book, scorers, arguments)
    job, mine = Job(cfg, recipe, store, scoring, team), team.share(tasks)
    have = store.recorded()
    todo = team.agree([t for t in mine if t.key not in have])
    made, failed, unscored, refused = [], 0, 0, None
    try:
        unscored = job.rescore(mine, todo, have) if team.leads else 0
        failed = job.make_all(todo, tasks, len(mine)) if todo else 0
        made = [r for r in (store.record(t.key) for t in todo) if r is not None]
        unscored += sum(not scoring.scored(r) for r in made if team.leads)
    except UserError as error:  # the other groups count with this one before anybody leaves
        refused = error
    made, failed, unscored, stopped = team.total(len(made), failed, unscored, refused is not None)
    if refused is not None:
        raise refused
    if stopped:
        raise UserError("another process could not go on and says why; what is recorded stays")
    store.book.refresh()  # what others said meanwhile
    keys = [t.key for t in tasks]
    summary = {
        "run_id": recipe.run_id,
        "label": label(recipe),
        "experiment": experiment(),
        "clips": len(tasks),
        "made": made,
        "failed": failed,
        "unscored": unscored,
        "folder": str(store.folder),
        "tally": store.tally(keys),  # what the table is made from
        "records": store.records(keys),  # read by those who ask for them
    }
    if team.first:
        print_run(summary)
    if failed or unscored:
        error = UserError(_what_failed(summary))
        error.summary, error.reported = summary, not team.first  # for the sweep's table
        raise error
    return summary


def _what_failed(summary: dict[str, Any]) -> str:
    clips, failed, unscored = (summary[k] for k in ("clips", "failed", "unscored"))
    said = []
    if failed:
        said += [
            f"{failed} of {clips} clips failed, {clips - failed} are complete; "
            f"tracebacks are in {summary['folder']}/failures"
        ]
    if unscored:
        said += [
            f"{unscored} of {clips} clips lack scores; why stands in {summary['folder']}/scores"
        ]
    return "; ".join(said) + "; the same command tries the failed ones again"
