"""A wandb workspace that shows a project of s2flow runs: `python -m s2flow.tracking dashboard`.

Built with `wandb-workspaces` (extra `wandb`) from the names in rows.py.
"""

import argparse
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
    made = _workspace(args)
    if args.out is not None:
        text = made._to_model().model_dump_json(by_alias=True, indent=1)  # what save() sends
        try:
            args.out.write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise UserError(f"--out {args.out} cannot be written: {error.strerror}") from None
        print(args.out)
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


def _workspace(args: argparse.Namespace) -> Any:
    """Scores and times of runs, steps as they run, tables, videos, windows."""
    try:
        import wandb_workspaces.reports.v2 as wr  # the extra `wandb`
        import wandb_workspaces.workspaces as ws
    except ImportError:
        raise UserError(
            "wandb-workspaces is not installed; type pip install 's2flow[wandb]'"
        ) from None

    def scatter(title: str, x: str, y: str) -> Any:
        return wr.ScatterPlot(title=title, x=wr.SummaryMetric(x), y=wr.SummaryMetric(y))

    def line(title: str, y: str) -> Any:
        return wr.LinePlot(title=title, x="Step", y=[y])

    def media(kind: str) -> list[Any]:
        keys = [f"p{i + 1}-s{seed}" for i in range(args.videos) for seed in range(args.seeds)]
        return [wr.MediaBrowser(title=k, media_keys=[f"{kind}/{k}"]) for k in keys]

    sections = {
        "Scores and cost of each run": [
            *(wr.BarPlot(title=s, metrics=[f"mean/score/{s}"]) for s in MEANS),
            wr.BarPlot(title="seconds per clip", metrics=["mean/seconds/all"]),
            scatter("quality and time", "mean/seconds/all", "mean/score/world_agreement"),
            scatter("density and time of the HR flow", "mean/density", "mean/seconds/hr"),
        ],
        "As it runs": [
            line("seconds per HR step", "hr/seconds"),
            line("seconds per LR step", "lr/seconds"),
            line("realised density", "hr/density"),
            wr.ScalarChart(title="clips", metric=wr.SummaryMetric("clips_recorded")),
        ],
        "Tables": [wr.WeavePanelSummaryTable(table_name=t) for t in ("scores", "clips", "steps")],
        "Videos": media("video"),
        "Windows: layer, head and HR step": media("windows"),
        "Recipes": [wr.RunComparer(diff_only="split")],
    }
    made = [ws.Section(name=n, panels=p, is_open=True) for n, p in sections.items()]
    how = {"entity": args.entity or "", "project": args.project, "name": args.name}
    return ws.Workspace(**how, sections=made)
