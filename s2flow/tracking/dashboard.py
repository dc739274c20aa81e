"""A wandb workspace that shows a project of s2flow runs: `python -m s2flow.tracking dashboard`.

Built with `wandb-workspaces` (extra `wandb`) from the names in rows.py. Saving it needs
a login; `--dry-run --out FILE` builds the same definition without one.
"""

import argparse
from pathlib import Path
from typing import Any

from s2flow.errors import UserError

MEANS = ("world_agreement", "temporal_flickering", "object_count", "detail")  # of any backbone


def dashboard(args: argparse.Namespace) -> None:
    """Build the workspace, write it to `out`, save it online unless `dry_run`. Raises UserError."""
    if args.videos < 1 or args.seeds < 1:
        raise UserError(f"--videos {args.videos} --seeds {args.seeds}: type 1 or more of each")
    if args.dry_run and args.out is None:
        raise UserError("--dry-run only builds the definition; type --out FILE to keep it")
    if not args.dry_run and not args.entity:
        raise UserError(
            "a workspace belongs to an entity; type --entity E, or --dry-run --out FILE"
        )
    made = workspace(args.entity or "", args.project, args.name, args.videos, args.seeds)
    if args.out is not None:
        _write(args.out, made)
    if args.dry_run:
        return
    try:
        made.save()
    except Exception as error:  # of wandb, requests or gql
        reason = (str(error) or type(error).__name__).strip().split("\n")[0]
        raise UserError(
            f"the workspace was not saved: {reason}; `wandb login` first, or --dry-run --out FILE"
        ) from None
    print(made.url)


def _write(path: Path, made: Any) -> None:
    text = made._to_model().model_dump_json(by_alias=True, indent=1)  # what save() sends
    try:
        path.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"--out {path} cannot be written: {error.strerror}") from None
    print(path)


def workspace(entity: str, project: str, name: str, videos: int = 4, seeds: int = 1) -> Any:
    """The workspace: scores and times of runs, steps as they run, tables, videos, windows.

    Raises UserError if wandb-workspaces is not installed.
    """
    try:
        import wandb_workspaces.reports.v2 as wr  # the extra `wandb`
        import wandb_workspaces.workspaces as ws
    except ImportError:
        raise UserError(
            "wandb-workspaces is not installed; type pip install 's2flow[wandb]'"
        ) from None
    keys = [f"p{i + 1}-s{seed}" for i in range(videos) for seed in range(seeds)]
    means = [wr.BarPlot(title=s, metrics=[f"mean/score/{s}"]) for s in MEANS]
    sections = {
        "Scores and cost of each run": [
            *means,
            wr.BarPlot(title="seconds per clip", metrics=["mean/seconds/all"]),
            wr.ScatterPlot(
                title="quality and time",
                x=wr.SummaryMetric("mean/seconds/all"),
                y=wr.SummaryMetric("mean/score/world_agreement"),
            ),
            wr.ScatterPlot(
                title="density and time of the HR flow",
                x=wr.SummaryMetric("mean/density"),
                y=wr.SummaryMetric("mean/seconds/hr"),
            ),
        ],
        "As it runs": [
            wr.LinePlot(title="seconds per HR step", x="Step", y=["hr/seconds"]),
            wr.LinePlot(title="seconds per LR step", x="Step", y=["lr/seconds"]),
            wr.LinePlot(title="realised density", x="Step", y=["hr/density"]),
            wr.ScalarChart(title="clips", metric=wr.SummaryMetric("clips_recorded")),
        ],
        "Tables": [wr.WeavePanelSummaryTable(table_name=t) for t in ("scores", "clips", "steps")],
        "Videos": [wr.MediaBrowser(title=k, media_keys=[f"video/{k}"]) for k in keys],
        "Windows: layer, head and HR step": [
            wr.MediaBrowser(title=k, media_keys=[f"windows/{k}"]) for k in keys
        ],
        "Recipes": [wr.RunComparer(diff_only="split")],
    }
    made = [ws.Section(name=n, panels=p, is_open=True) for n, p in sections.items()]
    return ws.Workspace(entity=entity, project=project, name=name, sections=made)
