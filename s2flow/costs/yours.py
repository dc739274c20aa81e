"""The cost model of the paper's method at your sizes, on your backbone and GPUs, without weights.

forwards   10 steps at LR, at HR with full attention, and at HR under both readings of the sparsity
stages     the whole clip, stage by stage (`clip`)
clips      whole clips: native HR, the cascade with full attention, S2Flow under both readings, with
           the same costs of text, hand-off and decoding
"""

from dataclasses import dataclass
from typing import Any

from s2flow.backbones.base import Origin
from s2flow.backbones.ulysses import check_heads
from s2flow.costs.blank import blank
from s2flow.costs.clip import flow_stage, measure
from s2flow.costs.clock import Rates
from s2flow.costs.forward import Forward
from s2flow.costs.paper import READINGS
from s2flow.costs.stages import GIB, Costs, bound, seconds_of
from s2flow.errors import UserError
from s2flow.methods import method
from s2flow.recipe.defaults import composed, conf_file
from s2flow.recipe.identity import Recipe
from s2flow.recipe.resolve import resolve
from s2flow.recipe.schema import BackboneConf
from s2flow.windows import fraction_of_volume


@dataclass(frozen=True)
class Yours:
    """A recipe, its costs, and its device."""

    recipe: Recipe
    costs: Costs
    device: str
    rates: Rates
    ranks: int

    @property
    def low(self) -> Forward:
        """One forward at LR."""
        return self.costs.low

    @property
    def high(self) -> Forward:
        """One forward at HR."""
        return self.costs.high

    def ten_steps(self, forward: Forward, f: float = 1.0) -> float:
        """Seconds of 10 forwards."""
        return seconds_of(flow_stage("ten", forward, 10, f=f), self.rates, self.ranks)

    def forwards(self) -> list[dict[str, Any]]:
        """Rows of LR, HR, and HR under each reading, in this order."""
        s = self.recipe.sparsity
        cases = [("LR", self.low, 1.0), ("HR", self.high, 1.0)]
        cases += [(f"HR, {r}", self.high, fraction_of_volume(s, r)) for r in READINGS]
        full = self.ten_steps(self.high)
        return [
            {
                "row": name,
                "tokens": forward.video,
                "f": f,
                "linear_pflop": forward.linear / 1e15,
                "attention_pflop": forward.attending_flops(f) / 1e15,
                "seconds_per_10_steps": (seconds := self.ten_steps(forward, f)),
                "speedup": None if forward is self.low else full / seconds,
                "sent_gb_per_forward": forward.sent(self.ranks) / 1e9,
            }
            for name, forward, f in cases
        ]

    def stages(self) -> list[dict[str, Any]]:
        """Rows of the clip's stages."""
        return [
            {
                "stage": s.name,
                "tokens": s.tokens,
                "f": s.density,
                "tflop": s.flops / 1e12,
                "moved_gb": s.moved.total / 1e9,
                "sent_gb": s.sent(self.ranks) / 1e9 if s.part != "vae" else 0.0,
                "seconds": self.costs.seconds(s, self.rates, ranks=self.ranks),
                "bound": bound(s, self.rates, self.ranks),
                "peak_gib": self.costs.peak(s, ranks=self.ranks) / GIB,
            }
            for s in self.costs.stages
        ]

    def clips(self) -> dict[str, float]:
        """Minutes of whole clips, in the paper's order of rows."""
        r, times = self.recipe, {row["stage"]: row["seconds"] for row in self.stages()}
        shared = times["text"] + times["decode"]
        rest = shared + times["lr"] + times["plan"] + times["handoff"]
        full = self.ten_steps(self.high) / 10
        totals = {"native": shared + r.steps * full, "cascade": rest + r.t_i * full}
        for reading in READINGS:
            f = fraction_of_volume(r.sparsity, reading)
            totals[f"s2flow, {reading}"] = rest + r.t_i * self.ten_steps(self.high, f) / 10
        return {name: seconds / 60 for name, seconds in totals.items()}


def model(
    backbone: str, device: str, rates: Rates, ranks: int = 1, batch: int = 1, **knobs: Any
) -> Yours:
    """Costs of a clip of S2Flow. knobs: low, high, frames, steps, sparsity, ... as for `generate`.

    Raises UserError for invalid knobs, or a backbone whose sizes are not known.
    """
    for option, number in (("ranks", ranks), ("batch", batch)):
        if number < 1:
            raise UserError(f"--{option} {number} is not a positive number; type --{option} 1")
    file = conf_file("backbone", backbone, BackboneConf)
    cfg = composed([file], {k: v for k, v in knobs.items() if v is not None})
    recipe = resolve(cfg, "", method("s2flow").KNOBS)
    blank_backbone = blank(file.family, Origin.of(file))
    if ranks > 1:
        check_heads(blank_backbone.transformer.config.num_attention_heads, ranks)
    return Yours(recipe, measure(blank_backbone, recipe, batch), device, rates, ranks)
