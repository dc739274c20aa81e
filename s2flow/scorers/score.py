"""Scoring of finished clips, apart from making them: again, in part, or on another machine.

    python -m s2flow.score                                        builtin and world scores of all runs
    python -m s2flow.score 'runs=[8acde59716]' 'scorer=[vbench]'  one run, VBench's six dimensions
    python -m s2flow.score 'scorer=[vbench]' shard=1/2            half of the clips
    python -m s2flow.score export=scores.csv                      a row per (clip, dimension, metric)
    python -m s2flow.score videos=FOLDER prompts=FILE             clips from elsewhere: store/foreign.py
    python -m s2flow.score vbench_results=FILE 'runs=[ID]'        VBench's own file: vbench/results.py

Verdicts go to the score book (scorebook.py). Existing ones are not computed again, so an interrupted
scoring resumes, and scores from two machines are merged by copying `runs/*/scores/*.jsonl` into one
folder. `python run.py scorer=[...]` scores through the same `Scoring`, as clips are made. A clip that
cannot be decoded, is missing, or is not the file that was recorded gets a verdict that says so; the
others are still scored, and the exit code is not zero.
"""

import json
import math
import sys
import time
from collections import Counter
from pathlib import Path
from statistics import fmean
from traceback import format_exception
from typing import Any

import hydra
import torch
from omegaconf import DictConfig
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from s2flow.errors import UserError
from s2flow.metrics import paired_clips
from s2flow.process.provenance import provenance
from s2flow.prompts import parse_shard
from s2flow.recipe import CONF
from s2flow.recipe.limits import check_declared
from s2flow.recipe.resolve import plain
from s2flow.scorers import Clip, Scorer, Suite, build
from s2flow.scorers.vbench.results import Results
from s2flow.store import read_record, sha256_of
from s2flow.store.foreign import METHOD as FOREIGN
from s2flow.store.foreign import imported, some
from s2flow.store.scorebook import FINAL, ScoreBook, Verdict, metric_hash, rows
from s2flow.terminal.cli import reported
from s2flow.terminal.summary import print_failure
from s2flow.video import Undecodable, size_text, stated_size

SCORED = ("ok", "missing_weights")  # the second only with on_missing=skip
PLACEMENT = ("device", "cache_dir", "allow_download", "on_missing", "python")  # change no score


class Altered(Exception):
    """A clip that is not, or no longer, the file that its record names."""


KNOWN = {Altered: "altered", Undecodable: "undecodable"}  # failures with a status of their own


class Scoring:
    """Scorers applied to the clips of one run.

    scorers: {name: scorer or suite}; arguments: {name: its config}; retry: score again whatever is not
    ok. Raises UserError at once if a scorer needs something that the user can provide.
    """

    def __init__(
        self,
        book: ScoreBook,
        scorers: dict[str, Scorer | Suite],
        arguments: dict[str, Any],
        retry: bool = False,
    ) -> None:
        self.folder, self.book = book.folder.parent, book
        self.final = ("ok",) if retry else FINAL
        self.parts: dict[str, Scorer] = {}
        self.known: dict[str, dict[str, Any]] = {}  # what names the metric of each
        for name, scorer in scorers.items():
            parts = {name: scorer}
            if isinstance(scorer, Suite):
                scorer.prepare()
                parts = scorer.parts()
            typed = {k: v for k, v in (arguments[name] or {}).items() if k not in PLACEMENT}
            for part, of in parts.items():
                decisive = typed if of.arguments is None else of.arguments
                known = {"arguments": decisive, "version": of.version, "weights": of.weights}
                self.parts[part], self.known[part] = of, known
        self.metric = {part: metric_hash(part, known) for part, known in self.known.items()}

    def verdicts(self, record: dict[str, Any]) -> list[Verdict]:
        """The verdicts of these scorers on a clip; those of `Store.recorded` hold them already."""
        known = record["verdicts"] if "verdicts" in record else self.book.of(record)
        return [v for v in known if self.metric.get(v["scorer"]) == v["metric"]]

    def missing(self, record: dict[str, Any]) -> list[str]:
        """The scorers that have no valid verdict on a clip."""
        settled = {v["scorer"] for v in self.verdicts(record) if self._settled(v, record)}
        asked = {n for n, s in self.parts.items() if s.covers is None or s.covers(record)}
        return [part for part in self.parts if part in asked - settled]

    def _settled(self, verdict: Verdict, record: dict[str, Any]) -> bool:
        """False also if its weights have arrived since, or its reference is another one now."""
        status, part = verdict["status"], verdict["scorer"]
        arrived = status == "missing_weights" and not self.parts[part].needs
        same = verdict.get("depends") == self._depends(part, record)
        return status in self.final and not arrived and same

    def _depends(self, part: str, record: dict[str, Any]) -> Any:
        depends = self.parts[part].depends
        return None if depends is None else depends(self._clip(record))

    def score(self, record: dict[str, Any]) -> bool:
        """Compute the verdicts that a finished clip lacks; whether all its verdicts are scores now."""
        clip = None
        for part in self.missing(record):
            scorer, started = self.parts[part], time.perf_counter()
            status, scores, failure = "ok", {}, None
            try:
                clip = clip or self._checked(record)
                if scorer.needs:
                    status = "missing_weights"
                else:
                    scores = scorer.score(clip)
                    if set(scores) != set(scorer.names):
                        names = f"{sorted(scores)} and names {sorted(scorer.names)}"
                        raise ValueError(f"{part} gave {names}")
                if not all(x is None or math.isfinite(x) for x in scores.values()):
                    status = "nan"
            except Exception as raised:
                status, scores, failure = KNOWN.get(type(raised), "failed"), {}, raised
                print_failure(record["prompt"], failure)
            finite = {n: x for n, x in scores.items() if x is not None and math.isfinite(x)}
            verdict = self._verdict(record, part, failure) | {
                "status": status,
                "scores": {n: float(finite[n]) if n in finite else None for n in scorer.names},
                "seconds": round(time.perf_counter() - started, 4),
            }
            self.book.add(verdict)
        return self.scored(record)

    def scored(self, record: dict[str, Any]) -> bool:
        """Whether every verdict on a clip is a score."""
        verdicts = self.verdicts(record)
        return len(verdicts) == len(self.parts) and all(v["status"] in SCORED for v in verdicts)

    def _checked(self, record: dict[str, Any]) -> Clip:
        """The clip, if it is what was recorded. Raises Altered."""
        path = self.folder / record["video"]
        if not path.exists() or sha256_of(path) != record["sha256"]:
            what = "is not the file that was recorded" if path.exists() else "is gone"
            file = self.folder / "records" / f"{path.stem}.json"
            raise Altered(f"{path} {what}; remove {file}, and run.py makes the clip again")
        size, recorded = stated_size(path), tuple(record[k] for k in ("frames", "height", "width"))
        if size != recorded:
            raise Altered(f"{path} is {size_text(size)}, and its record has {size_text(recorded)}")
        return self._clip(record)

    def _clip(self, record: dict[str, Any]) -> Clip:
        path, text = self.folder / record["video"], record.get("original_prompt")
        low = path.with_suffix(".low.mp4")
        low = low if low.exists() else None
        seed, runs_dir = record["seed"], self.folder.parent
        return Clip(path, text or record["prompt"], seed, runs_dir, low, record)

    def _verdict(self, record: dict[str, Any], part: str, failure: Exception | None) -> Verdict:
        """A verdict's fields beside status, scores and seconds."""
        scorer, here = self.parts[part], provenance("cpu")
        verdict = {k: record[k] for k in ("run_id", "prompt", "seed", "frames", "height", "width")}
        if failure is not None:  # one line for a known one, else a traceback
            known = isinstance(failure, (*KNOWN, UserError))
            verdict["error"] = str(failure) if known else "".join(format_exception(failure))
        if scorer.needs:
            verdict["missing"] = list(scorer.needs)
        if scorer.depends is not None:
            verdict["depends"] = self._depends(part, record)
        return verdict | {
            "key": Path(record["video"]).stem,
            "clip": record["sha256"],
            "fps": record.get("fps"),
            "prompt_index": record.get("prompt_index"),
            "scorer": part,
            "metric": self.metric[part],
            **self.known[part],
            "preprocessing": scorer.preprocessing,
            "protocol": scorer.protocol,
            "versions": here["versions"] | dict(scorer.versions),
            "device": scorer.device or here["device"],
            "host": here["host"],
            "commit": here["commit"],
            "at": time.time(),
        }


def score(cfg: DictConfig) -> None:
    """Score the finished clips that conf/score.yaml names. Raises UserError if some cannot be."""
    runs_dir = Path(cfg.runs_dir)
    folders = _folders(runs_dir, _imported(cfg))
    results = _results(cfg, folders)
    k, n = parse_shard(cfg.shard)
    check_declared(cfg)
    if cfg.threads is not None:
        torch.set_num_threads(cfg.threads)
    built: dict[str, Scorer | Suite] = {}  # by arguments: weights are loaded once for all runs
    table, every = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0)), []
    for name in ("run", "score", "mean", "95 %", "clips", "of", "new"):
        table.add_column(name, justify="left" if name in ("run", "score") else "right")
    for folder in folders:
        records = map(read_record, sorted((folder / "records").glob("[!.]*.json")))
        records = [r for r in records if r and int(Path(r["video"]).stem, 16) % n == k - 1]
        if not records:
            continue
        scoring = _scoring(cfg, folder, records[0], built, results)
        todo = [r for r in records if scoring.missing(r)]
        text = f"{folder.name} {len(todo)} of {len(records)} clips"
        quiet = not sys.stderr.isatty()
        for record in track(todo, text, console=Console(stderr=True), disable=quiet):
            scoring.score(record)
        found = [(r, v) for r in records for v in scoring.verdicts(r)]
        verdicts = [v for _, v in found]
        every += verdicts
        for name in dict.fromkeys(n for v in verdicts for n in v["scores"]):
            known = [v["scores"][name] for v in verdicts if v["scores"].get(name) is not None]
            mean = f"{fmean(known):.4f}" if known else "—"
            table.add_row(
                *(folder.name, name, mean, _interval(found, name)),
                *map(str, (len(known), len(records), len(todo))),
            )
        table.add_section()
    Console(highlight=False, width=None if sys.stdout.isatty() else 140).print(table)
    needs = {name for v in every for name in v.get("missing", ())}
    if needs:
        print(f"null for want of weights: {'; '.join(sorted(needs))}", file=sys.stderr)
    if cfg.export is not None:
        _export(Path(cfg.export), folders)
    bad = Counter(v["status"] for v in every if v["status"] not in SCORED)
    if bad:
        what = ", ".join(f"{m} {s}" for s, m in sorted(bad.items()))
        raise UserError(
            f"of {len(every)} verdicts {what}; {runs_dir}/*/scores/ holds which and why, "
            "and retry=true scores all again that are not ok"
        )
    if results is not None and results.unknown:
        raise UserError(
            f"{len(results.unknown)} videos of {cfg.vbench_results} are no clips of {folders[0]}, by "
            f"name or content: {some(results.unknown)}; the scores of the others are attached"
        )


def _imported(cfg: DictConfig) -> Any:
    """The runs to score: with `videos`, that of these clips."""
    if cfg.videos is None:
        if cfg.prompts.file is not None:
            raise UserError(
                f"prompts={cfg.prompts.file} names clips of videos=FOLDER; type it, too"
            )
        return cfg.runs
    if cfg.runs is not None:
        raise UserError("videos= is scored as a run of its own; leave runs= out")
    return [imported(Path(cfg.videos), cfg.prompts.file, Path(cfg.runs_dir))]


def _results(cfg: DictConfig, folders: list[Path]) -> Results | None:
    """The scores of `vbench_results`, whose names of clips are the same in every run."""
    if cfg.vbench_results is None:
        return None
    if len(folders) > 1:
        raise UserError(
            f"vbench_results={cfg.vbench_results} scores one run, and {cfg.runs_dir} has "
            f"{len(folders)}; type runs=[{folders[0].name}] for the one"
        )
    return Results(cfg.vbench_results, folders[0])


def _interval(found: list[tuple[dict[str, Any], Verdict]], name: str) -> str:
    """95 % interval of the mean over prompts, seeds averaged first."""
    scores = {
        ((r["prompt"], r.get("original_prompt")), r["seed"]): v["scores"][name]
        for r, v in found
        if v["scores"].get(name) is not None
    }
    mean = paired_clips(scores, dict.fromkeys(scores, 0.0))
    return "—" if mean.low is None else f"{mean.low:.4f} to {mean.high:.4f}"


def _folders(runs_dir: Path, named: Any) -> list[Path]:
    known = {p.parent.name: p.parent for p in sorted(runs_dir.glob("*/recipe.json"))}
    if not known:
        raise UserError(
            f"runs_dir={runs_dir} holds no runs; type runs_dir=..., or python run.py first"
        )
    names = dict.fromkeys(known if named is None else map(str, named))
    for name in names:
        if name not in known:
            raise UserError(f"runs={name}: {runs_dir} has no such run; it has {', '.join(known)}")
    return [known[name] for name in names]


def _scoring(
    cfg: DictConfig,
    folder: Path,
    record: dict[str, Any],
    built: dict,
    results: Results | None,
) -> Scoring:
    if results is not None:
        return Scoring(ScoreBook(folder), {"vbench": results}, {"vbench": {}}, cfg.retry)
    cfg.backbone.name = record["recipe"]["backbone"]  # which world it belongs to
    arguments = plain(cfg, "scorer")
    scorers = {}
    for name, conf in list(arguments.items()):
        if name == "world" and conf["size"] == FOREIGN:  # unless another one was typed
            arguments.pop(name)
            continue
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
