"""Every knob of `run.py`, declared once: type, default, choices or range, and a line of help.

A knob is a field of the dataclass of what owns it, `knob(default, about, ...)`; `Config` is all of
them together. What else says something about knobs is derived from here: which words and numbers
are refused (`limits.py`), `python run.py --help`, docs/knobs.md (`python -m s2flow.recipe`), and the
keywords of `s2flow.generate`. `resolve.py` says what the values resolve to; `identity.py`, which of
them name a run. Importing this registers the schema with Hydra.
"""

import math
from collections.abc import Iterator
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import Field, dataclass, field, fields
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf


def knob(
    default: Any,
    about: str,
    *,
    choices: tuple[str, ...] = (),
    least: float = -math.inf,
    most: float = math.inf,
    above: float = -math.inf,
    example: Any = None,
    clip: bool = True,
) -> Any:
    """A field of a schema.

    about: one line of help; None as a default means "the backbone's", unless about says otherwise.
    choices: the words that may be typed. least, most, above: bounds of a number, the last exclusive.
    example: what an error tells to type; None: the default. clip: whether the knob describes the clip,
    so that `s2flow.generate` takes it; else it says where and how clips are made.
    """
    bounds = {"least": least, "most": most, "above": above}
    metadata = {"about": about, "choices": choices, **bounds, "clip": clip}
    metadata["example"] = default if example is None else example
    if isinstance(default, (list, dict)) or hasattr(default, "__dataclass_fields__"):
        return field(default_factory=lambda: default, metadata=metadata)
    return field(default=default, metadata=metadata)


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
class FlowKnobs:
    """The flow: its length, its noise levels, its guidance, the size of what it makes."""

    steps: int | None = knob(None, "N, denoising steps", example=20)
    shift: float | None = knob(None, "k of the noise grid sigma = k s / (1 + (k-1) s)")
    guidance: float | None = knob(None, "classifier-free guidance")
    guidance_2: float | None = knob(None, "of the second expert of a model that has two")
    negative_prompt: str | None = knob(None, "what guidance leads away from")
    low: list[int] | None = knob(None, "[height,width] of the LR flow")
    high: list[int] | None = knob(None, "[height,width] of the video")
    frames: int | None = knob(None, "length of the clip")


@dataclass
class HandoffKnobs:
    """The hand-off from LR to HR (Eq. 5)."""

    t_i: int | None = knob(
        None, "HR steps that remain at the hand-off, 1..steps; null: nearest to handoff_sigma"
    )
    handoff: str = knob(
        "x0", "what goes to HR; noisy is Eq. 5 literally", choices=("x0", "latent", "noisy")
    )
    noise: str = knob(
        "fresh", "of HR; aligned: its block mean is the LR noise", choices=("fresh", "aligned")
    )
    adain: bool = knob(False, "true: keep mean and deviation of the LR latent, per channel")
    scales: list[float] | None = knob(
        None, "[1,1.5,2]: several HR sizes, in multiples of low; null: straight to high"
    )
    switches: list[float] | None = knob(
        None, "noise level at which each of them starts, [0.8,0.5]; null: t_i dealt evenly"
    )
    shift_high: float | None = knob(
        None, "k of the HR stage's noise grid; null: shift", above=0, example=5
    )


@dataclass
class AttentionKnobs:
    """HR attention: its windows (Eqs. 7-9), positions and temperature."""

    sparsity: float = knob(0.5, "share of the latent volume that is KEPT, in (0, 1]")
    density: str = knob(
        "volume",
        "f = sparsity (the paper's text) | f = sparsity^3 (its clock)",
        choices=("volume", "per_axis"),
    )
    brick_low: list[int] | None = knob(None, "LR tokens per brick (t, h, w)")
    brick_high: list[int] | None = knob(None, "HR tokens per brick; windows are whole bricks")
    coverage_rows: int = knob(128, "query rows sampled per head for Eq. 8", least=1)
    attention: str = knob(
        "auto",
        "kernel; usable here: python -m s2flow.attention",
        choices=("auto", "fa4", "triton", "flex", "tiled", "reference"),
    )
    rope: str = knob(
        "none",
        "positions at HR: extrapolated | in the LR range | NTK, per axis",
        choices=("none", "interpolate", "ntk"),
    )
    temperature: Any = knob(
        None, "factor on HR logits; auto: sqrt(ln L_hr / ln L_lr); null: none", example="auto"
    )


@dataclass
class SolverKnobs:
    """The HR solver (Eqs. 10-12). Solvers that read the HR flow's own history are as free as lri."""

    solver: str = knob(
        "lri",
        "lri is the paper's; order belongs to it",
        choices=("lri", "euler", "ab2", "ab3", "lri_cv", "unipc", "heun"),
    )
    order: int = knob(2, "K of the Taylor step; 1 is Euler")
    stencil: str = knob(
        "grid", "weights for the actual nodes | Eq. 11 as printed", choices=("grid", "central")
    )
    lr_time: str = knob(
        "sigma", "LR derivatives at equal sigma | at equal SNR", choices=("sigma", "snr")
    )
    upsample: str = knob("bilinear", "U of Eq. 12", choices=("bilinear", "nearest", "bicubic"))


@dataclass
class ModelKnobs:
    """How the model's weights are held."""

    vae_tile: list[int] | None = knob(
        None, "[side,stride] in pixels of the autoencoder's tiles; []: whole frames"
    )
    fp8: bool = knob(False, "true: transformer weights stored as float8_e4m3fn", clip=False)


@dataclass
class ClipKnobs:
    """Which clips of a prompt are made."""

    prompt: str | None = knob(
        None, "one prompt, taken literally; null: the prompts group", clip=False
    )
    input: str | None = knob(None, "clip.mp4: refine this clip of prompt=...", clip=False)
    seed: int = knob(0, "of the noise, which depends on (prompt, seed) alone", clip=False)
    seeds: int = knob(1, "clips of each prompt: seeds seed, seed+1, ...", clip=False)


@dataclass
class PlaceKnobs:
    """Where and how; none of these changes a clip beyond rounding."""

    runs_dir: str = knob("runs", "folder of all runs", clip=False)
    shard: str = knob("1/1", "k/n: this worker takes every n-th prompt", clip=False)
    cache: str = knob(
        "cached",
        "what of recorded or failed clips is made again",
        choices=("cached", "retry", "force", "read-only"),
        clip=False,
    )
    executor: str = knob("local", "local | ray: workers that keep the model loaded", clip=False)
    ray: RayConf = knob(
        RayConf(), "of executor=ray: ray.address, ray.workers, ray.retries", clip=False
    )
    batch: int = knob(1, "clips generated together", least=1, clip=False)
    device: str = knob("auto", "auto | cpu | cuda | cuda:1", clip=False)
    threads: int | None = knob(
        None, "CPU threads; null: all cores", least=1, most=1024, example=1, clip=False
    )
    context_parallel: Any = knob(1, "k: one video over k processes (torchrun)", clip=False)
    compile: bool = knob(False, "the transformer as one graph", clip=False)
    offload: str = knob(
        "none",
        "parts of the model are on the GPU only while used",
        choices=("none", "model", "group"),
        clip=False,
    )
    keep_latents: bool = knob(False, "true: keep the final latent of every clip", clip=False)
    lr_cache_gib: float = knob(
        10.0,
        "GiB of LR flows kept on disk, reused by every HR variant",
        least=0,
        most=1e6,
        clip=False,
    )
    lr_cache_dir: str | None = knob(None, "null: runs_dir/lr_cache", clip=False)
    progress: str = knob(
        "auto",
        "live lines on a terminal | a line per clip",
        choices=("auto", "plain", "off"),
        clip=False,
    )
    reproduce: str | None = knob(
        None, "RUN or RUN/CLIP: make it again, write nothing, report the difference", clip=False
    )


@dataclass
class PlanKnobs:
    """What a run would cost, before anything is loaded."""

    plan: bool = knob(False, "true: print FLOPs, seconds, memory, disk; load nothing", clip=False)
    tflops: float | None = knob(
        None, "rate of the transformer; null: assumed by device", clip=False
    )
    bandwidth: float | None = knob(None, "of the device's memory, GB/s; null: assumed", clip=False)
    link: float | None = knob(None, "from rank to rank, GB/s; null: assumed", clip=False)
    memory: float | None = knob(
        None, "GiB of the GPU planned for; null: this device's", clip=False
    )
    check_memory: bool = knob(True, "false: run although it seems not to fit the GPU", clip=False)


SECTIONS = (
    AttentionKnobs,
    SolverKnobs,
    HandoffKnobs,
    FlowKnobs,
    ClipKnobs,
    ModelKnobs,
    PlaceKnobs,
)
SECTIONS += (PlanKnobs,)


@dataclass
class Config(*reversed(SECTIONS)):
    """Everything that can be typed: groups, one file of conf/ each, and the knobs of all sections."""

    backbone: BackboneConf = field(default_factory=BackboneConf)
    method: dict[str, Any] = field(default_factory=dict)  # see methods/params.py
    windows: WindowsConf = field(default_factory=WindowsConf)
    prompts: PromptsConf = field(default_factory=PromptsConf)
    scorer: dict[str, Any] = field(default_factory=dict)
    tracker: TrackerConf = field(default_factory=TrackerConf)


def declared() -> Iterator[tuple[type, Field]]:
    """Every knob with the section that it is declared in."""
    for section in SECTIONS:
        for f in fields(section):
            yield section, f


CHOICES = {f.name: f.metadata["choices"] for _, f in declared() if f.metadata["choices"]}


def default_of(f: Field) -> Any:
    """A knob's default as it is typed."""
    if f.default is NO_DEFAULT:  # a group of its own
        return "..."
    value = f.default
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else value


def help_lines() -> str:
    """The knobs as `python run.py --help` lists them."""
    lines = []
    for section in SECTIONS:
        lines += ["", f"  {section.__doc__.splitlines()[0]}"]
        for f in fields(section):
            words = " | ".join(f.metadata["choices"])
            about = (f"{words}: " if words else "") + f.metadata["about"]
            lines.append(f"    {f.name:<16} {about}  [{default_of(f)}]")
    return "\n".join(lines)


def page() -> str:
    """docs/knobs.md."""
    about = "Written by `python -m s2flow.recipe`; declared in `s2flow/recipe/schema.py`."
    lines = ["# Knobs", "", about, ""]
    for section in SECTIONS:
        lines += [f"## {section.__doc__.splitlines()[0]}", ""]
        lines += ["| knob | default | what it is |", "|---|---|---|"]
        for f in fields(section):
            words = " \\| ".join(f.metadata["choices"])
            about = (f"{words}: " if words else "") + f.metadata["about"].replace("|", "\\|")
            lines.append(f"| `{f.name}` | `{default_of(f)}` | {about} |")
        lines.append("")
    return "\n".join(lines)


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


OmegaConf.register_new_resolver("knobs", help_lines, replace=True)
ConfigStore.instance().store(name="schema", node=Config)
ConfigStore.instance().store(name="score_schema", node=ScoreConf)
