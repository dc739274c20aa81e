"""The paper's claims, each in a sentence, with the rule and the margin that decide it.

A measure has two faces: on a real backbone VBench's Temporal, Visual and Mean, as in the paper; on
an embedded one its world's own (agreement with the caption, detail, exactly one object), which are
not VBench's and never called so. `gain` is the smallest gain that counts, `loss` the largest loss
that is none. On VBench they follow the paper, whose methods differ by .002 to .005, which calls .003
"marginal" and .06 "significant"; of the world, agreement is a mean of five questions, so .05 is one
wrong answer in four clips and .01 one in twenty. They were chosen when one seed of the embedded
backbone was known, before the three that decide.

Runs are named by the words that make them; those of Tables 1-4 are the same runs as
experiment=table1 ... table4 at `prompts.count=64 seeds=3`. The hand-off of Table 4 is matched by the
fraction of steps that remain, as tables.py does.
"""

from dataclasses import dataclass

from s2flow.metrics import mean, temporal, visual


@dataclass(frozen=True)
class Measure:
    """A quantity of a clip's scores on both kinds of backbone; None: has no such."""

    name: str
    own: str | None
    vbench: str | None
    gain: tuple[float, float]  # own, VBench
    loss: tuple[float, float]


QUALITY = Measure("quality", "world_agreement", "Mean", (0.01, 0.001), (0.05, 0.005))
DETAIL = Measure("detail", "detail", "Visual", (0.02, 0.002), (0.05, 0.01))
OBJECT = Measure("structure", "one_object", None, (0.02, 0.02), (0.05, 0.05))
VBENCH = {"Temporal": temporal, "Visual": visual, "Mean": mean}


@dataclass(frozen=True)
class Claim:
    """a, b: names of RUNS; measure: of the scores, or a word that claims.py reads from records.

    margin: None takes the measure's gain (above, below) or loss (the other rules).
    """

    source: str
    sentence: str
    rule: str
    a: str
    b: str | None
    measure: Measure | str
    margin: float | None = None
    prompts: int = 64
    seeds: int = 3
    note: str = ""


RUNS = {  # {t40} ... {t10}: steps that remain, the paper's 40 to 10 of 50 as a share of the backbone's
    "s2flow": (),
    "native": ("method=native",),
    "cascade": ("method=cascade",),
    "diffusehigh": ("method=diffusehigh",),
    "hiflow": ("method=hiflow",),
    "macs": ("method=macs",),
    "s=0.25": ("sparsity=0.25",),
    "s=0.75": ("sparsity=0.75",),
    "s=1": ("windows=full",),
    "fixed": ("windows=fixed",),
    "order 1": ("order=1",),
    "order 3": ("order=3",),
    "t_i 40/50": ("t_i={t40}",),
    "t_i 30/50": ("t_i={t30}",),
    "t_i 20/50": ("t_i={t20}",),
    "t_i 10/50": ("t_i={t10}",),
    "oracle": ("windows=oracle",),
}

RIVALS = {"diffusehigh": "DiffuseHigh", "hiflow": "HiFlow", "macs": "MACS"}
CLAIMS = [
    Claim(
        "Table 1",
        "S²Flow makes better videos than the backbone at HR",
        "above",
        "s2flow",
        "native",
        QUALITY,
    ),
    *(
        Claim(
            "Table 1", f"S²Flow makes better videos than {name}", "above", "s2flow", run, QUALITY
        )
        for run, name in RIVALS.items()
    ),
    *(
        Claim("Table 1", f"S²Flow shows more detail than {name}", "above", "s2flow", run, DETAIL)
        for run, name in RIVALS.items()
    ),
    *(
        Claim(
            "Figure 4",
            f"S²Flow distorts structure less often than {name}",
            "above",
            "s2flow",
            run,
            OBJECT,
        )
        for run, name in RIVALS.items()
    ),
    Claim(
        "Table 2",
        "Half of the attention (s = 0.5) loses nothing against all of it",
        "no loss",
        "s2flow",
        "s=1",
        QUALITY,
    ),
    Claim(
        "Table 2",
        "Three quarters (s = 0.75) lose nothing against all of it",
        "no loss",
        "s=0.75",
        "s=1",
        QUALITY,
    ),
    Claim(
        "Table 2",
        "A quarter (s = 0.25) is much worse than half",
        "drops",
        "s=0.25",
        "s2flow",
        QUALITY,
    ),
    Claim(
        "Table 2",
        "Fixed windows fail to generate (black frames)",
        "over",
        "fixed",
        None,
        "failed",
        0.5,
        note="share of clips that end black or NaN; tried here is one shape, a cube of half the volume",
    ),
    Claim(
        "Table 2",
        "Adaptive windows are better than fixed ones of the same volume",
        "above",
        "s2flow",
        "fixed",
        QUALITY,
    ),
    Claim("Figure 5", "Windows alone cost a little detail", "below", "order 1", "cascade", DETAIL),
    Claim("Figure 5", "The second order brings detail back", "above", "s2flow", "order 1", DETAIL),
    Claim("Table 3", "Order 2 is better than order 1", "above", "s2flow", "order 1", QUALITY),
    Claim("Table 3", "Order 3 is about as good as order 2", "alike", "order 3", "s2flow", QUALITY),
    *(
        Claim(
            "Table 4",
            f"Handing off at 30 of 50 steps is better than at {n}",
            "above",
            "t_i 30/50",
            f"t_i {n}/50",
            QUALITY,
        )
        for n in (40, 20, 10)
    ),
    Claim(
        "Table 4",
        "Handing off late (10 of 50) costs detail",
        "below",
        "t_i 10/50",
        "t_i 30/50",
        DETAIL,
    ),
    Claim(
        "Figure 3",
        "Attention is local: the best window of half the volume holds 90 % of it",
        "over",
        "oracle",
        None,
        "coverage",
        0.9,
        note="HR attention, mean over steps, layers, heads",
    ),
    Claim(
        "Eq. 9",
        "LR attention finds HR's windows: they cover at most .05 less than HR's own choice",
        "under",
        "oracle",
        None,
        "regret",
        0.05,
        note="mean over steps, layers, heads",
    ),
    Claim(
        "Eq. 12",
        "LR derivatives stand for HR's: their cosine is above .5",
        "over",
        "s2flow",
        None,
        "cosine",
        0.5,
        note="mean over steps; of two vectors of one length, borrowing helps from .5 on",
    ),
    Claim(
        "Table 1",
        "S²Flow is four times as fast as the backbone at HR, from prompt to video",
        "over",
        "native",
        "s2flow",
        "seconds",
        4.0,
        note="measured here, ratio of seconds; embedded backbones have few HR tokens, "
        "so attention is a small share of it",
    ),
]
