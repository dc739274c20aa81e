"""Scores that VBench's own commands wrote, `*_eval_results.json`, read back beside a run's records.

    {dimension: [mean, [{"video_path": ..., "video_results": ...}, ...]], ...}

A video is a clip of the run if its name is VBench's (`store.foreign.vbench_names`), the clip's key or
that of a foreign clip's file and, where the file still lies at `video_path`, if its content is the
clip's. Each of the six dimensions becomes a verdict of `vbench.<dimension>`, the scorer that computes
it here, on 0-1: imaging quality is 0-100 per video in VBench's file. The metric is not ours, since the
file does not say with which weights it was computed; name and hash of the file are in the verdict
(`depends`), and the values of a later file replace those of an earlier one.
"""

import json
import math
from pathlib import Path
from statistics import fmean
from typing import Any

from s2flow.errors import UserError, note
from s2flow.scorers import Clip, Scorer, Suite
from s2flow.scorers.vbench import DIMENSIONS
from s2flow.store import read_run, sha256_of
from s2flow.store.foreign import some, vbench_names

TOLERANCE = 0.01  # between the mean that a file states and that of its videos


class Reported(Scorer):
    """One dimension of a results file."""

    version, arguments, device = "eval_results/1", {}, "not in the results file"
    preprocessing = protocol = "VBench's own command"

    def __init__(self, name: str, values: dict[str, float], source: dict[str, str]) -> None:
        self.names, self.values = (name,), values
        self.depends = lambda _: source
        self.covers = lambda record: Path(record["video"]).stem in values

    def score(self, clip: Clip) -> dict[str, float | None]:
        """The value of the clip, by its key."""
        return {self.names[0]: self.values[clip.path.stem]}


class Results(Suite):
    """A results file for the run in `folder`, a scorer per dimension. Raises UserError.

    unknown: the videos of the file that are no clips of the run.
    """

    def __init__(self, file: str, folder: Path) -> None:
        results, records = _read(Path(file)), read_run(folder)
        source = {"file": Path(file).name, "sha256": sha256_of(Path(file))}
        names = {Path(r["file"]).stem: r for r in records if "file" in r}
        names |= {Path(r["video"]).stem: r for r in records}
        named = vbench_names(records)
        names |= {named[Path(r["video"]).stem]: r for r in records}
        self.unknown: list[str] = []
        videos = dict.fromkeys(video for values in results.values() for video in values)
        found = {video: self._clip_of(video, names) for video in videos}
        self._parts = {}
        for name, values in results.items():
            known = {found[video]: value for video, value in values.items() if found[video]}
            if len(known) < sum(found[video] is not None for video in values):
                raise UserError(f"vbench_results={file}: {name} names one clip of the run twice")
            self._parts[f"vbench.{name}"] = Reported(name, known, source)

    def prepare(self) -> None:
        """Nothing is needed."""

    def parts(self) -> dict[str, Scorer]:
        """{"vbench.<dimension>": scorer}."""
        return self._parts

    def _clip_of(self, video: str, names: dict[str, Any]) -> str | None:
        record, path = names.get(Path(video).stem), Path(video)
        if record is None or (path.is_file() and sha256_of(path) != record["sha256"]):
            self.unknown.append(path.name)
            return None
        return Path(record["video"]).stem


def _read(path: Path) -> dict[str, dict[str, float]]:
    """{dimension: {video_path: value on 0-1}}. Raises UserError."""
    try:
        results = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"vbench_results={path}: {error.strerror}; type a results file") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"vbench_results={path} is no JSON: {error}") from None
    known = [name for name in DIMENSIONS if isinstance(results, dict) and name in results]
    if not known:
        raise UserError(
            f"vbench_results={path} holds none of {', '.join(DIMENSIONS)}; type the name of one of "
            "VBench's *_eval_results.json"
        )
    if others := [name for name in results if name not in DIMENSIONS]:
        note(f"{path}: {some(others)} left out: none of the six dimensions of the paper")
    try:
        return {name: _values(name, *results[name]) for name in known}
    except (LookupError, TypeError, ValueError) as error:
        raise UserError(
            f"vbench_results={path} is not as VBench writes it, {{dimension: [mean, "
            f'[{{"video_path": ..., "video_results": number}}]]}}: {type(error).__name__}: {error}'
        ) from None


def _values(name: str, mean: float, videos: list[dict[str, Any]]) -> dict[str, float]:
    scale = 100 if name == "imaging_quality" else 1
    values: dict[str, float] = {}
    for video in videos:
        path, value = video["video_path"], video["video_results"]
        if not isinstance(path, str) or type(value) not in (int, float):
            raise TypeError(f"{name} of {path!r} is {value!r}")
        if values.setdefault(path, value / scale) != value / scale and value == value:
            raise ValueError(f"{name} of {path!r} has two values")
    finite = [value for value in values.values() if math.isfinite(value)]
    off = finite and math.isfinite(mean) and abs(fmean(finite) - mean) > TOLERANCE
    if off and name == "imaging_quality":  # the only one whose unit is another per video
        raise ValueError(f"{name} states the mean {mean} and has {fmean(finite):.4g} / 100")
    if wrong := [v for v in finite if not -1 <= v <= 1]:
        raise ValueError(f"{name} holds {wrong[0]}, and is on 0-1 (imaging quality on 0-100)")
    return values
