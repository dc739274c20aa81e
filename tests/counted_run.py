"""run.py, noting every clip that it begins: `python counted_run.py NOTES WORDS...`."""

import os
import runpy
import sys
from pathlib import Path

from s2flow import methods

notes, generate = sys.argv.pop(1), methods.generate


def noted(backbone, recipe, prompts, seeds, **how):
    with open(notes, "ab", buffering=0) as file:  # one write each, so that processes may share it
        file.write(f"{os.getpid()} {prompts[0]}\n".encode())
    return generate(backbone, recipe, prompts, seeds, **how)


methods.generate = noted
sys.argv[0] = str(Path(__file__).parents[1] / "run.py")
runpy.run_path(sys.argv[0], run_name="__main__")
