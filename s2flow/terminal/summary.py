"""Output at the end: the table of a run or of a sweep, and where the files are."""

import atexit
import json
import sys
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from rich.console import Console
from rich.table import Table

from s2flow.process.ranks import rank
from s2flow.terminal.plans import print_plans, swept, table

TABLES = ("table1", "table2", "table3", "table4")  # of experiments/tables.py
SCORE_COLUMNS = {
    "world_agreement": "agree",
    "object_count": "objects",
    "whole": "whole",
    "detail": "detail",
    "temporal_flickering": "flicker",
    "psnr": "psnr",
}


def print_failure(prompt: str, error: Exception | str) -> None:
    """One line for a clip that failed; its traceback is in the store."""
    reason = error if isinstance(error, str) else f"{type(error).__name__}: {error}".split("\n")[0]
    print(f"  FAILED {json.dumps(prompt, ensure_ascii=False)} {reason}", file=sys.stderr)


def print_run(summary: dict[str, Any]) -> None:
    """Table of one run, and where its files are."""
    console = _console()
    folder, tally = summary["folder"], summary["tally"]
    if not in_sweep():  # which prints one table at its end
        console.print(_table([summary]))
    line = f"videos {folder}/clips   contact sheets {folder}/sheets"
    if tally["video"] is not None and summary["clips"] == 1:
        video = f"{folder}/{tally['video']}"
        line = f"video {video}   contact sheet {folder}/sheets/{Path(video).stem}.png"
    if tally["clips"]:
        console.print(line, markup=False, soft_wrap=True)
    if tally["duplicates"]:
        console.print(
            f"{tally['duplicates']} duplicate(s): clips that several workers made at the same time"
        )
    if not in_sweep():
        print_what_next([summary])


def in_sweep() -> bool:
    """Whether Hydra runs this as one job of several."""
    hydra = HydraConfig.instance().cfg
    return hydra is not None and hydra.hydra.mode == RunMode.MULTIRUN


class SweepTable(Callback):
    """Hydra callback: every job writes its summary to its output folder; a sweep prints all of them."""

    def on_multirun_start(self, config: Any, **kwargs: Any) -> None:
        """Register the table at exit: after a failed job, Hydra skips on_multirun_end."""
        atexit.register(print_sweep, Path(config.hydra.sweep.dir))

    def on_job_end(self, config: Any, job_return: Any, **kwargs: Any) -> None:
        """Write the job's summary beside its log."""
        value = getattr(job_return, "_return_value", None)
        value = getattr(value, "summary", value)  # a UserError may carry the summary
        names = {"tally": "summary.json", "needs": "plan.json"}  # written by a run, by plan=true
        for name in names.keys() & (value.keys() if isinstance(value, dict) else ()):
            folder = Path(config.hydra.runtime.output_dir)
            kept = {k: v for k, v in value.items() if k != "records"}  # records are in the store
            kept["overrides"] = list(config.hydra.overrides.task)
            (folder / names[name]).write_text(json.dumps(kept))

    def on_multirun_end(self, config: Any, **kwargs: Any) -> None:
        """Print the table of the sweep."""
        atexit.unregister(print_sweep)
        print_sweep(Path(config.hydra.sweep.dir))


def print_sweep(folder: Path) -> None:
    """Table of the jobs that wrote summaries below a sweep's folder."""
    if rank() != 0:
        return
    summaries, plans = (_written_by_jobs(folder, name) for name in ("summary.json", "plan.json"))
    if summaries:
        _console().print(_table(summaries, title="sweep"))
        print_what_next(summaries)
    if plans:
        print_plans(plans)


def _written_by_jobs(folder: Path, name: str) -> list[dict[str, Any]]:
    paths = sorted(folder.glob(f"*/{name}"), key=lambda p: (len(p.parent.name), p))
    return [json.loads(p.read_text()) for p in paths]


def print_what_next(summaries: list[dict[str, Any]]) -> None:
    """Print where files were written, and the commands that show them."""
    folder, console = Path(summaries[0]["folder"]).parent, _console()
    name = next((x["experiment"] for x in summaries if x.get("experiment")), None)
    option = f" --runs {folder}" if str(folder) != "runs" else ""
    lines = [f"runs    {folder}", f"report  python -m s2flow.report {folder}"]
    if name in TABLES:
        lines += [f"table   python experiments/tables.py {name}{option}"]
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)


def _table(summaries: list[dict[str, Any]], title: str | None = None) -> Table:
    """One row per run: what was swept, and means over its recorded clips."""
    columns = swept(summaries)
    scores = [s for s in SCORE_COLUMNS if any(s in x["tally"]["scores"] for x in summaries)]
    names = ("clips", "f", "LR s", "HR s", "all s", *(SCORE_COLUMNS[s] for s in scores))
    shown = table(("run", "what"), (*columns, *names), title)
    for i, x in enumerate(summaries):
        means = x["tally"]
        values = [(means["f"], 3), *((means[k], 2) for k in ("lr", "hr", "all"))]
        values += [(means["scores"].get(s), 4) for s in scores]
        cells = ["—" if value is None else f"{value:.{digits}f}" for value, digits in values]
        cells = [*(c[i] for c in columns.values()), f"{means['clips']}/{x['clips']}", *cells]
        shown.add_row(x["run_id"], x["label"], *cells)
    return shown


def _console() -> Console:
    """A console as wide as the terminal; 140 columns when printed to a file."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 140)
