"""The recipe: everything that decides the pixels of a clip besides its prompt and seed.

`run_id` is a short hash of the recipe: two commands that give the same pixels are one run, and a
repeated sweep computes only what is missing. The recipe excludes placement (device, shard, launcher,
tracker, prompt subset, scorers) and knobs that the method ignores (KNOBS of each method lists those
that it reads).
"""

import json
from dataclasses import asdict, dataclass
from typing import Any

from s2flow.methods.params import variant
from s2flow.store.recipes import (
    ADDED_FIELDS,
    LATER_LOW_FIELDS,
    LOW_FIELDS,
    VERSION,
    Fields,
    id_of,
    label,
)

READ_BY_ALL = ("backbone", "weights", "method", "steps", "shift", "frames", "high", "guidance")
READ_BY_ALL += ("negative_prompt", "dtype", "fp8", "vae_tile", "guidance_2", "params", "pipeline")


@dataclass(frozen=True)
class Recipe(Fields):
    """The resolved fields, and which of them count."""

    knobs: tuple[str, ...] = ()  # read by the method, beyond those that all methods read

    def identity(self) -> dict[str, Any]:
        """The dict that is hashed and stored: plain types, without what this method ignores.

        Settings with the same pixels are made equal: a window that is the whole grid is "full", order
        1 is "euler".
        """
        # through JSON, so that tuples are lists and a stored recipe equals a fresh one
        values = json.loads(json.dumps(asdict(self)))
        values["windows"].pop("calibration")  # `file` is its hash
        if not self.windows.file:  # absent from the first records
            values["windows"].pop("file")
        low = values["low"]
        given = ("input",) if "low" in self.knobs else ()
        values = {k: values[k] for k in (*READ_BY_ALL, *given, *self.knobs)}
        if "low" not in values and self.rope != "none":
            values["rope_low"] = low  # the size that `rope` scales from
        for name in getattr(self.params, "ignored", tuple)():
            del values["params"][name]
        ignored = {k for k, default in ADDED_FIELDS.items() if values.get(k) == default}
        if self.vae_tile is not None and self.vae_tile[0] >= max(self.high):
            ignored |= {"vae_tile"}  # one tile is the whole frame
        if "windows" in values:
            ignored |= self.windows.ignored(self.sparsity)
            if self.whole_grid:
                values["windows"] = {"name": "full"}
        if values.get("solver") == "lri" and self.order == 1:
            values["solver"] = "euler"
        if values.get("solver") != "lri":
            ignored |= {"order", "stencil", "lr_time"}
        if values.get("solver") not in ("lri", "lri_cv"):
            ignored |= {"upsample"}
        if self.lr_time == "snr":
            ignored |= {"stencil"}
        if self.handoff == "noisy":
            ignored |= {"noise", "adain"}
        return {k: v for k, v in values.items() if k not in ignored}

    @property
    def guidances(self) -> tuple[float, ...]:
        """One guidance per expert of the model."""
        return (self.guidance,) if self.guidance_2 is None else (self.guidance, self.guidance_2)

    @property
    def whole_grid(self) -> bool:
        """Whether every window is the whole grid, under any policy."""
        return self.windows.whole(self.sparsity)

    @property
    def windows_label(self) -> str | None:
        """Label of the windows; None for methods without windows."""
        if "windows" not in self.knobs:
            return None
        return "full" if self.whole_grid else self.windows.label

    @property
    def variant(self) -> str | None:
        """The method's parameters that are not at their defaults, as text; None if all are."""
        return variant(self.params, self.t_i)

    @property
    def label(self) -> str:
        """The knobs as a short label for tables."""
        return label(self.identity(), self.windows_label, self.variant)

    def low_identity(self) -> str:
        """Key of the LR flow, shared by all HR variants."""
        names = (*LOW_FIELDS, "brick_low", "coverage_rows")  # the last two decide its coverage
        names += () if self.input is None else ("t_i",)  # above it a given clip needs no forward
        values = {k: v for k, v in asdict(self).items() if k in names}
        unused = [k for k in LATER_LOW_FIELDS if values[k] is None]  # keys stay as they were
        return json.dumps({k: v for k, v in values.items() if k not in unused}, sort_keys=True)

    @property
    def run_id(self) -> str:
        """Ten hexadecimal digits: hash of the identity and VERSION."""
        return id_of(VERSION, self.identity())
