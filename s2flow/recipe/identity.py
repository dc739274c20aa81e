"""The recipe: everything that decides the pixels of a clip besides its prompt and seed.

`run_id` is a short hash of the recipe, so two commands that would give the same pixels are one
run, and a sweep re-issued computes only what is missing. Placement (device, shard, launcher,
tracker, prompt subset, scorers) is not in it; neither are knobs that the method ignores (each
method names its own in KNOBS).
"""

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from s2flow.methods.params import variant
from s2flow.store.recipes import ADDED_FIELDS, LOW_FIELDS, VERSION, id_of, label

if TYPE_CHECKING:  # the store reads recipes without torch, which takes seconds to load
    from s2flow.grid import Box
    from s2flow.policies.base import Policy


@dataclass(frozen=True)
class Recipe:
    """Resolved knobs: no defaults left open. Sizes are (height, width) in pixels."""

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
    rope: str = "none"  # positions of the HR stage
    temperature: float = 1.0  # factor on the HR stage's attention logits
    shift_high: float | None = None  # of the HR stage's noise grid; None: shift
    fp8: bool = False  # weights of the transformer stored as float8_e4m3fn
    vae_tile: tuple[int, int] | None = None  # (side, stride) in pixels of the autoencoder's tiles
    guidance_2: float | None = None  # of the second expert of a model that has two
    adain: bool = False  # the hand-off keeps the LR mean and deviation
    stages: tuple = ()  # ((height, width), steps left) of every HR stage, if there are several
    params: Any = None  # the method's own Params; None for methods without
    knobs: tuple[str, ...] = ()  # the method's own, beyond those that every method has

    def identity(self) -> dict[str, Any]:
        """What is hashed and stored: plain types, without what this method ignores.

        Different words for the same pixels become one: a window that is the whole grid is "full",
        order 1 is "euler". ADDED_FIELDS are left out at the value there, so that records keep
        their names.
        """
        always = ("backbone", "weights", "method", "steps", "shift", "frames", "high")
        always += ("guidance", "negative_prompt", "dtype", "fp8", "vae_tile", "guidance_2")
        always += ("params",)
        # through JSON, so that tuples are lists and a stored recipe equals a fresh one
        own = json.loads(json.dumps(asdict(self)))
        own["windows"].pop("calibration")  # `file` is the hash of it
        if not self.windows.file:  # the first records had no files
            own["windows"].pop("file")
        range_of_positions = {"rope_low": own["low"]}  # what `rope` scales from
        own = {k: own[k] for k in (*always, *self.knobs)}
        if "low" not in own and self.rope != "none":
            own |= range_of_positions
        for name in getattr(self.params, "ignored", tuple)():
            del own["params"][name]
        ignored = {k for k, first in ADDED_FIELDS.items() if own.get(k) == first}
        if self.vae_tile is not None and self.vae_tile[0] >= max(self.high):
            ignored |= {"vae_tile"}  # one tile is the whole frame
        if "windows" in own:
            ignored |= self.windows.ignored(self.sparsity)
            if self.whole_grid:
                own["windows"] = {"name": "full"}
        if own.get("solver") == "lri" and self.order == 1:
            own["solver"] = "euler"
        if own.get("solver") != "lri":
            ignored |= {"order", "stencil", "lr_time"}
        if own.get("solver") not in ("lri", "lri_cv"):
            ignored |= {"upsample"}
        if self.lr_time == "snr":
            ignored |= {"stencil"}
        if self.handoff == "noisy":
            ignored |= {"noise", "adain"}
        return {k: v for k, v in own.items() if k not in ignored}

    @property
    def guidances(self) -> tuple[float, ...]:
        """One guidance per expert of the model."""
        return (self.guidance,) if self.guidance_2 is None else (self.guidance, self.guidance_2)

    @property
    def whole_grid(self) -> bool:
        """Whether every window is the whole grid, whatever it is called."""
        return self.windows.whole(self.sparsity)

    @property
    def windows_label(self) -> str | None:
        """The windows in a word; None for methods without."""
        if "windows" not in self.knobs:
            return None
        return "full" if self.whole_grid else self.windows.label

    @property
    def variant(self) -> str | None:
        """The method's parameters that are not at their defaults, in words; None if all are."""
        return variant(self.params, self.t_i)

    @property
    def label(self) -> str:
        """The knobs in a few words, for tables."""
        return label(self.identity(), self.windows_label, self.variant)

    def low_identity(self) -> str:
        """Key of the LR flow: shared by every HR variant."""
        names = (*LOW_FIELDS, "brick_low", "coverage_rows")  # the last two of its coverage
        return json.dumps({k: v for k, v in asdict(self).items() if k in names}, sort_keys=True)

    @property
    def run_id(self) -> str:
        """Ten hexadecimal digits of the identity and VERSION."""
        return id_of(VERSION, self.identity())
