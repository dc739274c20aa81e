"""The schema behind conf/: everything that can be typed, and of which kind.

conf/config.yaml and conf/score.yaml explain each key beside its default; `resolve.py` says what the
values resolve to and refuses those that cannot work. Importing this registers the schema with Hydra.
"""

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING


@dataclass
class BackboneConf:
    """One file of conf/backbone: a model and the sizes it is meant for."""

    name: str = MISSING  # as typed: backbone=micro
    family: str = MISSING  # which adapter loads it: tiny | wan | hunyuan | hunyuan15
    source: str | None = None  # folder or hub name of the weights; null: they ship with s2flow
    revision: str | None = None  # branch, tag or commit on the hub
    dtype: str = "float32"  # of transformer and text encoders: float32 | bfloat16 | float16
    vae_tile: list[int] | None = None  # (side, stride) in pixels of the autoencoder's tiles
    steps: int = MISSING  # N
    shift: float = MISSING  # k of the noise grid
    guidance: float = MISSING
    boundary: float | None = None  # noise level below which a second expert runs; null: none does
    guidance_2: float | None = None  # of the second expert
    handoff_sigma: float = MISSING  # noise level of the hand-off while t_i is open
    negative_prompt: str | None = ""  # null: its guidance is embedded and takes none
    low: list[int] = MISSING  # (height, width) it was trained at
    high: list[int] = MISSING
    frames: int = MISSING
    fps: int = MISSING
    multiple: int = MISSING  # sides must be multiples of this (VAE stride x patch)
    frame_step: int = MISSING  # frames must be a multiple of this, plus 1
    max_frames: int = MISSING  # longest clip its positions can address
    max_side: int = MISSING  # longest side its positions can address
    brick_low: list[int] = MISSING  # tokens per brick (t, h, w)
    brick_high: list[int] = MISSING


@dataclass
class WindowsConf:
    """One file of conf/windows: how each head's window is chosen."""

    policy: str = (
        MISSING  # adaptive | fixed | coverage | full | oracle | svg | moba | sta | inward
    )
    exponents: list[Any] = field(default_factory=list)  # sides f^a, f^b, f^c; a+b+c = 1
    target: float = 0.95  # of policy coverage
    cap: float = 1.0  # of policy coverage: no window larger than this share of the volume
    dense_steps: int = 0  # so many first steps of every HR size attend everything
    dense_layers: list[int] = field(default_factory=list)  # these layers attend everything
    file: str | None = None  # of policy sta: what `python -m s2flow.calibrate` wrote


@dataclass
class PromptsConf:
    """One file of conf/prompts."""

    source: str = MISSING
    file: str | None = None
    augmented: str | None = None
    subset: str = "full"
    count: int | None = None
    subset_seed: int = 0


@dataclass
class TrackerConf:
    """One file of conf/tracker."""

    name: str = "none"
    project: str = "s2flow"
    entity: str | None = None
    mode: str = "offline"
    group: str | None = None
    videos: int = 4


@dataclass
class RayConf:
    """Of executor=ray."""

    address: str | None = None
    workers: int | None = None
    retries: int = 3


@dataclass
class Config:
    """Everything that can be typed; conf/config.yaml explains each key beside its default."""

    backbone: BackboneConf = field(default_factory=BackboneConf)
    method: dict[str, Any] = field(default_factory=dict)  # typed by params.py and the method
    windows: WindowsConf = field(default_factory=WindowsConf)
    prompts: PromptsConf = field(default_factory=PromptsConf)
    scorer: dict[str, Any] = field(default_factory=dict)
    tracker: TrackerConf = field(default_factory=TrackerConf)

    sparsity: float = 0.5
    density: str = "volume"
    t_i: int | None = None
    order: int = 2
    solver: str = "lri"
    steps: int | None = None
    seed: int = 0
    seeds: int = 1
    prompt: str | None = None
    low: list[int] | None = None
    high: list[int] | None = None
    frames: int | None = None
    guidance: float | None = None
    guidance_2: float | None = None
    negative_prompt: str | None = None
    shift: float | None = None
    handoff: str = "x0"
    noise: str = "fresh"
    adain: bool = False
    scales: list[float] | None = None
    switches: list[float] | None = None
    rope: str = "none"
    temperature: Any = None
    shift_high: float | None = None
    stencil: str = "grid"
    lr_time: str = "sigma"
    upsample: str = "bilinear"
    brick_low: list[int] | None = None
    brick_high: list[int] | None = None
    coverage_rows: int = 128
    attention: str = "auto"
    fp8: bool = False
    vae_tile: list[int] | None = None

    runs_dir: str = "runs"
    shard: str = "1/1"
    cache: str = "cached"
    executor: str = "local"
    ray: RayConf = field(default_factory=RayConf)
    batch: int = 1
    device: str = "auto"
    threads: int | None = None
    context_parallel: Any = 1
    compile: bool = False
    offload: str = "none"
    keep_latents: bool = False
    progress: str = "auto"
    reproduce: str | None = None
    plan: bool = False
    tflops: float | None = None
    bandwidth: float | None = None
    link: float | None = None
    memory: float | None = None
    check_memory: bool = True
    lr_cache_gib: float = 10.0
    lr_cache_dir: str | None = None


@dataclass
class ScoredBackboneConf:
    """The backbone whose clips are scored, taken from each run."""

    name: str = MISSING


@dataclass
class ScoreConf:
    """Everything that can be typed after `python -m s2flow.score`; conf/score.yaml explains it."""

    scorer: dict[str, Any] = field(default_factory=dict)
    runs_dir: str = "runs"
    runs: list[str] | None = None
    shard: str = "1/1"
    retry: bool = False
    threads: int | None = None
    export: str | None = None
    backbone: ScoredBackboneConf = field(default_factory=ScoredBackboneConf)


ConfigStore.instance().store(name="schema", node=Config)
ConfigStore.instance().store(name="score_schema", node=ScoreConf)
