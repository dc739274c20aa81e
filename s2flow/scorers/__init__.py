"""What is measured on a finished clip.

A scorer is a small class, built from its config arguments and called with one clip:

    scorer(clip) -> {"name of the score": value or None}

It looks only at what was saved (the decoded mp4, the prompt, the seed, the other runs beside it),
never at the model, so a clip can be scored again years later. None means "does not apply to this
clip" and becomes JSON null; a scorer never answers NaN and never guesses. Whatever is missing
outside of the clip (another run, another package, weights) is an error that says what to type. A
scorer with weights names them in `weights`; one whose definition changes raises its `version`: both
are recorded, and a clip that was scored with others is scored again.

    builtin.py    temporal flickering as VBench defines it; needs nothing else
    fidelity.py   PSNR, SSIM and relative error against the same clip of another run
    world.py      does a clip of the toy world show what its caption says? how often? how sharply?
    oracle.py     the trained classifier behind world.py

A new scorer is a class in a file here and a yaml in conf/scorer/ that names it.
"""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor


@dataclass(frozen=True)
class Clip:
    """A generated clip as the scorers see it.

    video: (T, H, W, 3) float32 in [0, 1], decoded from the saved mp4.
    runs_dir: the folder that holds all runs, `runs_dir/<run_id>/records/...`.
    low: the LR video of the cascade in the same layout, where there was one.
    """

    video: Tensor
    prompt: str
    seed: int
    runs_dir: Path
    low: Tensor | None = None
