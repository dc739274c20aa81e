"""The paper's timings (8x H800) against FLOPs from HunyuanVideo's config: which reading of "s = 50 %"?

Figure 6 gives seconds for 10 steps of the transformer: 51.0 at LR, 733 at HR, 96.4 with S2Flow. Here

    FLOPs      of one forward at 768x1280x117 (115,200 tokens) and 1536x2560x117 (460,800), by running
               the published config on the meta device (`forward`)
    predicted  seconds(f) = 51.0 x FLOPs_hr(f) / FLOPs_lr: the same utilisation at LR and HR. The LR
               time is the only measured number; what the GPUs exchange is in the utilisation
    speed-up   FLOPs_hr / FLOPs_hr(f): the largest that windows of density f can give a forward
    clip       (N seconds_lr + t_i seconds(f)) / 10 + rest

Conventions that reproduce the table of the project's notes: a multiply-add is 2 FLOPs; text is 256
tokens, HunyuanVideo's longest, joint with the video's and outside of windows, so that
f_joint = (f Lv^2 + 2 Lv Lt + Lt^2) / (Lv + Lt)^2; one pass, guidance is embedded; norms, gates and
softmax are not counted.

rest: minutes of a clip outside the transformer (text, autoencoder, resizing), which Figure 6 omits. It
is Table 1's time of MACS, the plain cascade with full attention, minus its LR and HR steps. The rest of
S2Flow's own row is larger (`rest_of_s2flow`); the paper does not explain it.

A sparsity s keeps f = s of the pairs when read as a share of the volume (density=volume, the text), and
f = s^3 when read as a share of every axis (density=per_axis).
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from s2flow.backbones.base import Origin
from s2flow.costs.blank import blank
from s2flow.costs.forward import Forward, forward_cost
from s2flow.errors import UserError
from s2flow.windows import fraction_of_volume

READINGS = ("volume", "per_axis")
SOURCE = "hunyuanvideo-community/HunyuanVideo"
PACKAGED_JSON = Path(__file__).with_name("paper.json")  # a link, which a wheel turns into a file
# used in a checkout where links are text files
CHECKOUT_JSON = Path(__file__).parents[2] / "experiments" / "paper.json"


def reported() -> dict[str, Any]:
    """The paper's published numbers. Raises UserError if the file is missing."""
    for path in (PACKAGED_JSON, CHECKOUT_JSON):
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
    raise UserError(
        "the paper's numbers, s2flow/costs/paper.json, are missing; install s2flow again"
    )


@dataclass(frozen=True)
class PaperClock:
    """One forward at the paper's LR and HR, and the numbers that the paper reports."""

    low: Forward
    high: Forward
    reported: dict[str, Any]

    @property
    def setting(self) -> dict[str, Any]:
        """Steps, t_i, GPUs and so on."""
        return self.reported["setting"]

    @property
    def gpus(self) -> int:
        """Number of GPUs per clip."""
        return int(self.setting["gpus"].split("x")[0])

    def measured(self, method: str, resolution: str) -> float:
        """Seconds of 10 steps, Figure 6. resolution: "low_resolution" or "high_resolution"."""
        rows = self.reported["figure6_seconds_per_10_steps"]
        size = self.setting[resolution]
        return next(r["seconds"] for r in rows if (r["method"], r["resolution"]) == (method, size))

    @property
    def low_seconds(self) -> float:
        """Seconds of 10 LR steps: the reference time."""
        return self.measured("native", "low_resolution")

    def predicted(self, f: float = 1.0) -> float:
        """Seconds of 10 HR steps at density f, at the utilisation of the LR steps."""
        return self.low_seconds * self.high.flops(f) / self.low.flops()

    def speedup(self, f: float) -> float:
        """Largest speed-up of an HR forward by windows of density f."""
        return self.high.flops() / self.high.flops(f)

    def utilisation(self, seconds: float, flops: float) -> float:
        """TFLOP/s of each GPU, if 10 forwards of `flops` FLOPs take `seconds`."""
        return 10 * flops / seconds / self.gpus / 1e12

    # -- whole clips --------------------------------------------------------------------------

    def minutes(self, f: float, cascade: bool = True) -> float:
        """Minutes of the transformer per clip; without cascade all steps are at HR."""
        steps, t_i = self.setting["steps"], self.setting["t_i"]
        if not cascade:
            return steps * self.predicted(f) / 600
        return (steps * self.low_seconds + t_i * self.predicted(f)) / 600

    def table1_minutes(self, method: str) -> float:
        """Minutes as reported in Table 1."""
        return next(r["minutes"] for r in self.reported["table1"] if r["method"] == method)

    @property
    def rest(self) -> float:
        """Minutes outside the transformer, by MACS."""
        return self.table1_minutes("macs") - self.minutes(1.0)

    @property
    def rest_of_s2flow(self) -> float:
        """Minutes outside the transformer, by S2Flow's row and its 96.4 s of Figure 6."""
        s = self.setting
        high = self.measured("s2flow", "high_resolution")
        flow = (s["steps"] * self.low_seconds + s["t_i"] * high) / 600
        return self.table1_minutes("s2flow") - flow

    def clip_minutes(self, f: float) -> float:
        """Minutes of a cascade at density f, including `rest`."""
        return self.minutes(f) + self.rest


def paper_clock() -> PaperClock:
    """FLOPs of the paper's setting; takes about two seconds, needs no weights."""
    numbers = reported()
    s = numbers["setting"]
    backbone = blank("hunyuan", Origin("hunyuan", SOURCE, "main", "bfloat16"))
    low, high = (
        forward_cost(backbone, backbone.latent_shape(h, w, s["frames"]), 1, 6.0)
        for w, h in (s["low_resolution"], s["high_resolution"])
    )
    return PaperClock(low, high, numbers)


# -- against the paper's tables ---------------------------------------------------------------


def figure6(clock: PaperClock) -> list[dict[str, Any]]:
    """Seconds of 10 steps: reported, and under each reading of the sparsity."""
    s = clock.setting["sparsity"]
    rows = [_timed(clock, "native LR", "native", "low_resolution", None, clock.low_seconds)]
    rows.append(_timed(clock, "native HR", "native", "high_resolution", 1.0, clock.predicted()))
    for reading in READINGS:
        f = fraction_of_volume(s, reading)
        name = f"s2flow HR, {reading}"
        rows.append(_timed(clock, name, "s2flow", "high_resolution", f, clock.predicted(f)))
    return rows


def _timed(clock, name, method, resolution, f, predicted) -> dict[str, Any]:
    seconds = clock.measured(method, resolution)
    flops = clock.low.flops() if f is None else clock.high.flops(f)
    full = clock.measured("native", "high_resolution")
    return {
        "row": name,
        "f": f,
        "reported_seconds": seconds,
        "predicted_seconds": predicted,
        "reported_speedup": None if f is None else full / seconds,
        "predicted_speedup": None if f is None else clock.speedup(f),
        # that each GPU must reach if the reported time is of this density
        "tflops_per_gpu": clock.utilisation(seconds, flops),
    }


def table1(clock: PaperClock) -> list[dict[str, Any]]:
    """Minutes of a clip: reported, of the transformer alone, and with the rest."""
    s, rows = clock.setting["sparsity"], []
    native = clock.minutes(1.0, cascade=False)
    for row in clock.reported["table1"]:
        name, row_reported = row["method"], {"reported_minutes": row["minutes"]}
        row_reported |= {"reported_speedup": row["speedup"]}
        if name == "native":
            cases = {name: (1.0, native, native)}
        elif name == "s2flow":
            fs = {r: fraction_of_volume(s, r) for r in READINGS}
            cases = {
                f"s2flow, {r}": (f, clock.minutes(f), clock.clip_minutes(f)) for r, f in fs.items()
            }
        else:
            cases = {name: (1.0, clock.minutes(1.0), clock.clip_minutes(1.0))}
        for label, (f, transformer, clip) in cases.items():
            predicted = {"transformer_minutes": transformer, "predicted_minutes": clip}
            predicted |= {"predicted_speedup": native / clip}
            rows.append({"row": label, "f": f, **row_reported, **predicted})
    return rows


def table2(clock: PaperClock) -> list[dict[str, Any]]:
    """Speed-up by sparsity: reported, of an HR forward, and of a clip, under each reading."""
    native = clock.minutes(1.0, cascade=False)
    rows = []
    for row in clock.reported["table2_sparsity"]:
        cells = {"sparsity": row["sparsity"], "window": row["window"]}
        cells["reported_speedup"] = row["speedup"]
        for reading in READINGS:
            f = fraction_of_volume(row["sparsity"], reading)
            cells[reading] = {
                "f": f,
                "forward_speedup": clock.speedup(f),
                "clip_speedup": native / clock.clip_minutes(f),
            }
        rows.append(cells)
    return rows
