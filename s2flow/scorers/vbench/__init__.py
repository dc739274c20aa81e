"""VBench's own code, applied to one clip at a time; each of six dimensions is a scorer.

    dimension                what VBench 0.1.5 does                                        weights
    temporal_flickering      1 - mean |x_{k+1} - x_k| / 255                                none
    motion_smoothness        every second frame is interpolated and compared               AMT-S
    background_consistency   cosines of CLIP features to the first and the last frame      CLIP ViT-B/32
    overall_consistency      cosine between video and prompt, of 8 frames                  ViCLIP
    aesthetic_quality        LAION's head on CLIP features, a frame at a time              CLIP ViT-L/14
    imaging_quality          MUSIQ trained on SPAQ, a frame at a time, divided by 100      MUSIQ

Values equal VBench's per-video scores, on 0-1 (overall consistency is a cosine, about 0.2 for a
fitting clip). VBench weights background consistency by a clip's number of frames minus one when it
averages; we do not, which changes nothing for clips of equal length. The official total needs 16
dimensions and is never computed from these.

    protocol=all_on_all   every dimension on every clip, most likely the protocol of the paper's tables
    protocol=standard     a dimension only on the prompts that VBench_full_info.json lists for it,
                          compared literally (two differ by case only); None for others

Where it fails: all but flickering and motion are evaluated at 224 or 512 pixels, so finer detail does
not count; flickering and smoothness are best for a frozen clip. Whole clips are held in memory as
float32: at 117 frames of 1536x2560 about 7 GB of RAM, and motion smoothness, pinned to full resolution,
grows with the square of the pixels.
"""

from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from s2flow.errors import UserError
from s2flow.process.provenance import provenance
from s2flow.prompts import load_prompts
from s2flow.scorers import Clip, Scorer, Suite, device_of
from s2flow.scorers.vbench import weights, worker
from s2flow.video import Undecodable, frame_count

DIMENSIONS = tuple(worker.LOADERS)
PROTOCOLS = ("all_on_all", "standard")
VBENCH = "0.1.5"
ADAPTER_VERSION = 1  # raised when our input to VBench, or our use of its output, changes
INSTALL = "python -m pip install --no-deps -r requirements/vbench.txt"
CHECK = "python -m s2flow.scorers.vbench check"

MIN_FRAMES = {"temporal_flickering": 2, "background_consistency": 2, "motion_smoothness": 3}
BY_OPENCV = "all frames at full size, 8 bits, decoded by OpenCV"
CLIP_FRAMES = (
    "shorter side to 224, bicubic, not antialiased; centre crop; CLIP's mean and deviation"
)
PREPROCESSING = {
    "temporal_flickering": BY_OPENCV,
    "motion_smoothness": f"{BY_OPENCV}; padded to 16; every second one in, never rescaled by memory",
    "background_consistency": f"all frames, decoded by decord; {CLIP_FRAMES}",
    "overall_consistency": f"8 frames, the middles of equal spans, decoded by decord; {CLIP_FRAMES}",
    "aesthetic_quality": f"all frames, decoded by decord; {CLIP_FRAMES}",
    "imaging_quality": "all frames, decoded by decord; longer side to at most 512, bilinear without "
    "antialiasing",
}


class Dimension(Scorer):
    """One dimension as a scorer: clip -> {its name: score on 0-1, or None}.

    None where the protocol excludes the clip, and for clips that are too short. Raises Undecodable for
    files that VBench would drop or score in part.
    """

    def __init__(self, vbench: "VBench", name: str) -> None:
        files = weights.look([name], vbench.cache, vbench.own)
        self.vbench, self.name, self.names = vbench, name, (name,)
        self.version = f"vbench-{VBENCH}{vbench.SUFFIX}/{ADAPTER_VERSION}"
        self.weights = {f.weight.file: f.sha256 for f in files if f.sha256}
        self.needs = [f.weight.file for f in files if f.state == "missing"]
        self.preprocessing, self.protocol = PREPROCESSING[name], vbench.protocol
        self.arguments, self.versions = vbench.decisive, vbench.versions

    @property
    def device(self) -> str:
        """The processor's or card's name."""
        return provenance(self.vbench.device)["device"]

    def score(self, clip: Clip) -> dict[str, float | None]:
        """See the class."""
        if not self.vbench.applies(self.name, clip):
            return {self.name: None}
        if clip.path.suffix != ".mp4":
            raise UserError(
                f"VBench reads files that end in .mp4, not {clip.path}; rename the clip"
            )
        # VBench silently drops broken files from a mean, or scores the frames before the break
        if frame_count(clip.path) < MIN_FRAMES.get(self.name, 1):
            return {self.name: None}
        score = self.vbench.evaluate(self.name, str(clip.path.absolute()), clip.prompt)
        if score is None:
            raise Undecodable(f"{clip.path} cannot be decoded by VBench, though others can")
        return {self.name: score}


class VBench(Suite):
    """VBench in this process: one scorer per dimension, loaded when it is first used.

    dimensions: of DIMENSIONS. on_missing: for a dimension without weights "error", or "skip": its
    scores are null, and so is every mean that needs it. allow_download: fetch them. cache_dir: of the
    weights; null: VBENCH_CACHE_DIR or ~/.cache/vbench. device: auto, cpu, cuda or cuda:n. full_info:
    VBench's list of prompts, for protocol=standard; null: the installed one. sha256: {key of
    weights.TABLE: hash} of files that you trust. Raises UserError for other values.
    """

    KEY, SUFFIX = "vbench", ""  # in conf/scorer; in the version

    def __init__(
        self,
        dimensions: Iterable[str] = DIMENSIONS,
        protocol: str = "all_on_all",
        on_missing: str = "error",
        allow_download: bool = False,
        cache_dir: str | None = None,
        device: str = "auto",
        full_info: str | None = None,
        sha256: Mapping[str, str | None] | None = None,
    ) -> None:
        self.dimensions = known_dimensions(dimensions)
        choices = (
            ("protocol", protocol, PROTOCOLS),
            ("on_missing", on_missing, ("error", "skip")),
        )
        for key, value, known in choices:
            if value not in known:
                raise UserError(f"{key}={value} is unknown; type one of {', '.join(known)}")
        self.protocol, self.on_missing, self.allow_download = protocol, on_missing, allow_download
        self.cache, self.full_info = weights.cache_folder(cache_dir), full_info
        self.own = {k: v for k, v in (sha256 or {}).items() if v is not None}
        weights.check_own(self.own)
        self.device = device_of(f"scorer.{self.KEY}.device", device)
        self._loaded: dict[str, Any] = {}

    def prepare(self) -> None:
        """Check package and weights without loading. Raises one UserError for all that is missing."""
        self.check_package()
        for f in weights.look(self.dimensions, self.cache, self.own):
            if f.state == "missing" and self.allow_download:
                weights.fetch(f.weight, self.cache, self.own.get(f.weight.key, ""))
        files = weights.look(self.dimensions, self.cache, self.own)
        wrong = [f for f in files if f.state == "wrong hash"]
        if wrong:
            raise UserError(
                "these files are not the published ones: "
                + "; ".join(f"{f.path} has sha256 {f.sha256}" for f in wrong)
                + "; remove them, or trust them with "
                + " ".join(f"scorer.{self.KEY}.sha256.{f.weight.key}={f.sha256}" for f in wrong)
            )
        missing = [f for f in files if f.state == "missing"]
        if missing and self.on_missing == "error":
            raise UserError(
                f"{len(missing)} files of weights are missing: "
                + "; ".join(f"{f.path} ({f.weight.size}) from {f.weight.url}" for f in missing)
                + f"; put them there (`{CHECK}` lists them with their licences), type "
                f"scorer.{self.KEY}.allow_download=true or scorer.{self.KEY}.on_missing=skip"
            )
        if self.protocol == "standard":
            self.entries  # noqa: B018

    def parts(self) -> dict[str, Dimension]:
        """{"vbench.<dimension>": scorer}, each scored and resumed on its own."""
        return {f"{self.KEY}.{name}": Dimension(self, name) for name in self.dimensions}

    def evaluate(self, dimension: str, path: str, prompt: str) -> float | None:
        """VBench's score of one file, on 0-1; None where VBench drops it."""
        if dimension not in self._loaded:
            try:
                self._loaded[dimension] = worker.load(dimension, **self.setup([dimension]))
            except worker.NotBareWeights as error:
                raise UserError(str(error)) from None
        return self._loaded[dimension](path, prompt)

    def setup(self, dimensions: Iterable[str]) -> dict[str, Any]:
        """The arguments of `worker.load` beside the dimension."""
        files = weights.look(dimensions, self.cache, self.own)
        return {
            "files": {f.weight.key: str(f.path) for f in files},
            "device": self.device,
            "cache": str(self.cache),
            "trusted": [str(f.path.resolve()) for f in files if f.trusted],
            "threads": torch.get_num_threads(),
        }

    def check_package(self) -> None:
        """Raises UserError if VBench is not installed here, or another version of it."""
        problem = package_problem(worker.versions().get("vbench"))
        if problem:
            raise UserError(f"{problem}; type {INSTALL}")

    @cached_property
    def versions(self) -> dict[str, str]:
        """{package: version} of the environment that scores."""
        return worker.versions()

    @cached_property
    def decisive(self) -> dict[str, Any]:
        """The arguments that decide a score."""
        own = {"protocol": self.protocol}
        if self.protocol == "standard":
            own["full_info"] = weights.sha256_of(self.info_path())
        return own

    def info_path(self) -> Path:
        """VBench's list of prompts. Raises UserError if there is none."""
        path = self.full_info or worker.full_info()
        if path is None or not Path(path).expanduser().is_file():
            raise UserError(
                f"protocol=standard needs VBench_full_info.json, and full_info={path} is no such file; "
                f"type scorer.{self.KEY}.full_info=path, or {INSTALL}"
            )
        return Path(path).expanduser()

    @cached_property
    def entries(self) -> list[tuple[str, tuple[str, ...]]]:
        """(text, dimensions) of every prompt of VBench."""
        whole = {"subset": "full", "seed": 0, "shard": "1/1", "count": None}
        prompts = load_prompts("vbench", file=str(self.info_path()), **whole)
        return [(p.text, p.dimensions) for p in prompts]

    def applies(self, dimension: str, clip: Clip) -> bool:
        """Whether the protocol scores a clip. Raises UserError for prompts that are not VBench's."""
        if self.protocol == "all_on_all":
            return True
        # A clip counts for every entry of its text: two of VBench's texts occur twice.
        listed = [dimensions for text, dimensions in self.entries if text == clip.prompt]
        if not listed:
            raise UserError(
                f"protocol=standard scores prompts of VBench, and {clip.prompt!r} is none of them; "
                f"type scorer.{self.KEY}.protocol=all_on_all"
            )
        return any(dimension in dimensions for dimensions in listed)


def known_dimensions(names: Iterable[str]) -> tuple[str, ...]:
    """The dimensions without duplicates. Raises UserError for an unknown one."""
    names = tuple(dict.fromkeys([names] if isinstance(names, str) else names))
    unknown = [n for n in names if n not in DIMENSIONS]
    if unknown or not names:
        what = f"dimension {unknown[0]} is not among" if unknown else "no dimension is named of"
        raise UserError(f"{what} the six that are scored; type some of {', '.join(DIMENSIONS)}")
    return names


def package_problem(version: str | None) -> str | None:
    """What is wrong with an installed version of VBench."""
    if version is None:
        return "the vbench package is not installed"
    return None if version == VBENCH else f"vbench {version} is installed, not {VBENCH}"
