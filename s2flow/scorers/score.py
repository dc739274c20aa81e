"""Scoring of finished clips, apart from making them: again, in part, or on another machine.

    python -m s2flow.score                                        builtin and world scores of all runs
    python -m s2flow.score 'runs=[8acde59716]' 'scorer=[vbench]'  one run, VBench's six dimensions
    python -m s2flow.score 'scorer=[vbench]' shard=1/2            half of the clips
    python -m s2flow.score export=scores.csv                      a row per (clip, dimension, metric)

It reads only what was saved. Verdicts go to the score book (scorebook.py): what is there is not
computed again, so a scoring that was killed goes on, and what two machines scored is merged by copying
`runs/*/scores/*.jsonl` into one folder. A clip's shard follows from its key, whatever else is in the
store. `python run.py scorer=[...]` scores through the same `Scoring`, clip by clip as they are made.

A clip that cannot be decoded, is missing, or is not the file that was recorded keeps a verdict that
says so, the others go on, and the exit code is not zero.
"""

import json
import math
import sys
import time
import traceback
from collections import Counter
from pathlib import Path
from statistics import fmean
from typing import Any

import hydra
from omegaconf import DictConfig
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from s2flow.errors import UserError
from s2flow.process.provenance import provenance
from s2flow.prompts import parse_shard
from s2flow.recipe import CONF
from s2flow.recipe.limits import check_threads
from s2flow.recipe.resolve import plain
from s2flow.scorers import Clip, build
from s2flow.store import read_record, sha256_of
from s2flow.store.scorebook import FINAL, ScoreBook, Verdict, metric_hash, rows
from s2flow.terminal.cli import reported
from s2flow.terminal.summary import print_failure
from s2flow.video import Undecodable, stated_size

SCORED = ("ok", "missing_weights")  # the second only where the user asked to skip
WHERE = ("versions", "device", "host", "commit")
PLACEMENT = (
    "device",
    "cache_dir",
    "allow_download",
    "on_missing",
    "python",
)  # not what is measured


class Scoring:
    """Scorers at work on the clips of one run.

    scorers: {name: scorer}, arguments: {name: what it was built from}. Raises UserError at once if
    one of them lacks something that the user can provide.
    """

    def __init__(
        self, book: ScoreBook, scorers: dict[str, Any], arguments: dict[str, Any], retry=False
    ) -> None:
        self.folder, self.book, self.retry = book.folder.parent, book, retry
        self.parts: dict[str, Any] = {}
        self.known: dict[str, dict[str, Any]] = {}
        for name, scorer in scorers.items():
            if hasattr(scorer, "prepare"):
                scorer.prepare()
            own = {k: v for k, v in (arguments[name] or {}).items() if k not in PLACEMENT}
            for part, of in (
                scorer.parts() if hasattr(scorer, "parts") else {name: scorer}
            ).items():
                self.parts[part] = of
                decisive = getattr(of, "arguments", own)
                self.known[part] = {"arguments": decisive, "version": getattr(of, "version", 1)}
                self.known[part]["weights"] = getattr(of, "weights", None)
        self.metric = {part: metric_hash(part, known) for part, known in self.known.items()}

    def verdicts(self, record: dict[str, Any]) -> list[Verdict]:
        """What these scorers have said of a clip so far; `Store.recorded` brings it along."""
        said = record["said"] if "said" in record else self.book.of(record)
        return [v for v in said if self.metric.get(v["scorer"]) == v["metric"]]

    def missing(self, record: dict[str, Any]) -> list[str]:
        """The scorers whose verdict on a clip is still wanted."""
        final = ("ok",) if self.retry else FINAL
        settled = {v["scorer"]: v for v in self.verdicts(record) if v["status"] in final}
        return [part for part in self.parts if self._open(part, settled.get(part), record)]

    def _open(self, part: str, said: Verdict | None, record: dict[str, Any]) -> bool:
        """Whether a verdict is wanted: there is none, or what it was taken with has changed."""
        if said is None:
            return True
        if said["status"] == "missing_weights" and not getattr(self.parts[part], "missing", None):
            return True
        return said.get("depends") != self._depends(part, record)

    def _depends(self, part: str, record: dict[str, Any]) -> Any:
        """What a score depends on beside the clip: the reference that it is compared with."""
        depends = getattr(self.parts[part], "depends", None)
        return None if depends is None else depends(self._clip(record))

    def score(self, record: dict[str, Any]) -> bool:
        """Enter the verdicts that a finished clip lacks; whether it has its scores now."""
        wanted, clip = self.missing(record), None
        path = self.folder / record["video"]
        for part in wanted:
            started = time.perf_counter()
            status, scores, failure = "ok", {}, None
            try:
                clip = clip or self._checked(record, path)
                scores = self._ask(part, clip)
                if any(x is not None and not math.isfinite(x) for x in scores.values()):
                    status = "nan"
                elif getattr(self.parts[part], "missing", None):
                    status = "missing_weights"
            except Altered as raised:
                status, failure = "altered", raised
            except Undecodable as raised:
                status, failure = "undecodable", raised
            except Exception as raised:
                status, failure = "failed", raised
            if failure is not None:
                print_failure(record["prompt"], failure)
            scores = {n: _finite(scores.get(n)) for n in self.parts[part].names}
            seconds = round(time.perf_counter() - started, 4)
            self.book.add(
                self._verdict(record, part, status, scores, failure) | {"seconds": seconds}
            )
        return self.scored(record)

    def scored(self, record: dict[str, Any]) -> bool:
        """Whether every verdict on a clip is a score."""
        said = self.verdicts(record)
        return len(said) == len(self.parts) and all(v["status"] in SCORED for v in said)

    def _checked(self, record: dict[str, Any], path: Path) -> Clip:
        """The clip, if it is what was recorded. Raises Altered."""
        if not path.exists() or sha256_of(path) != record["sha256"]:
            what = "is not the file that was recorded" if path.exists() else "is gone"
            again = self.folder / "records" / f"{path.stem}.json"
            raise Altered(f"{path} {what}; remove {again}, and run.py makes the clip again")
        found, told = stated_size(path), tuple(record[k] for k in ("frames", "height", "width"))
        if found != told:
            raise Altered(f"{path} is {_size(found)}, and its record says {_size(told)}")
        return self._clip(record)

    def _clip(self, record: dict[str, Any]) -> Clip:
        path = self.folder / record["video"]
        low = path.with_suffix(".low.mp4")
        text, seed = record.get("original_prompt") or record["prompt"], record["seed"]
        low = low if low.exists() else None
        return Clip(path, text, seed, self.folder.parent, low, record)

    def _ask(self, part: str, clip: Clip) -> dict[str, float | None]:
        scorer = self.parts[part]
        if getattr(scorer, "missing", None):
            return {}
        scores = scorer(clip)
        if set(scores) != set(scorer.names):
            raise ValueError(f"{part} gave {sorted(scores)} and names {sorted(scorer.names)}")
        return scores

    def _verdict(
        self, record: dict, part: str, status: str, scores: dict, failure: Exception | None
    ) -> Verdict:
        scorer, lacking = self.parts[part], getattr(self.parts[part], "missing", None)
        verdict = {k: record[k] for k in ("run_id", "prompt", "seed", "frames", "height", "width")}
        here = provenance("cpu")
        return verdict | {
            "key": Path(record["video"]).stem,
            "clip": record["sha256"],
            "fps": record.get("fps"),
            "prompt_index": record.get("prompt_index"),
            "scorer": part,
            "metric": self.metric[part],
            "status": status,
            "scores": scores,
            **({} if failure is None else {"error": _words(failure)}),
            **({"missing": list(lacking)} if lacking else {}),
            **({"depends": self._depends(part, record)} if hasattr(scorer, "depends") else {}),
            **self.known[part],
            "preprocessing": getattr(scorer, "preprocessing", None),
            "protocol": getattr(scorer, "protocol", None),
            **{k: here[k] for k in WHERE},
            "versions": here["versions"] | getattr(scorer, "versions", {}),
            "device": str(getattr(scorer, "device", here["device"])),
            "at": time.time(),
        }


def _size(shape: tuple[int, int, int]) -> str:
    return f"{shape[0]} frames of {shape[1]}x{shape[2]}"


class Altered(Exception):
    """A clip that is not, or no longer, the file that its record names."""


def _words(failure: Exception) -> str:
    """A line where it says all, a traceback where it may not."""
    if isinstance(failure, (Altered, Undecodable, UserError)):
        return str(failure)
    return "".join(traceback.format_exception(failure))


def _finite(x: float | None) -> float | None:
    return None if x is None or not math.isfinite(x) else float(x)


# -- the command ------------------------------------------------------------------------------


def score(cfg: DictConfig) -> None:
    """Score the finished clips that conf/score.yaml names. Raises UserError if some cannot be."""
    runs_dir = Path(cfg.runs_dir)
    folders = _folders(runs_dir, cfg.runs)
    k, n = parse_shard(cfg.shard)
    check_threads(cfg.threads)
    if cfg.threads is not None:
        import torch

        torch.set_num_threads(cfg.threads)
    built: dict[str, Any] = {}  # by arguments: heavy weights are loaded once for all runs
    counts: Counter[str] = Counter()
    lines = []
    for folder in folders:
        records = [
            r for r in map(read_record, sorted((folder / "records").glob("[!.]*.json"))) if r
        ]
        records = [r for r in records if int(Path(r["video"]).stem, 16) % n == k - 1]
        if not records:
            continue
        scoring = _scoring(cfg, folder, records[0], built)
        todo = [r for r in records if scoring.missing(r)]
        text = f"{folder.name} {len(todo)} of {len(records)} clips"
        quiet = not sys.stderr.isatty()
        for record in track(todo, text, console=Console(stderr=True), disable=quiet):
            scoring.score(record)
        said = [v for r in records for v in scoring.verdicts(r)]
        counts.update(v["status"] for v in said)
        lines.append((folder.name, len(todo), len(records), said))
    _print(lines)
    lacking = {name for *_, said in lines for v in said for name in v.get("missing", ())}
    if lacking:
        print(f"null for want of weights: {'; '.join(sorted(lacking))}", file=sys.stderr)
    if cfg.export is not None:
        _export(Path(cfg.export), folders)
    bad = {s: m for s, m in counts.items() if s not in SCORED}
    if bad:
        what = ", ".join(f"{m} {s}" for s, m in sorted(bad.items()))
        raise UserError(
            f"of {counts.total()} verdicts {what}; which and why stands in {runs_dir}/*/scores/, "
            "and retry=true asks again for all that are not ok"
        )


def _folders(runs_dir: Path, named: Any) -> list[Path]:
    every = sorted(p.parent for p in runs_dir.glob("*/recipe.json"))
    if not every:
        raise UserError(
            f"runs_dir={runs_dir} holds no runs; type runs_dir=..., or python run.py first"
        )
    if named is None:
        return every
    known = {p.name: p for p in every}
    for name in named:
        if str(name) not in known:
            raise UserError(f"runs={name}: {runs_dir} has no such run; it has {', '.join(known)}")
    return [known[str(name)] for name in dict.fromkeys(named)]


def _scoring(cfg: DictConfig, folder: Path, record: dict[str, Any], built: dict) -> Scoring:
    cfg.backbone.name = record["recipe"]["backbone"]  # which world it belongs to
    arguments = plain(cfg, "scorer")
    scorers = {}
    for name, conf in list(arguments.items()):
        key = json.dumps([name, conf], sort_keys=True)
        try:
            built[key] = scorers[name] = built.get(key) or build(name, conf)
        except Exception as error:
            cause = error if isinstance(error, UserError) else error.__cause__
            if name != "world" or not isinstance(cause, UserError):
                raise
            print(f"{folder.name}: {cause}; scored without `world`", file=sys.stderr)
            arguments.pop(name)
    return Scoring(ScoreBook(folder), scorers, arguments, cfg.retry)


def _print(lines: list[tuple[str, int, int, list[Verdict]]]) -> None:
    """A row per run and score: its mean over the clips that have it, and what was newly scored."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("run", "score", "mean", "clips", "of", "new"):
        table.add_column(name, justify="left" if name in ("run", "score") else "right")
    for run, new, clips, said in lines:
        for name in dict.fromkeys(n for v in said for n in v["scores"]):
            known = [v["scores"][name] for v in said if v["scores"].get(name) is not None]
            mean = f"{fmean(known):.4f}" if known else "—"
            table.add_row(run, name, mean, str(len(known)), str(clips), str(new))
        table.add_section()
    Console(highlight=False, width=None if sys.stdout.isatty() else 140).print(table)


def _export(path: Path, folders: list[Path]) -> None:
    every = [v for folder in folders for v in ScoreBook(folder).verdicts()]
    try:
        rows(every).to_csv(path, index=False)
    except OSError as error:
        raise UserError(f"export={path} cannot be written: {error.strerror or error}") from None
    print(f"{len(every)} verdicts in {path}")


@hydra.main(version_base="1.3", config_path=str(CONF.resolve()), config_name="score")
def main(cfg: DictConfig) -> None:
    """Score finished clips."""
    with reported():
        score(cfg)
