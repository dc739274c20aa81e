"""The output of `plan=true`: a table of one config, or one table of all jobs of a sweep.

The numbers come from `costs.planning` and `costs.forecast`. `plan=json` prints the same as one line of
JSON in the table's place; a file of it, plan.json, is in Hydra's output folder of every job.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

GIB = 2**30


def table(left: tuple[str, ...], right: tuple[str, ...], title: str | None = None) -> Table:
    """An empty table with these columns; only `what` wraps."""
    made = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in left:
        made.add_column(name, no_wrap=name != "what")
    for name in right:
        made.add_column(name, justify="right", no_wrap=True)
    return made


def print_plan(plan: dict[str, Any]) -> None:
    """The plan of one config, as a table or as JSON."""
    if plan["needs"]["json"]:
        print(json.dumps({"plan": _public(plan)}))
    else:
        _show(plan)


def _public(plan: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in plan.items() if k != "needs"}


def swept(jobs: list[dict[str, Any]]) -> dict[str, list[str]]:
    """What was typed differently for these jobs (`overrides`): each knob, with the jobs' values."""
    typed = [
        {k: v for k, _, v in (w.partition("=") for w in j.get("overrides", ()))} for j in jobs
    ]
    names = dict.fromkeys(name for words in typed for name in words)
    columns = {name: [words.get(name, "—") for words in typed] for name in names}
    return {name: values for name, values in columns.items() if len(set(values)) > 1}


def totals(plans: list[dict[str, Any]]) -> dict[str, Any]:
    """Totals over several jobs; shared clips and LR flows count once."""
    clips, flows = {}, {}
    for p in plans:
        clips |= dict.fromkeys(p["needs"]["clips"], p)
        flows |= dict.fromkeys(p["needs"]["low_flows"], p)
    seconds = sum(p["seconds_clip"] * p["ranks"] for p in clips.values())
    seconds += sum(p["seconds_low_flow"] * p["ranks"] for p in flows.values())
    limit = max(p["low_flows_limit"] for p in plans)
    low = min(sum(p["bytes_low_flow"] for p in flows.values()), limit)
    all_clips = {name for p in plans for name in p["needs"]["every_clip"]}
    return {
        "clips": len(all_clips),
        "cached": len(all_clips) - len(clips),
        "missing": len(clips),
        "low_flows": len(flows),
        "hours": round(seconds / 3600, 4),
        "gpu": any(p["gpu"] for p in plans),
        "disk_gib": round((sum(p["bytes_clip"] for p in clips.values()) + low) / GIB, 4),
        "bytes_from": "+".join(sorted({p["bytes_from"] for p in plans})),
    }


def line(plan: dict[str, Any]) -> str:
    """One job's clips as a line of text."""
    total = totals([plan])
    failed = f" ({plan['failed_before']} failed before)" if plan["failed_before"] else ""
    forced = " (cache=force: recorded clips, too)" if plan["cache"] == "force" else ""
    return (
        f"{total['cached']} of {total['clips']} clip(s) are recorded, {total['missing']} "
        f"missing{failed}{forced}, {total['low_flows']} LR flow(s) to make: {_hours(total)}, "
        f"{_disk(total)}"
    )


def print_plans(plans: list[dict[str, Any]]) -> None:
    """Table of a sweep's plans and its totals, or both as one line of JSON."""
    total, columns = totals(plans), swept(plans)
    if plans[0]["needs"]["json"]:
        print(json.dumps({"plans": [_public(p) for p in plans], "total": total}))
        return
    console = Console(highlight=False, width=140)
    names = ("clips", "cached", "missing", "LR flows", "hours", "disk GiB", "needs GiB", "fits")
    shown = table(("run", "what"), (*columns, *names), "plan")
    counted: set[str] = set()  # LR flows of earlier jobs
    for i, p in enumerate(plans):
        new_flows = [f for f in p["needs"]["low_flows"] if f not in counted]
        counted |= set(new_flows)
        job = totals([p | {"needs": p["needs"] | {"low_flows": new_flows}}])
        fits = {None: "—", True: "yes", False: "no"}[p["fits"]]
        cells = [p[k] for k in ("clips", "cached", "missing")] + [job["low_flows"]]
        cells += [f"{job['hours']:.3g}", f"{job['disk_gib']:.3g}", f"{p['needed_gib']:g}", fits]
        cells = [*(values[i] for values in columns.values()), *map(str, cells)]
        shown.add_row(p["run_id"] or "—", p["label"], *cells)
    cells = ["" for _ in columns] + [total[k] for k in ("clips", "cached", "missing", "low_flows")]
    cells += [f"{total['hours']:.3g}", f"{total['disk_gib']:.3g}", "", ""]
    shown.add_section()
    shown.add_row("all", "each clip and LR flow once", *map(str, cells))
    console.print(shown)
    text = f"{_hours(total)}, {_disk(total)}, {_free(Path(plans[0]['needs']['runs_dir']))}"
    console.print(f"{text}; estimates, nothing was loaded or written into the store")


def _hours(total: dict[str, Any]) -> str:
    return f"{total['hours']:.3g} {'GPU hours' if total['gpu'] else 'hours'}"


def _disk(total: dict[str, Any]) -> str:
    return f"{total['disk_gib']:.3g} GiB of disk (from {total['bytes_from']})"


def _free(folder: Path) -> str:
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    return f"{shutil.disk_usage(folder).free / GIB:.1f} GiB are free"


def _show(plan: dict[str, Any]) -> None:
    console = Console(highlight=False, width=100)
    console.print(line(plan), markup=False, soft_wrap=True)
    size = f"{plan['low'][0]}x{plan['low'][1]} -> {plan['high'][0]}x{plan['high'][1]}"
    console.print(
        f"{plan['method']} on {plan['backbone']}, {size}, {plan['frames']} frames, "
        f"{plan['clips']} clip(s) in batches of {plan['batch']}; estimates, nothing was loaded"
    )
    names = ("tokens", "f", "TFLOP", "GB moved", "seconds", "waits for", "weights GiB", "peak GiB")
    shown = table(("stage",), names)
    for r in plan["stages"]:
        cells = (f"{r['tokens']:,}", f"{r['density']:.3g}") if r["tokens"] else ("—", "—")
        cells += (f"{r['tflop']:,.0f}", f"{r['moved_gb']:,.0f}", f"{r['seconds']:,.1f}")
        cells += (r["bound"], f"{r['weights_gib']:.2f}", f"{r['peak_gib']:.2f}")
        shown.add_row(r["stage"], *cells)
    console.print(shown)
    rate, link = plan["assumed_tflops"], plan["assumed_link"]
    sending = f", {link:g} GB/s to other ranks (link=)" if plan["ranks"] > 1 else ""
    console.print(
        f"{plan['seconds']:,.0f} s a batch, assuming {rate:g} TFLOP/s in the transformer (tflops=) "
        f"and {plan['assumed_float32']:g} in float32, {plan['assumed_bandwidth']:g} GB/s of memory "
        f"(bandwidth=){sending}, on {plan['device']}",
        markup=False,
    )
    needed = f"needs {plan['needed_gib']:.1f} GiB"
    needed += f", {plan['slack']:.0%} slack and {plan['context_gib']:g} GiB context in"
    if plan["memory_gib"] is None:
        console.print(f"{needed}; no GPU was found here: memory=80 plans for one of 80 GiB")
        return
    verdict = "fits" if plan["fits"] else "does not fit"
    more = f"; add {plan['add']}" if plan["add"] else ""
    more = more or ("" if plan["fits"] else "; choose a smaller size")
    console.print(f"{needed}; {verdict} {plan['memory_gib']:g} GiB{more}", markup=False)
