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
from s2flow.costs.stages import Costs
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

    def ten_steps(self, forward: Forward, f: float = 1.0) -> float:
        """Seconds of 10 forwards, `costs.low` or `costs.high`, with windows of density f."""
        return sum(flow_stage("ten", forward, 10, f=f).times(self.rates, self.ranks))

    def forwards(self) -> list[dict[str, Any]]:
        """Rows of LR, HR, and HR under each reading, in this order."""
        low, high = self.costs.low, self.costs.high
        cases = [("LR", low, 1.0), ("HR", high, 1.0)]
        cases += [
            (f"HR, {r}", high, fraction_of_volume(self.recipe.sparsity, r)) for r in READINGS
        ]
        full = self.ten_steps(high)
        return [
            {
                "row": name,
                "tokens": forward.video,
                "f": f,
                "linear_pflop": forward.linear / 1e15,
                "attention_pflop": forward.attending_flops(f) / 1e15,
                "seconds_per_10_steps": (seconds := self.ten_steps(forward, f)),
                "speedup": None if forward is low else full / seconds,
                "sent_gb_per_forward": forward.sent(self.ranks) / 1e9,
            }
            for name, forward, f in cases
        ]

    def stages(self) -> list[dict[str, Any]]:
        """Rows of the clip's stages."""
        return self.costs.rows(self.rates, "none", False, self.ranks)

    def clips(self) -> dict[str, float]:
        """Minutes of whole clips, in the paper's order of rows."""
        r, times = self.recipe, {row["stage"]: row["seconds"] for row in self.stages()}
        _, full, *windowed = (row["seconds_per_10_steps"] / 10 for row in self.forwards())
        shared = times["text"] + times["decode"]
        rest = shared + times["lr"] + times["plan"] + times["handoff"]
        totals = {"native": shared + r.steps * full, "cascade": rest + r.t_i * full}
        for reading, step in zip(READINGS, windowed, strict=True):
            totals[f"s2flow, {reading}"] = rest + r.t_i * step
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
    empty = blank(file.family, Origin.of(file))
    if ranks > 1:
        check_heads(empty.transformer.config.num_attention_heads, ranks)
    return Yours(recipe, measure(empty, recipe, batch), device, rates, ranks)
