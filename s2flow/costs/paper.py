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
from collections.abc import Iterator
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
PAPER_JSON = (  # a link, which a wheel turns into a file; in a checkout links may be text files
    Path(__file__).with_name("paper.json"),
    Path(__file__).parents[2] / "experiments" / "paper.json",
)


def reported() -> dict[str, Any]:
    """The paper's published numbers. Raises UserError if the file is missing."""
    for path in PAPER_JSON:
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

    def readings(self, sparsity: float | None = None) -> Iterator[tuple[str, float]]:
        """(reading, density f) of the sparsity, that of the paper's setting by default."""
        s = self.setting["sparsity"] if sparsity is None else sparsity
        return ((reading, fraction_of_volume(s, reading)) for reading in READINGS)

    # -- whole clips --------------------------------------------------------------------------

    @property
    def native(self) -> float:
        """Minutes of the transformer per clip without cascade: all steps at HR."""
        return self.setting["steps"] * self.predicted() / 600

    def minutes(self, high_seconds: float) -> float:
        """Minutes of the transformer per clip, if 10 HR steps take so many seconds."""
        steps, t_i = self.setting["steps"], self.setting["t_i"]
        return (steps * self.low_seconds + t_i * high_seconds) / 600

    def _table1(self, method: str) -> float:
        return next(r["minutes"] for r in self.reported["table1"] if r["method"] == method)

    @property
    def rest(self) -> float:
        """Minutes outside the transformer, by MACS."""
        return self._table1("macs") - self.minutes(self.predicted())

    @property
    def rest_of_s2flow(self) -> float:
        """Minutes outside the transformer, by S2Flow's row and its 96.4 s of Figure 6."""
        high = self.measured("s2flow", "high_resolution")
        return self._table1("s2flow") - self.minutes(high)

    def clip_minutes(self, f: float) -> float:
        """Minutes of a cascade at density f, including `rest`."""
        return self.minutes(self.predicted(f)) + self.rest


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


def _cases(clock: PaperClock) -> list[tuple]:
    """(name, forward, f, reported and predicted seconds of 10 steps): LR, HR, HR by reading."""
    full = clock.measured("native", "high_resolution")
    ours = clock.measured("s2flow", "high_resolution")
    return [
        ("LR", clock.low, 1.0, clock.low_seconds, clock.low_seconds),
        ("HR", clock.high, 1.0, full, clock.predicted()),
        *((f"HR, {r}", clock.high, f, ours, clock.predicted(f)) for r, f in clock.readings()),
    ]


def forwards(clock: PaperClock) -> list[dict[str, Any]]:
    """FLOPs of a forward and seconds of 10 steps, under both readings of the paper's sparsity."""
    return [
        {
            "row": name,
            "tokens": forward.video,
            "f": f,
            "linear_pflop": forward.linear / 1e15,
            "attention_pflop": forward.attending_flops(f) / 1e15,
            "reported_seconds": seconds,
            "predicted_seconds": predicted,
            "speedup": None if forward is clock.low else clock.speedup(f),
        }
        for name, forward, f, seconds, predicted in _cases(clock)
    ]


def speedups(clock: PaperClock) -> list[dict[str, float]]:
    """Largest speed-up of an HR forward at each f that Table 2's sparsities can mean."""
    shares = [r["sparsity"] for r in clock.reported["table2_sparsity"]]
    fs = {f for s in shares if s < 1 for _, f in clock.readings(s)}
    return [{"f": f, "speedup": clock.speedup(f)} for f in sorted(fs, reverse=True)]


def figure6(clock: PaperClock) -> list[dict[str, Any]]:
    """Seconds of 10 steps: reported, and under each reading of the sparsity."""
    full = clock.measured("native", "high_resolution")
    return [
        {
            "row": f"{'s2flow' if ',' in name else 'native'} {name}",
            "f": None if forward is clock.low else f,
            "reported_seconds": seconds,
            "predicted_seconds": predicted,
            "reported_speedup": None if forward is clock.low else full / seconds,
            "predicted_speedup": None if forward is clock.low else clock.speedup(f),
            # that each GPU must reach if the reported time is of this density
            "tflops_per_gpu": clock.utilisation(seconds, forward.flops(f)),
        }
        for name, forward, f, seconds, predicted in _cases(clock)
    ]


def table1(clock: PaperClock) -> list[dict[str, Any]]:
    """Minutes of a clip: reported, of the transformer alone, and with the rest."""
    rows = []
    for row in clock.reported["table1"]:
        name = row["method"]
        cases = [(f"s2flow, {r}", f) for r, f in clock.readings()]
        for label, f in cases if name == "s2flow" else [(name, 1.0)]:
            transformer, clip = clock.minutes(clock.predicted(f)), clock.clip_minutes(f)
            if name == "native":
                transformer = clip = clock.native
            rows.append(
                {
                    "row": label,
                    "f": f,
                    "reported_minutes": row["minutes"],
                    "reported_speedup": row["speedup"],
                    "transformer_minutes": transformer,
                    "predicted_minutes": clip,
                    "predicted_speedup": clock.native / clip,
                }
            )
    return rows


def table2(clock: PaperClock) -> list[dict[str, Any]]:
    """Speed-up by sparsity: reported, of an HR forward, and of a clip, under each reading."""
    rows = []
    for row in clock.reported["table2_sparsity"]:
        cells = {k: row[k] for k in ("sparsity", "window")} | {"reported_speedup": row["speedup"]}
        for reading, f in clock.readings(row["sparsity"]):
            clip = clock.native / clock.clip_minutes(f)
            cells[reading] = {"f": f, "forward_speedup": clock.speedup(f), "clip_speedup": clip}
        rows.append(cells)
    return rows
