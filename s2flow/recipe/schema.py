"""Every knob of `run.py`, declared once: type, default, choices or range, and a line of help.

A knob is a field of the dataclass of what owns it, `knob(default, about, ...)`; `Config` is all of
them together. Derived from here: which words and numbers are refused (`limits.py`), `python run.py
--help`, docs/knobs.md (`python -m s2flow.recipe`), and the keywords of `s2flow.generate`. `resolve.py`
says what the values resolve to; `identity.py`, which of them name a run. Importing this registers the
schema with Hydra.
"""

import math
from collections.abc import Iterator
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf

MAX_STEPS = 10_000  # a flow keeps all its steps in memory


def knob(
    default: Any,
    about: str,
    choices: tuple[str, ...] = (),
    *,
    least: float = -math.inf,
    most: float = math.inf,
    above: float = -math.inf,
    example: Any = None,
    text: bool = False,
) -> Any:
    """A field of a schema.

    about: one line of help; None as a default means "the backbone's", unless about says otherwise.
    choices: the words that may be typed. least, most, above: bounds of a number, the last exclusive.
    example: what an error tells to type; None: the default. text: free text, which is taken literally.
    """
    metadata = {"about": about, "choices": choices, "least": least, "most": most, "above": above}
    metadata |= {"example": default if example is None else example, "text": text}
    if hasattr(default, "__dataclass_fields__"):
        return field(default_factory=lambda: default, metadata=metadata)
    return field(default=default, metadata=metadata)


def text(default: str | None = None) -> Any:
    """A field of a group that holds free text."""
    return field(default=default, metadata={"text": True})


@dataclass
class BackboneConf:
    """One file of conf/backbone: a model and the sizes it is meant for."""

    name: str = MISSING  # as typed: backbone=micro
    family: str = MISSING  # which adapter loads it: tiny | wan | hunyuan | hunyuan15
    source: str | None = text()  # folder or hub name of the weights; null: they ship with s2flow
    revision: str | None = text()  # branch, tag or commit on the hub
    dtype: str = "float32"  # of transformer and text encoders: float32 | bfloat16 | float16
    vae_tile: list[int] | None = None  # (side, stride) in pixels of the autoencoder's tiles
    steps: int = MISSING  # N
    shift: float = MISSING  # k of the noise grid
    guidance: float = MISSING
    boundary: float | None = None  # noise level below which a second expert runs; null: none does
    guidance_2: float | None = None  # of the second expert
    handoff_sigma: float = MISSING  # noise level of the hand-off while t_i is open
    negative_prompt: str | None = text("")  # null: its guidance is embedded and takes none
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
    file: str | None = text()  # of policy sta: what `python -m s2flow.calibrate` wrote


@dataclass
class PromptsConf:
    """One file of conf/prompts."""

    source: str = MISSING
    file: str | None = text()
    augmented: str | None = text()
    subset: str = "full"
    count: int | None = None
    subset_seed: int = 0


@dataclass
class TrackerConf:
    """One file of conf/tracker."""

    name: str = "none"
    project: str = text("s2flow")
    entity: str | None = text()
    mode: str | None = None  # null: $WANDB_MODE, else offline
    group: str | None = text()
    videos: int = 4


@dataclass
class RayConf:
    """Of executor=ray."""

    address: str | None = text()
    workers: int | None = None
    retries: int = 3


@dataclass
class FlowKnobs:
    """The flow: its length, its noise levels, its guidance, the size of what it makes."""

    steps: int | None = knob(None, "N, denoising steps", least=1, most=MAX_STEPS, example=20)
    shift: float | None = knob(None, "k of the noise grid sigma = k s / (1 + (k-1) s)")
    guidance: float | None = knob(None, "classifier-free guidance")
    guidance_2: float | None = knob(None, "of the second expert of a model that has two")
    negative_prompt: str | None = knob(None, "what guidance leads away from", text=True)
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
        "x0", "what goes to HR; noisy is Eq. 5 literally", ("x0", "latent", "noisy")
    )
    noise: str = knob(
        "fresh", "of HR; aligned: its block mean is the LR noise", ("fresh", "aligned")
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

    sparsity: float = knob(
        0.5, "share of the latent volume that is KEPT, in (0, 1]", above=0, most=1
    )
    density: str = knob(
        "volume",
        "f = sparsity (the paper's text) | f = sparsity^3 (its clock)",
        ("volume", "per_axis"),
    )
    brick_low: list[int] | None = knob(None, "LR tokens per brick (t, h, w)")
    brick_high: list[int] | None = knob(None, "HR tokens per brick; windows are whole bricks")
    coverage_rows: int = knob(128, "query rows sampled per head for Eq. 8", least=1)
    attention: str = knob(
        "auto",
        "kernel; usable here: python -m s2flow.attention",
        ("auto", "fa4", "triton", "flex", "tiled", "reference"),
    )
    rope: str = knob(
        "none",
        "positions at HR: extrapolated | in the LR range | NTK, per axis",
        ("none", "interpolate", "ntk"),
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
        ("lri", "euler", "ab2", "ab3", "lri_cv", "unipc", "heun"),
    )
    order: int = knob(2, "K of the Taylor step; 1 is Euler")
    stencil: str = knob(
        "grid", "weights for the actual nodes | Eq. 11 as printed", ("grid", "central")
    )
    lr_time: str = knob("sigma", "LR derivatives at equal sigma | at equal SNR", ("sigma", "snr"))
    upsample: str = knob("bilinear", "U of Eq. 12", ("bilinear", "nearest", "bicubic"))


@dataclass
class ModelKnobs:
    """How the model's weights are held."""

    vae_tile: list[int] | None = knob(
        None, "[side,stride] in pixels of the autoencoder's tiles; []: whole frames"
    )
    fp8: bool = knob(False, "true: transformer weights stored as float8_e4m3fn")


@dataclass
class ClipKnobs:
    """Which clips of a prompt are made."""

    prompt: str | None = knob(
        None, "one prompt, taken literally; null: the prompts group", text=True
    )
    input: str | None = knob(None, "clip.mp4: refine this clip of prompt=...", text=True)
    seed: int = knob(0, "of the noise, which depends on (prompt, seed) alone")
    seeds: int = knob(1, "clips of each prompt: seeds seed, seed+1, ...")


@dataclass
class PlaceKnobs:
    """Where and how; none of these changes a clip beyond rounding."""

    runs_dir: str = knob("runs", "folder of all runs", text=True)
    shard: str = knob("1/1", "k/n: this worker takes every n-th prompt")
    cache: str = knob(
        "cached",
        "what of recorded or failed clips is made again",
        ("cached", "retry", "force", "read-only"),
    )
    executor: str = knob("local", "local | ray: workers that keep the model loaded")
    ray: RayConf = knob(RayConf(), "of executor=ray: ray.address, ray.workers, ray.retries")
    batch: int = knob(1, "clips generated together", least=1)
    device: str = knob("auto", "auto | cpu | cuda | cuda:1")
    threads: int | None = knob(None, "CPU threads; null: all cores", least=1, most=1024, example=1)
    context_parallel: Any = knob(1, "k: one video over k processes (torchrun)")
    compile: bool = knob(False, "the transformer as one graph")
    offload: str = knob(
        "none", "parts of the model are on the GPU only while used", ("none", "model", "group")
    )
    keep_latents: bool = knob(False, "true: keep the final latent of every clip")
    lr_cache_gib: float = knob(
        10.0, "GiB of LR flows kept on disk, reused by every HR variant", least=0, most=1e6
    )
    lr_cache_dir: str | None = knob(None, "null: runs_dir/lr_cache", text=True)
    progress: str = knob(
        "auto", "live lines on a terminal | a line per clip", ("auto", "plain", "off")
    )
    reproduce: str | None = knob(
        None, "RUN or RUN/CLIP: make it again, write nothing, report the difference"
    )


@dataclass
class PlanKnobs:
    """What a run would cost, before anything is loaded."""

    plan: Any = knob(
        False, "true: print FLOPs, seconds, memory, disk; json: as JSON; load nothing"
    )
    tflops: float | None = knob(None, "rate of the transformer; null: assumed by device")
    bandwidth: float | None = knob(None, "of the device's memory, GB/s; null: assumed")
    link: float | None = knob(None, "from rank to rank, GB/s; null: assumed")
    memory: float | None = knob(None, "GiB of the GPU planned for; null: this device's")
    check_memory: bool = knob(True, "false: run although it seems not to fit the GPU")


VBENCH = ("vbench", "vbench_subprocess")
OF_A_CLIP = (AttentionKnobs, SolverKnobs, HandoffKnobs, FlowKnobs)
SECTIONS = (*OF_A_CLIP, ClipKnobs, ModelKnobs, PlaceKnobs, PlanKnobs)


@dataclass
class Config(*reversed(SECTIONS)):
    """Everything that can be typed: groups, one file of conf/ each, and the knobs of all sections."""

    backbone: BackboneConf = field(default_factory=BackboneConf)
    method: dict[str, Any] = field(default_factory=dict)  # see methods/params.py
    windows: WindowsConf = field(default_factory=WindowsConf)
    prompts: PromptsConf = field(default_factory=PromptsConf)
    scorer: dict[str, Any] = field(default_factory=dict)
    tracker: TrackerConf = field(default_factory=TrackerConf)


KNOBS = [f for section in SECTIONS for f in fields(section)]
CLIP_KNOBS = (*(f.name for section in OF_A_CLIP for f in fields(section)), "vae_tile")


def _rows(section: type) -> Iterator[tuple[str, str, Any]]:
    """(name, what it is, default as it is typed) of every knob of a section."""
    for f in fields(section):
        words, value = " | ".join(f.metadata["choices"]), f.default
        if value is None or isinstance(value, bool):
            value = "null" if value is None else str(value).lower()
        value = "..." if value is NO_DEFAULT else value  # a group of its own
        yield f.name, (f"{words}: " if words else "") + f.metadata["about"], value


def help_lines() -> str:
    """The knobs as `python run.py --help` lists them."""
    lines = []
    for section in SECTIONS:
        lines += ["", f"  {section.__doc__.splitlines()[0]}"]
        lines += [f"    {name:<16} {about}  [{value}]" for name, about, value in _rows(section)]
    return "\n".join(lines)


def page() -> str:
    """docs/knobs.md."""
    about = "Written by `python -m s2flow.recipe .`; declared in `s2flow/recipe/schema.py`."
    lines = ["# Knobs", "", about, ""]
    for section in SECTIONS:
        lines += [f"## {section.__doc__.splitlines()[0]}", ""]
        lines += ["| knob | default | what it is |", "|---|---|---|"]
        for name, about, value in _rows(section):
            about = about.replace("|", "\\|")
            lines.append(f"| `{name}` | `{value}` | {about} |")
        lines.append("")
    return "\n".join(lines)


@dataclass
class ScoredBackboneConf:
    """The backbone whose clips are scored, taken from each run."""

    name: str = MISSING


@dataclass
class ScoredPromptsConf:
    """The prompts of clips from elsewhere; `prompts=FILE` is `prompts.file=FILE`."""

    file: str | None = text()


@dataclass
class ScoreConf:
    """Everything that can be typed after `python -m s2flow.score`; conf/score.yaml explains it."""

    scorer: dict[str, Any] = field(default_factory=dict)
    runs_dir: str = text("runs")
    runs: list[str] | None = None
    shard: str = "1/1"
    retry: bool = False
    threads: int | None = None
    export: str | None = text()
    videos: str | None = text()
    prompts: ScoredPromptsConf = field(default_factory=ScoredPromptsConf)
    vbench_results: str | None = text()
    backbone: ScoredBackboneConf = field(default_factory=ScoredBackboneConf)


def _texts(schema: type, group: str = "") -> Iterator[str]:
    for f in fields(schema):
        if is_dataclass(f.type):
            yield from _texts(f.type, f"{group}{f.name}.")
        elif f.metadata.get("text"):
            yield group + f.name


TEXTS = {*_texts(Config), *_texts(ScoreConf)}  # the keys that hold free text
TEXTS |= {f"scorer.{key}" for key in ("musiq.cache_dir", "vbench_subprocess.python")}
TEXTS |= {f"scorer.{s}.{k}" for s in VBENCH for k in ("cache_dir", "full_info")}
OmegaConf.register_new_resolver("knobs", help_lines, replace=True)
ConfigStore.instance().store(name="schema", node=Config)
ConfigStore.instance().store(name="score_schema", node=ScoreConf)
