"""The printed tables of `python -m s2flow.costs`, 100 columns wide."""

from rich import box
from rich.console import Console
from rich.table import Table

from s2flow.costs.paper import READINGS, PaperClock, figure6, forwards, speedups, table1, table2
from s2flow.costs.yours import Yours


def show(clock: PaperClock, yours: Yours) -> None:
    """Print all tables."""
    console = Console(highlight=False, width=100)
    _side_by_side(console, clock, yours)
    _readings(console, clock)
    _stages(console, yours)


def _print(console: Console, columns: list[str], rows: list[list[str]]) -> None:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for i, name in enumerate(columns):
        table.add_column(name, justify="right" if i else "left")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def _side_by_side(console: Console, clock: PaperClock, model: Yours) -> None:
    s, r = clock.setting, model.recipe
    papers = [s[k][::-1] for k in ("low_resolution", "high_resolution")]
    for who, name, sizes, frames, steps, t_i, kept, where in (
        ("paper", s["backbone"], papers, s["frames"], s["steps"], s["t_i"], s["sparsity"], s["gpus"]),
        ("yours", r.backbone, (r.low, r.high), r.frames, r.steps, r.t_i, r.sparsity,
         f"{model.ranks}x {model.device}"),
    ):  # fmt: skip
        low, high = ("x".join(map(str, size)) for size in sizes)
        console.print(
            f"{who}  {name}, {low} -> {high}, {frames} frames, {steps} steps, t_i {t_i}, "
            f"s {kept:g}, on {where}",
            markup=False,
        )
    names = ["10 steps", "f", "PFLOP a forward", "paper s", "model s", "x", "|", "tokens", "PFLOP"]
    rows = [
        [
            a["row"],
            f"{a['f']:.3g}" if a["f"] == b["f"] else f"{a['f']:.3g} | {b['f']:.3g}",
            f"{a['linear_pflop']:.2f} + {a['attention_pflop']:.2f}",
            f"{a['reported_seconds']:.1f}",
            f"{a['predicted_seconds']:.1f}",
            _times(a["speedup"]),
            "|",
            f"{b['tokens']:,}",
            _short(b["linear_pflop"] + b["attention_pflop"]),
            _short(b["seconds_per_10_steps"]),
            _times(b["speedup"]),
        ]
        for a, b in zip(forwards(clock), model.forwards(), strict=True)
    ]
    _print(console, [*names, "yours s", "x"], rows)
    papers, clips = {row["row"]: row for row in table1(clock)}, model.clips()
    papers["cascade"] = papers["macs"]
    rows = [
        [
            name,
            f"{papers[name]['reported_minutes']:g}",
            f"{papers[name]['predicted_minutes']:.1f}",
            _times(papers[name]["predicted_speedup"]),
            "|",
            _short(minutes),
            _times(clips["native"] / minutes),
        ]
        for name, minutes in clips.items()
    ]
    _print(console, ["whole clip", "paper min", "model min", "x", "|", "yours min", "x"], rows)
    ratio = clock.high.flops() / clock.low.flops()
    line = ", ".join(f"{r['f']:.3g} -> {r['speedup']:.3g}x" for r in speedups(clock))
    console.print(
        f"paper's model s: {clock.low_seconds:.1f} s of 10 LR steps times the ratio of FLOPs, HR/LR "
        f"{ratio:.1f}. Text: {clock.low.q[2] - clock.low.video} joint tokens; a multiply-add is "
        "2 FLOP. A clip's minutes outside the transformer, by MACS, a plain cascade: "
        f"{clock.rest:.1f}; by S2Flow's row: {clock.rest_of_s2flow:.1f}.\n"
        f"largest speed-up of the transformer by f: {line}\n"
    )


def _readings(console: Console, clock: PaperClock) -> None:
    """Figure 6, Table 1, Table 2: what each reading of the sparsity predicts."""
    names = ["Figure 6, 10 steps", "f", "reported s", "predicted s", "reported x", "predicted x"]
    rows = [
        [
            r["row"],
            "—" if r["f"] is None else f"{r['f']:g}",
            *(f"{r[k]:.1f}" for k in ("reported_seconds", "predicted_seconds")),
            *(_times(r[k]) for k in ("reported_speedup", "predicted_speedup")),
            f"{r['tflops_per_gpu']:,.0f}",
        ]
        for r in figure6(clock)
    ]
    _print(console, [*names, "TFLOP/s each GPU"], rows)
    names = ["Table 1, a clip", "f", "reported min", "transformer min", "predicted min"]
    rows = [
        [
            *(r["row"], f"{r['f']:g}", f"{r['reported_minutes']:g}"),
            *(f"{r[k]:.1f}" for k in ("transformer_minutes", "predicted_minutes")),
            *(_times(r[k]) for k in ("reported_speedup", "predicted_speedup")),
        ]
        for r in table1(clock)
    ]
    _print(console, [*names, "reported x", "predicted x"], rows)
    names = [f"{r} {word}" for r in READINGS for word in ("f", "step x", "clip x")]
    rows = []
    for r in table2(clock):
        row = [f"{r['sparsity']:.0%}{'*' if r['window'] == 'fixed' else ''}"]
        row.append(_times(r["reported_speedup"]))
        for x in (r[reading] for reading in READINGS):
            row += [f"{x['f']:.3g}", _times(x["forward_speedup"]), _times(x["clip_speedup"])]
        rows.append(row)
    _print(console, ["Table 2, s", "reported x", *names], rows)
    console.print(
        "x: against native HR. TFLOP/s each GPU: what it must compute for the reported time to be of "
        "that f (an H800's peak is about 990). MACS predicts itself, by its rest; * one window for "
        "all.\n"
    )


def _stages(console: Console, yours: Yours) -> None:
    rates, stages = yours.rates, yours.stages()
    names = ["tokens", "f", "TFLOP", "GB moved", "GB sent", "seconds", "waits for", "peak GiB"]
    rows = [
        [
            r["stage"],
            *((f"{r['tokens']:,}", f"{r['f']:.3g}") if r["tokens"] else "——"),
            *(_short(r[k]) for k in ("tflop", "moved_gb", "sent_gb", "seconds")),
            *(r["bound"], f"{r['peak_gib']:.2f}"),
        ]
        for r in stages
    ]
    _print(console, [f"yours: {yours.recipe.windows_label}", *names], rows)
    seconds = {r["stage"]: r["seconds"] for r in stages}
    attention = f", {rates.attention:g} in attention" if rates.attention else ""
    console.print(
        f"{sum(seconds.values()):,.4g} s a clip; planning is {seconds['plan'] / seconds['lr']:.2%} "
        f"of the LR flow. {'Measured' if rates.kernels else 'Assumed'} of each device: "
        f"{rates.tflops:g} TFLOP/s{attention}, {rates.bandwidth:g} GB/s of memory, {rates.link:g} "
        "GB/s sent to other ranks. An estimate: nothing was loaded.",
        markup=False,
    )


def _times(x: float | None) -> str:
    return "—" if x is None else f"{x:.2f}" if x < 10 else f"{x:.1f}"


def _short(x: float) -> str:
    """Three significant digits, or a whole number from 100 on."""
    return f"{x:,.0f}" if abs(x) >= 100 else f"{x:.3g}"
