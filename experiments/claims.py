"""Every claim of the paper, decided on the runs that exist: confirmed, refuted or undecided.

    python experiments/claims.py [--runs runs] [--run] [--plan] [WORDS of run.py: backbone=hunyuan]

The claims, their measures and margins are in claim_list.py, the rules in claim_rules.py, the
solver's order and the paper's clock in claim_flows.py. Needed are 64 prompts x 3 seeds of the runs of
Tables 1-4 and of windows=oracle. `--plan` lists them; `--run` makes what is missing, here
and through run.py's own code, and can be stopped and typed again; without it the commands are
printed, and a claim whose runs are missing is undecided. With WORDS the same claims are asked of
other backbones, schedules or prompts (by default prompts=world for embedded backbones, else
prompts=vbench prompts.subset=half).

Writes experiments/results/claims_<backbone>.{json,md}: per claim its sentence, source, rule,
estimate, 95 % interval, prompts and clips behind it, run ids and verdict; then regret per step and
layer, and the cosine of borrowed and true v' per step.
"""

import argparse
import json
import math
import shlex
import sys
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from claim_flows import order_claims, speed_claims
from claim_list import CLAIMS, RUNS, VBENCH, Claim, Measure
from claim_rules import UNDECIDED, WORDS, Found, decide, decide_share
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException

import s2flow.recipe.resolve
from s2flow import methods
from s2flow.backbones.checkpoint import Origin
from s2flow.errors import UserError
from s2flow.process import loading
from s2flow.process.provenance import provenance
from s2flow.run import runner
from s2flow.store import generation_seconds, read_run, write_json, written_whole
from s2flow.store.outcome import black_frames
from s2flow.store.tasks import clip_tasks
from s2flow.video import read_video, to_bytes

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
VARIED = ("method", "sparsity", "windows", "order", "solver", "t_i", "prompts.count", "seeds")
Record = dict[str, Any]


@dataclass(frozen=True)
class Need:
    """One run that claims read: its words, config, id, and the clips asked for, by (prompt, seed)."""

    name: str
    words: tuple[str, ...]
    cfg: Any
    run_id: str
    clips: frozenset

    def missing(self, records: dict) -> int:
        """How many of its clips are not there."""
        return len(self.clips - records.keys())


# -- which runs -------------------------------------------------------------------------------


def composed(words: list[str]) -> Any:
    """A config. Raises UserError for words that run.py would not take."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        try:
            return compose("config", overrides=words)
        except HydraException as error:
            said = str(error).splitlines()[0]
            raise UserError(f"{said} Type knobs of python run.py --help") from error


def recipe_of(cfg: Any, weights: str) -> Any:
    """The recipe of a composed config."""
    return s2flow.recipe.resolve.resolve(cfg, weights, methods.method(cfg.method.name).KNOBS)


def needs(runs_dir: Path, prompts: int, seeds: int, words: list[str]) -> dict[str, Need]:
    """All runs that the claims read, by name. Raises UserError for words that cannot work."""
    for word in words:
        if word.lstrip("+~").partition("=")[0] in VARIED:
            raise UserError(f"{word} is what the claims vary; leave it out (--prompts, --seeds)")
    plain = composed(words)
    embedded = plain.backbone.family == "tiny"
    weights = loading.weights_hash(plain.backbone.family, Origin.of(plain.backbone))
    steps = recipe_of(plain, weights).steps
    t_i = {f"t{n}": round(steps * n / 50) for n in (40, 30, 20, 10)}
    typed = {word.partition("=")[0] for word in words}
    base = ["prompts=world"] if embedded else ["prompts=vbench", "prompts.subset=half"]
    base = [] if "prompts" in typed else base
    found = {}
    for name, own in RUNS.items():
        size = [f"prompts.count={prompts}", f"seeds={seeds}"]
        own = [*words, *base, *size, *(word.format(**t_i) for word in own)]
        cfg = composed([*own, f"runs_dir={json.dumps(str(runs_dir))}"])
        clips = frozenset((_prompt(t.prompt, t.original), t.seed) for t in clip_tasks(cfg))
        found[name] = Need(name, tuple(own), cfg, recipe_of(cfg, weights).run_id, clips)
    return found


def _prompt(text: str, original: str | None) -> str | tuple[str, str]:
    return text if original is None else (text, original)


def finished(runs_dir: Path, need: Need) -> dict[tuple, Record]:
    """The records of its clips that are done, by (prompt, seed)."""
    records = read_run(runs_dir / need.run_id) if (runs_dir / need.run_id).is_dir() else []
    keyed = {(_prompt(r["prompt"], r.get("original_prompt")), r["seed"]): r for r in records}
    return {k: r for k, r in keyed.items() if k in need.clips}


def make(runs_dir: Path, found: dict[str, Need]) -> int:
    """Make what is missing, run by run in this process; returns how many runs could not be finished."""
    failed = 0
    for run_id in dict.fromkeys(n.run_id for n in found.values()):
        for need in (n for n in found.values() if n.run_id == run_id):
            if need.missing(finished(runs_dir, need)):
                try:
                    runner.run(need.cfg)
                except UserError as error:
                    print(f"{need.name}: {error}", file=sys.stderr)
                    failed += 1
    return failed


# -- what is read from a record ---------------------------------------------------------------


def value(measure: Measure | str, record: Record, embedded: bool, folder: Path) -> float | None:
    """A measure of one clip; None where its record does not have it."""
    if isinstance(measure, Measure):
        scores = record.get("scores", {})
        if not embedded:
            return VBENCH[measure.vbench](scores) if measure.vbench else None
        if measure.own == "one_object":
            count = scores.get("object_count")
            return None if count is None else float(count == 1)
        return scores.get(measure.own)
    if measure == "failed":
        return failed(record, folder)
    if measure == "seconds":
        return math.log(generation_seconds(record))
    tables = {"cosine": ("derivative_cosine", "lri")}
    outer, inner = tables.get(measure, ("oracle", measure))
    by_step = record.get(outer, {}).get(inner) or {}
    known = [x for x in by_step.values() if x is not None]
    return fmean(known) if known else None


def failed(record: Record, folder: Path) -> float:
    """1 for a clip that ended black or NaN. Old records do not say: their mp4 is looked at."""
    if "outcome" in record:
        return float(record["outcome"] in ("black", "nan"))
    frames = to_bytes(read_video(folder / record["video"]))
    return float(black_frames(frames) == 1)


# -- deciding ---------------------------------------------------------------------------------


def decided(
    claim: Claim, found: dict[str, Need], records: dict[str, dict], runs_dir: Path, embedded: bool
) -> dict[str, Any]:
    """One claim with what follows from the records."""
    sides = [s for s in (claim.a, claim.b) if s is not None]
    measure, margin, name = claim.measure, claim.margin, claim.measure
    if isinstance(measure, Measure):
        face = 0 if embedded else 1
        sizes = measure.gain if claim.rule in ("above", "below") else measure.loss
        margin = sizes[face] if margin is None else margin
        name = measure.own if embedded else f"VBench {measure.vbench}"
    values = [
        {
            k: value(measure, r, embedded, runs_dir / found[side].run_id)
            for k, r in records[side].items()
        }
        for side in sides
    ]
    result = _decide(claim, margin, values)
    if result.verdict == UNDECIDED:
        result = replace(result, why=_why(claim, result, found, records, values, embedded))
    if measure == "seconds":
        name = "ratio of seconds"
        numbers = {k: getattr(result, k) for k in ("estimate", "low", "high")}
        result = replace(result, **{k: v and math.exp(v) for k, v in numbers.items()})
    rule = WORDS[claim.rule].format(m=margin)
    return {
        "source": claim.source,
        "claim": claim.sentence,
        "measure": f"{name}: {' minus '.join(sides)}" if measure != "seconds" else name,
        "note": claim.note,
        "rule": rule,
        "runs": [found[s].run_id for s in sides],
        **result.rounded(),
    }


def _decide(claim: Claim, margin: float, values: list[dict]) -> Found:
    if claim.measure == "failed":
        return decide_share(claim.rule, margin, values[0], claim.prompts, claim.seeds)
    margin = math.log(margin) if claim.measure == "seconds" else margin
    b = values[1] if len(values) == 2 else None
    return decide(claim.rule, margin, values[0], b, claim.prompts, claim.seeds)


def _why(
    claim: Claim, result: Found, found: dict, records: dict, values: list[dict], embedded: bool
) -> str:
    """Why nothing is decided, in words that say what to do."""
    sides = [s for s in (claim.a, claim.b) if s is not None]
    absent = [f"{s} ({found[s].run_id})" for s in sides if not records[s]]
    if absent:
        return f"runs missing: {', '.join(absent)}"
    if isinstance(claim.measure, Measure) and not embedded and claim.measure.vbench is None:
        return "VBench has no such dimension"
    if any(all(x is None for x in v.values()) for v in values):
        return "not scored: python -m s2flow.score" + ("" if embedded else " 'scorer=[vbench]'")
    return result.why


# -- per step and layer -----------------------------------------------------------------------


def details(records: dict[str, dict[tuple, Record]]) -> dict[str, Any]:
    """Means over clips: regret and coverage per step (and layer) and cosines per step."""
    oracle = [r["oracle"] for r in records["oracle"].values() if "oracle" in r]
    cosines = [
        r["derivative_cosine"] for r in records["s2flow"].values() if "derivative_cosine" in r
    ]
    layers = defaultdict(list)
    for said in oracle:
        for n, by_layer in said.get("regret_by_layer", {}).items():
            for layer, x in by_layer.items():
                layers[n, layer].append(x)
    by_layer: dict[str, dict[str, float]] = {}
    for (n, layer), x in layers.items():
        by_layer.setdefault(n, {})[layer] = round(fmean(x), 5)
    return {
        "oracle_clips": len(oracle),
        "coverage_by_step": _by_step(o["coverage"] for o in oracle),
        "regret_by_step": _by_step(o["regret"] for o in oracle),
        "regret_by_step_and_layer": by_layer,
        "cosine_clips": len(cosines),
        "cosine_lr_by_step": _by_step(c["lri"] for c in cosines if "lri" in c),
        "cosine_own_past_by_step": _by_step(c["history"] for c in cosines if "history" in c),
    }


def _by_step(tables: Any) -> dict[str, float]:
    found = defaultdict(list)
    for table in tables:
        for n, x in table.items():
            if x is not None:
                found[n].append(x)
    return {n: round(fmean(x), 5) for n, x in sorted(found.items(), key=lambda kv: -int(kv[0]))}


# -- output -----------------------------------------------------------------------------------


def to_markdown(result: dict[str, Any]) -> str:
    """The table for a README, and the tables per step."""
    lines = [f"# The paper's claims on {result['backbone']}", ""]
    if result["embedded"]:
        lines += [
            f"`{result['backbone']}` is a toy model of this package: what it confirms or refutes, it "
            "does for itself. Its measures are its world's own, not VBench's. Only the rows of the "
            "runtime model are about the paper's size.\n"
        ]
    lines += [f"Made by `{result['command']}`.", ""]
    lines += ["| | claim | measure | estimate [95 %] | prompts, clips | verdict |"]
    lines += ["|---|---|---|---|---|---|"]
    lines += [_line(row) for row in result["claims"]]
    lines += ["", *_steps(result["details"])]
    return "\n".join(lines) + "\n"


def short_lines(claims: list[dict[str, Any]]) -> list[str]:
    """The same for the project's README: sentence, estimate, verdict."""
    lines = ["| | claim of the paper | estimate [95 %] | verdict |", "|---|---|---|---|"]
    for row in claims:
        cells = (row["source"], row["claim"], _estimate(row), row["verdict"])
        lines.append("| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |")
    return lines


def _estimate(row: dict[str, Any]) -> str:
    text = "" if row["estimate"] is None else f"{row['estimate']:.3f}"
    return text if row["low"] is None else f"{text} [{row['low']:.3f}, {row['high']:.3f}]"


def _line(row: dict[str, Any]) -> str:
    behind = f"{row['prompts']}, {row['clips']}" if row["prompts"] else ""
    verdict = f"**{row['verdict']}**" + (f": {row['why']}" if row["why"] else "")
    measure = "; ".join(filter(None, (row["measure"], row.get("note"), row["rule"])))
    cells = (row["source"], row["claim"], measure, _estimate(row), behind, verdict)
    return "| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |"


def _steps(said: dict[str, Any]) -> list[str]:
    lines = []
    if said["regret_by_step"]:
        layers = sorted({k for v in said["regret_by_step_and_layer"].values() for k in v}, key=int)
        lines += [f"Regret of LR-chosen windows, {said['oracle_clips']} clips:", ""]
        heads = ["step n", "HR's own coverage", "regret", *(f"layer {k}" for k in layers)]
        lines += ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
        for n, regret in said["regret_by_step"].items():
            own = said["regret_by_step_and_layer"].get(n, {})
            cells = [said["coverage_by_step"][n], regret, *(own.get(k) for k in layers)]
            shown = ("" if c is None else f"{c:.3f}" for c in cells)
            lines.append(f"| {n} | " + " | ".join(shown) + " |")
        lines.append("")
    if said["cosine_lr_by_step"]:
        lines += [f"Cosine with HR's own v', {said['cosine_clips']} clips:", ""]
        lines += ["| step n | borrowed from LR | of HR's own past |", "|---|---|---|"]
        for n, x in said["cosine_lr_by_step"].items():
            past = said["cosine_own_past_by_step"].get(n)
            lines.append(f"| {n} | {x:.3f} | {'' if past is None else f'{past:.3f}'} |")
    return lines


# -- the command ------------------------------------------------------------------------------


def parsed(argv: list[str] | None) -> argparse.Namespace:
    """What was typed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="the store (runs)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--prompts", type=int, default=64, help="a claim needs 64")
    parser.add_argument("--seeds", type=int, default=3, help="a claim needs 3")
    parser.add_argument("--run", action="store_true", help="make the missing clips first")
    parser.add_argument("--plan", action="store_true", help="list the runs and stop")
    parser.add_argument("words", nargs="*", help="knobs of run.py, such as backbone=hunyuan")
    args = parser.parse_intermixed_args(argv)
    if args.prompts < 1 or args.seeds < 1:
        parser.error("type --prompts 1 and --seeds 1 or more")
    return args


def main(argv: list[str] | None = None) -> int:
    """List, make, decide, write; 1 if runs that were to be made could not be."""
    args = parsed(argv)
    found = needs(args.runs, args.prompts, args.seeds, args.words)
    failures = make(args.runs, found) if args.run and not args.plan else 0
    records = {name: finished(args.runs, need) for name, need in found.items()}
    say_missing(args, found, records)
    if args.plan:
        return 0
    cfg = found["s2flow"].cfg
    embedded = cfg.backbone.family == "tiny"
    rows = [decided(claim, found, records, args.runs, embedded) for claim in CLAIMS]
    rows += [*order_claims(closed_form), *speed_claims()]
    where = {k: v for k, v in provenance("cpu").items() if k not in ("command", "host")}
    result = {
        "command": " ".join(["python experiments/claims.py", *args.words]),
        "backbone": cfg.backbone.name,
        "embedded": embedded,
        **where,
        "runs": {n.name: {"run": n.run_id, "words": list(n.words)} for n in found.values()},
        "claims": rows,
        "details": details(records),
    }
    path = args.out / f"claims_{cfg.backbone.name}"
    write_json(path.with_suffix(".json"), result)
    with written_whole(path.with_suffix(".md")) as temporary:
        temporary.write_text(to_markdown(result), encoding="utf-8")
    for row in rows:
        print(f"{row['verdict']:10} {row['source']:9} {row['claim']}" + _numbers(row))
    print(f"written: {path}.json, {path}.md")
    return int(failures > 0)


def _numbers(row: dict[str, Any]) -> str:
    shown = "" if row["low"] is None else "  {estimate:.3f} [{low:.3f}, {high:.3f}]".format(**row)
    return shown + (f"  ({row['why']})" if row["why"] else "")


def closed_form(words: list[str]) -> Any:
    """The recipe of claim_flows.py's engines: the schedule of the embedded backbone."""
    return recipe_of(composed(["windows=full", "handoff=latent", *words]), "")


def say_missing(args: argparse.Namespace, found: dict, records: dict) -> None:
    """Which clips are missing, and the commands that make them."""
    lacking = {name: n.missing(records[name]) for name, n in found.items()}
    if args.plan:
        for name, need in found.items():
            have = len(need.clips) - lacking[name]
            print(f"{need.run_id}  {have:4} of {len(need.clips):4} clips  {name}")
    if not any(lacking.values()):
        return
    clips = sum(lacking.values())
    again = ["python", "experiments/claims.py", "--run", *args.words]
    again += [] if args.runs == Path("runs") else ["--runs", str(args.runs)]
    print(f"{clips} clips are missing; {shlex.join(again)} makes them all, or:", file=sys.stderr)
    for name, n in lacking.items():
        if n:
            words = [*found[name].words]
            words += [] if args.runs == Path("runs") else [f"runs_dir={args.runs}"]
            print(f"  python run.py {shlex.join(words)}  # {n} clips", file=sys.stderr)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")
