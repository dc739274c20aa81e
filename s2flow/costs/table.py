"""The printed tables of `python -m s2flow.costs`, 100 columns wide."""

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from s2flow.costs.paper import READINGS, PaperClock, figure6, table1, table2
from s2flow.costs.yours import Yours
from s2flow.windows import fraction_of_volume

DASH = "—"


def paper_forwards(clock: PaperClock) -> list[dict[str, Any]]:
    """LR, HR and HR under both readings of the paper's sparsity: FLOPs and seconds of 10 steps."""
    s = clock.setting["sparsity"]
    cases = [("LR", clock.low, 1.0, clock.low_seconds)]
    cases += [("HR", clock.high, 1.0, clock.measured("native", "high_resolution"))]
    high = clock.measured("s2flow", "high_resolution")
    cases += [(f"HR, {r}", clock.high, fraction_of_volume(s, r), high) for r in READINGS]
    return [
        {
            "row": name,
            "tokens": forward.video,
            "f": f,
            "linear_pflop": forward.linear / 1e15,
            "attention_pflop": forward.attending_flops(f) / 1e15,
            "reported_seconds": seconds,
            "predicted_seconds": clock.low_seconds * forward.flops(f) / clock.low.flops(),
            "speedup": None if forward is clock.low else clock.speedup(f),
        }
        for name, forward, f, seconds in cases
    ]


def speedups(clock: PaperClock) -> list[dict[str, float]]:
    """Largest speed-up of an HR forward at each f that Table 2's sparsities can mean."""
    shares = [r["sparsity"] for r in clock.reported["table2_sparsity"]]
    fs = {fraction_of_volume(s, r) for s in shares if s < 1 for r in READINGS}
    return [{"f": f, "speedup": clock.speedup(f)} for f in sorted(fs, reverse=True)]


def show(clock: PaperClock, yours: Yours) -> None:
    """Print all tables."""
    console = Console(highlight=False, width=100)
    _side_by_side(console, clock, yours)
    _readings(console, clock)
    _stages(console, yours)


def _grid(*columns: str, title: str | None = None) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title=title, title_justify="left")
    for i, name in enumerate(columns):
        table.add_column(name, justify="right" if i else "left")
    return table


def _side_by_side(console: Console, clock: PaperClock, model: Yours) -> None:
    s, r = clock.setting, model.recipe
    low, high = ("x".join(map(str, reversed(s[k]))) for k in ("low_resolution", "high_resolution"))
    console.print(
        f"paper  {s['backbone']}, {low} -> {high}, {s['frames']} frames, {s['steps']} steps, "
        f"t_i {s['t_i']}, s {s['sparsity']:g}, on {s['gpus']}"
    )
    sizes = ["x".join(map(str, size)) for size in (r.low, r.high)]
    console.print(
        f"yours  {r.backbone}, {sizes[0]} -> {sizes[1]}, {r.frames} frames, {r.steps} steps, "
        f"t_i {r.t_i}, s {r.sparsity:g}, on {model.ranks}x {model.device}",
        markup=False,
    )
    names = ("PFLOP a forward", "paper s", "model s", "x", "|", "tokens", "PFLOP", "yours s", "x")
    table = _grid("10 steps", "f", *names)
    for a, b in zip(paper_forwards(clock), model.forwards(), strict=True):
        f = f"{a['f']:.3g}" if a["f"] == b["f"] else f"{a['f']:.3g} | {b['f']:.3g}"
        table.add_row(
            *(a["row"], f),
            f"{a['linear_pflop']:.2f} + {a['attention_pflop']:.2f}",
            *(f"{a['reported_seconds']:.1f}", f"{a['predicted_seconds']:.1f}"),
            *(_times(a["speedup"]), "|", f"{b['tokens']:,}"),
            _short(b["linear_pflop"] + b["attention_pflop"]),
            *(_short(b["seconds_per_10_steps"]), _times(b["speedup"])),
        )
    console.print(table)
    clips = _grid("whole clip", "paper min", "model min", "x", "|", "yours min", "x")
    rows, yours = {row["row"]: row for row in table1(clock)}, model.clips()
    rows["cascade"] = rows["macs"]
    for name, minutes in yours.items():
        a = rows[name]
        clips.add_row(
            *(name, f"{a['reported_minutes']:g}", f"{a['predicted_minutes']:.1f}"),
            _times(a["predicted_speedup"]),
            *("|", _short(minutes), _times(yours["native"] / minutes)),
        )
    console.print(clips)
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
    table = _grid(
        *("Figure 6, 10 steps", "f", "reported s", "predicted s", "reported x", "predicted x"),
        "TFLOP/s each GPU",
    )
    for r in figure6(clock):
        table.add_row(
            *(r["row"], DASH if r["f"] is None else f"{r['f']:g}"),
            *(f"{r['reported_seconds']:.1f}", f"{r['predicted_seconds']:.1f}"),
            *(_times(r["reported_speedup"]), _times(r["predicted_speedup"])),
            f"{r['tflops_per_gpu']:,.0f}",
        )
    console.print(table)
    names = ("reported min", "transformer min", "predicted min", "reported x", "predicted x")
    table = _grid("Table 1, a clip", "f", *names)
    for r in table1(clock):
        table.add_row(
            *(r["row"], f"{r['f']:g}", f"{r['reported_minutes']:g}"),
            *(f"{r['transformer_minutes']:.1f}", f"{r['predicted_minutes']:.1f}"),
            *(_times(r["reported_speedup"]), _times(r["predicted_speedup"])),
        )
    console.print(table)
    by = [f"{r} {word}" for r in READINGS for word in ("f", "step x", "clip x")]
    table = _grid("Table 2, s", "reported x", *by)
    for r in table2(clock):
        cells = [
            cell
            for reading in READINGS
            for cell in (
                f"{r[reading]['f']:.3g}",
                _times(r[reading]["forward_speedup"]),
                _times(r[reading]["clip_speedup"]),
            )
        ]
        fixed = "*" if r["window"] == "fixed" else ""
        table.add_row(f"{r['sparsity']:.0%}{fixed}", _times(r["reported_speedup"]), *cells)
    console.print(table)
    console.print(
        "x: against native HR. TFLOP/s each GPU: what it must compute for the reported time to be of "
        "that f (an H800's peak is about 990). MACS predicts itself, by its rest; * one window for "
        "all.\n"
    )


def _stages(console: Console, yours: Yours) -> None:
    rates = yours.rates
    table = _grid(
        *(f"yours: {yours.recipe.windows_label}", "tokens", "f", "TFLOP", "GB moved", "GB sent"),
        *("seconds", "waits for", "peak GiB"),
    )
    rows = yours.stages()
    for r in rows:
        tokens = f"{r['tokens']:,}" if r["tokens"] else DASH
        table.add_row(
            *(r["stage"], tokens, f"{r['f']:.3g}" if r["tokens"] else DASH),
            *(_short(r[k]) for k in ("tflop", "moved_gb", "sent_gb", "seconds")),
            *(r["bound"], f"{r['peak_gib']:.2f}"),
        )
    console.print(table)
    seconds = {r["stage"]: r["seconds"] for r in rows}
    share = seconds["plan"] / seconds["lr"]
    attention = f", {rates.attention:g} in attention" if rates.attention else ""
    console.print(
        f"{sum(seconds.values()):,.4g} s a clip; planning is {share:.2%} of the LR flow. "
        f"{'Measured' if rates.kernels else 'Assumed'} of each device: {rates.tflops:g} TFLOP/s"
        f"{attention}, {rates.bandwidth:g} GB/s of memory, {rates.link:g} GB/s sent to other ranks. "
        "An estimate: nothing was loaded.",
        markup=False,
    )


def _times(x: float | None) -> str:
    return DASH if x is None else f"{x:.2f}" if x < 10 else f"{x:.1f}"


def _short(x: float) -> str:
    """Three significant digits, or a whole number from 100 on."""
    return f"{x:,.0f}" if abs(x) >= 100 else f"{x:.3g}"
