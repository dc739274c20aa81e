"""Every claim of the paper, decided on the runs that exist: confirmed, refuted or undecided.

    python experiments/claims.py [--runs runs] [--run] [--plan] [WORDS of run.py: backbone=hunyuan]

The claims, their measures and margins are in claims.yaml, the rules in claim_rules.py, the solver's
order and the paper's clock in claim_flows.py. `--plan` lists the runs needed; `--run` makes what is
missing, through run.py's own code, and can be typed again; without it the commands are printed. WORDS
ask the same of other backbones, schedules or prompts. Writes
experiments/results/claims_<backbone>.{json,md}: per claim sentence, source, rule, estimate, 95 %
interval, prompts and clips behind it, run ids and verdict; then regret per step and layer, and the
cosine of borrowed and true v' per step.
"""

import argparse
import json
import math
import shlex
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import claim_rules
import pandas as pd
from claim_flows import order_claims, speed_claims
from claim_rules import CLAIMS, RUNS, UNDECIDED, Claim, Measure
from configs import composed, recipe_of, weights_of
from script import RESULTS, markdown, result, run, write_result

from s2flow.errors import UserError
from s2flow.metrics import AGGREGATES
from s2flow.run import runner
from s2flow.store import generation_seconds, read_run, written_whole
from s2flow.store.outcome import black_frames
from s2flow.store.tasks import clip_tasks
from s2flow.video import read_video, to_bytes

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


def needs(runs_dir: Path, prompts: int, seeds: int, words: list[str]) -> dict[str, Need]:
    """All runs that the claims read, by name. Raises UserError for words that cannot work."""
    for word in words:
        if word.lstrip("+~").partition("=")[0] in VARIED:
            raise UserError(f"{word} is what the claims vary; leave it out (--prompts, --seeds)")
    plain = composed(words)
    weights = weights_of(plain)
    steps = recipe_of(plain, weights).steps
    t_i = {f"t{n}": round(steps * n / 50) for n in (40, 30, 20, 10)}
    embedded = plain.backbone.family == "tiny"
    base = ["prompts=world"] if embedded else ["prompts=vbench", "prompts.subset=half"]
    base = [] if "prompts" in {word.partition("=")[0] for word in words} else base
    base += [f"prompts.count={prompts}", f"seeds={seeds}"]
    by_name = {}
    for name, own in RUNS.items():
        own = [*words, *base, *(word.format(**t_i) for word in own)]
        cfg = composed([*own, f"runs_dir={json.dumps(str(runs_dir))}"])
        clips = frozenset((_prompt(t.prompt, t.original), t.seed) for t in clip_tasks(cfg))
        by_name[name] = Need(name, tuple(own), cfg, recipe_of(cfg, weights).run_id, clips)
    return by_name


def _prompt(text: str, original: str | None) -> str | tuple[str, str]:
    return text if original is None else (text, original)


def finished(runs_dir: Path, need: Need) -> dict[tuple, Record]:
    """The records of its clips that are done, by (prompt, seed)."""
    records = read_run(runs_dir / need.run_id) if (runs_dir / need.run_id).is_dir() else []
    keyed = {(_prompt(r["prompt"], r.get("original_prompt")), r["seed"]): r for r in records}
    return {k: r for k, r in keyed.items() if k in need.clips}


def make(runs_dir: Path, by_name: dict[str, Need]) -> int:
    """Make what is missing, run by run in this process; returns how many runs could not be finished."""
    failures = 0
    for need in by_name.values():
        if need.missing(finished(runs_dir, need)):
            try:
                runner.run(need.cfg)
            except UserError as error:
                print(f"{need.name}: {error}", file=sys.stderr)
                failures += 1
    return failures


# -- deciding ---------------------------------------------------------------------------------


def value(measure: Measure | str, record: Record, embedded: bool, folder: Path) -> float | None:
    """A measure of one clip; None where its record does not have it."""
    if isinstance(measure, Measure):
        scores = record.get("scores", {})
        if not embedded:
            return AGGREGATES[measure.vbench.lower()](scores) if measure.vbench else None
        if measure.own == "one_object":
            count = scores.get("object_count")
            return None if count is None else float(count == 1)
        return scores.get(measure.own)
    if measure == "failed":
        return failed(record, folder)
    if measure == "seconds":
        return math.log(generation_seconds(record))
    outer, inner = {"cosine": ("derivative_cosine", "lri")}.get(measure, ("oracle", measure))
    by_step = record.get(outer, {}).get(inner) or {}
    known = [x for x in by_step.values() if x is not None]
    return fmean(known) if known else None


def failed(record: Record, folder: Path) -> float:
    """1 for a clip that ended black or NaN. Old records do not tell: their mp4 is looked at."""
    if "outcome" in record:
        return float(record["outcome"] in ("black", "nan"))
    return float(black_frames(to_bytes(read_video(folder / record["video"]))) == 1)


def decided(
    claim: Claim, by_name: dict[str, Need], records: dict[str, dict], runs: Path, embedded: bool
) -> dict[str, Any]:
    """One claim with what follows from the records."""
    measure, margin, name = claim.measure, claim.margin, f"{claim.measure}"
    if isinstance(measure, Measure):
        sizes = measure.gain if claim.rule in ("above", "below") else measure.loss
        margin = sizes[0 if embedded else 1] if margin is None else margin
        name = measure.own if embedded else f"VBench {measure.vbench}"
    a, *rest = values = [
        {k: value(measure, r, embedded, runs / by_name[s].run_id) for k, r in records[s].items()}
        for s in claim.sides
    ]
    asked = (claim.prompts, claim.seeds)
    if measure == "failed":
        decision = claim_rules.decide_share(claim.rule, margin, a, *asked)
    else:
        least = math.log(margin) if measure == "seconds" else margin
        decision = claim_rules.decide(claim.rule, least, a, rest[0] if rest else None, *asked)
    if decision.verdict == UNDECIDED:
        absent = [f"{s} ({by_name[s].run_id})" for s in claim.sides if not records[s]]
        why = decision.why  # if nothing below tells better what to do
        if absent:
            why = f"runs missing: {', '.join(absent)}"
        elif isinstance(measure, Measure) and not embedded and measure.vbench is None:
            why = "VBench has no such dimension"
        elif any(all(x is None for x in v.values()) for v in values):
            why = "not scored: python -m s2flow.score" + " 'scorer=[vbench]'" * (not embedded)
        decision = replace(decision, why=why)
    name = f"{name}: {' minus '.join(claim.sides)}"
    if measure == "seconds":
        name = "ratio of seconds"
        numbers = {k: getattr(decision, k) for k in ("estimate", "low", "high")}
        decision = replace(decision, **{k: v and math.exp(v) for k, v in numbers.items()})
    return {
        "source": claim.source,
        "claim": claim.sentence,
        "measure": name,
        "note": claim.note,
        "rule": claim_rules.WORDS[claim.rule].format(m=margin),
        "runs": [by_name[s].run_id for s in claim.sides],
        **decision.rounded(),
    }


def details(records: dict[str, dict[tuple, Record]]) -> dict[str, Any]:
    """Means over clips: regret and coverage per step (and layer) and cosines per step."""
    oracle = [r["oracle"] for r in records["oracle"].values() if "oracle" in r]
    ours = records["s2flow"].values()
    cosines = [r["derivative_cosine"] for r in ours if "derivative_cosine" in r]
    layers = [o.get("regret_by_layer", {}) for o in oracle]
    return {
        "oracle_clips": len(oracle),
        "coverage_by_step": _by_step(o["coverage"] for o in oracle),
        "regret_by_step": _by_step(o["regret"] for o in oracle),
        "regret_by_step_and_layer": {
            n: _means(table[n] for table in layers if n in table)
            for n in dict.fromkeys(n for table in layers for n in table)
        },
        "cosine_clips": len(cosines),
        "cosine_lr_by_step": _by_step(c["lri"] for c in cosines if "lri" in c),
        "cosine_own_past_by_step": _by_step(c["history"] for c in cosines if "history" in c),
    }


def _means(tables: Iterable[dict[str, float | None]]) -> dict[str, float]:
    return pd.DataFrame(list(tables)).astype(float).mean().dropna().round(5).to_dict()


def _by_step(tables: Iterable[dict[str, float | None]]) -> dict[str, float]:
    """From noise to video."""
    return dict(sorted(_means(tables).items(), key=lambda item: -int(item[0])))


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
    head, rows = ("", "claim", "measure", "estimate [95 %]", "prompts, clips", "verdict"), []
    for row in result["claims"]:
        behind = f"{row['prompts']}, {row['clips']}" if row["prompts"] else ""
        verdict = f"**{row['verdict']}**" + (f": {row['why']}" if row["why"] else "")
        measure = "; ".join(filter(None, (row["measure"], row.get("note"), row["rule"])))
        rows.append((row["source"], row["claim"], measure, _estimate(row), behind, verdict))
    lines += [*markdown(head, rows), "", *_steps(result["details"])]
    return "\n".join(lines) + "\n"


def _estimate(row: dict[str, Any]) -> str:
    text = "" if row["estimate"] is None else f"{row['estimate']:.3f}"
    return text if row["low"] is None else f"{text} [{row['low']:.3f}, {row['high']:.3f}]"


def _steps(means: dict[str, Any]) -> list[str]:
    def shown(*numbers: float | None) -> list[str]:
        return ["" if x is None else f"{x:.3f}" for x in numbers]

    lines, by_layer = [], means["regret_by_step_and_layer"]
    if means["regret_by_step"]:
        layers = sorted({k for v in by_layer.values() for k in v}, key=int)
        head = ["step n", "HR's own coverage", "regret", *(f"layer {k}" for k in layers)]
        rows = [
            [n, *shown(means["coverage_by_step"][n], x, *map(by_layer.get(n, {}).get, layers))]
            for n, x in means["regret_by_step"].items()
        ]
        lines = [f"Regret of LR-chosen windows, {means['oracle_clips']} clips:", ""]
        lines += [*markdown(head, rows), ""]
    if means["cosine_lr_by_step"]:
        past = means["cosine_own_past_by_step"]
        rows = [[n, *shown(x, past.get(n))] for n, x in means["cosine_lr_by_step"].items()]
        lines += [f"Cosine with HR's own v', {means['cosine_clips']} clips:", ""]
        lines += markdown(("step n", "borrowed from LR", "of HR's own past"), rows)
    return lines


# -- the command ------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> int:
    """List, make, decide, write; 1 if runs that were to be made could not be."""
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
    by_name = needs(args.runs, args.prompts, args.seeds, args.words)
    failures = make(args.runs, by_name) if args.run and not args.plan else 0
    records = {name: finished(args.runs, need) for name, need in by_name.items()}
    print_missing(args, by_name, records)
    if args.plan:
        return 0
    cfg = by_name["s2flow"].cfg
    embedded = cfg.backbone.family == "tiny"
    rows = [decided(claim, by_name, records, args.runs, embedded) for claim in CLAIMS]
    rows += [*order_claims(closed_form), *speed_claims()]
    whole = result("claims", args.words, backbone=cfg.backbone.name, embedded=embedded)
    whole["runs"] = {n.name: {"run": n.run_id, "words": list(n.words)} for n in by_name.values()}
    whole |= {"claims": rows, "details": details(records)}
    path = args.out / f"claims_{cfg.backbone.name}"
    write_result(path.with_suffix(".json"), whole)
    with written_whole(path.with_suffix(".md")) as temporary:
        temporary.write_text(to_markdown(whole), encoding="utf-8")
    for row in rows:
        why = f"({row['why']})" if row["why"] else ""
        words = filter(None, (row["claim"], _estimate(row), why))
        print(f"{row['verdict']:10} {row['source']:9} {'  '.join(words)}")
    print(f"written: {path}.json, {path}.md")
    return int(failures > 0)


def closed_form(words: list[str]) -> Any:
    """The recipe of claim_flows.py's engines: the schedule of the embedded backbone."""
    return recipe_of(composed(["windows=full", "handoff=latent", *words]))


def print_missing(args: argparse.Namespace, by_name: dict, records: dict) -> None:
    """Which clips are missing, and the commands that make them."""
    lacking = {name: n.missing(records[name]) for name, n in by_name.items()}
    if args.plan:
        for name, need in by_name.items():
            have = len(need.clips) - lacking[name]
            print(f"{need.run_id}  {have:4} of {len(need.clips):4} clips  {name}")
    if not any(lacking.values()):
        return
    store, again = [], ["python", "experiments/claims.py", "--run", *args.words]
    if args.runs != Path("runs"):
        again, store = [*again, "--runs", str(args.runs)], [f"runs_dir={args.runs}"]
    total, again = sum(lacking.values()), shlex.join(again)
    print(f"{total} clips are missing; {again} makes them all, or:", file=sys.stderr)
    for name, n in lacking.items():
        if n:
            words = shlex.join([*by_name[name].words, *store])
            print(f"  python run.py {words}  # {n} clips", file=sys.stderr)


if __name__ == "__main__":
    run(main)
