"""The recipe: everything that decides the pixels of a clip besides its prompt and seed.

`run_id` is a short hash of the recipe: two commands that give the same pixels are one run, and a
repeated sweep computes only what is missing. The recipe excludes placement (device, shard, launcher,
tracker, prompt subset, scorers) and knobs that the method ignores (KNOBS of each method lists those
that it reads).
"""

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from s2flow.methods.params import variant
from s2flow.store.recipes import (
    ADDED_FIELDS,
    LATER_LOW_FIELDS,
    LOW_FIELDS,
    VERSION,
    id_of,
    label,
)

if TYPE_CHECKING:  # the store reads recipes without torch, which takes seconds to load
    from s2flow.grid import Box
    from s2flow.policies.base import Policy


@dataclass(frozen=True)
class Recipe:
    """Resolved knobs, without open defaults. Sizes are (height, width) in pixels."""

    backbone: str
    weights: str
    method: str
    steps: int
    shift: float
    frames: int
    low: tuple[int, int]
    high: tuple[int, int]
    guidance: float
    negative_prompt: str
    t_i: int
    handoff: str
    noise: str
    sparsity: float
    density: str
    windows: "Policy"
    brick_low: "Box"
    brick_high: "Box"
    coverage_rows: int
    attention: str
    solver: str
    order: int
    stencil: str
    lr_time: str
    upsample: str
    dtype: str = "float32"  # of the model; the flow's state is always float32
    rope: str = "none"  # position scaling of the HR stage
    temperature: float = 1.0  # factor on the HR stage's attention logits
    shift_high: float | None = None  # of the HR noise grid; None: as shift
    fp8: bool = False  # weights of the transformer stored as float8_e4m3fn
    vae_tile: tuple[int, int] | None = None  # (side, stride) in pixels of the autoencoder's tiles
    guidance_2: float | None = None  # of the second expert of a model that has two
    adain: bool = False  # the hand-off keeps the LR mean and deviation
    stages: tuple = ()  # ((height, width), steps left) of every HR stage, if there are several
    pipeline: Any = None  # state of a loaded pipeline that alters the clip (backbones.inspect)
    scheduler: Any = (
        None  # its class and options, where the pipeline's own scheduler takes the steps
    )
    input: str | None = None  # hash of the clip that takes the place of the LR flow's
    params: Any = None  # the method's own Params; None for methods without
    knobs: tuple[str, ...] = ()  # read by the method, beyond those that all methods read

    def identity(self) -> dict[str, Any]:
        """The dict that is hashed and stored: plain types, without what this method ignores.

        Settings with the same pixels are made equal: a window that is the whole grid is "full", order
        1 is "euler". ADDED_FIELDS are left out at their values there, so that run ids do not change.
        """
        always = ("backbone", "weights", "method", "steps", "shift", "frames", "high")
        always += ("guidance", "negative_prompt", "dtype", "fp8", "vae_tile", "guidance_2")
        always += ("params", "pipeline")
        # through JSON, so that tuples are lists and a stored recipe equals a fresh one
        values = json.loads(json.dumps(asdict(self)))
        values["windows"].pop("calibration")  # `file` is its hash
        if not self.windows.file:  # absent from the first records
            values["windows"].pop("file")
        rope_range = {"rope_low": values["low"]}  # the size that `rope` scales from
        always += ("input",) if "low" in self.knobs else ()
        values = {k: values[k] for k in (*always, *self.knobs)}
        if "low" not in values and self.rope != "none":
            values |= rope_range
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
