"""Wall time of the commands a new user types, each in a fresh process and an empty runs folder.

    python experiments/bench_run.py [--repeats 3]

Times `python run.py` and `python run.py -m sparsity=0.25,0.5,0.75` (one prompt) from outside, imports
and loading included, and writes experiments/results/bench_run.json with the machine's name. Quote the
median.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from s2flow.process.provenance import provenance

ROOT = Path(__file__).parent.parent
COMMANDS = {"run": [], "sweep of 3": ["-m", "sparsity=0.25,0.5,0.75"]}


def main() -> None:
    """Run, time, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    result = {
        "command": f"python experiments/bench_run.py --repeats {args.repeats}",
        **{k: v for k, v in provenance("cpu").items() if k not in ("command", "host")},
        "seconds": {
            name: [seconds(words) for _ in range(args.repeats)] for name, words in COMMANDS.items()
        },
    }
    result["median"] = {name: median(s) for name, s in result["seconds"].items()}
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    (folder / "bench_run.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


def seconds(words: list[str]) -> float:
    """Wall seconds of one `python run.py` with these words, in an empty runs folder."""
    with tempfile.TemporaryDirectory() as folder:
        words = [*words, f"runs_dir={folder}/runs", f"hydra.run.dir={folder}/out"]
        words += [f"hydra.sweep.dir={folder}/out"]
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, "run.py", *words], cwd=ROOT, check=True, capture_output=True
        )
        return round(time.perf_counter() - start, 1)


if __name__ == "__main__":
    main()
