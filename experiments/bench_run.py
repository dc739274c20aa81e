"""Wall time of the commands a new user types, each in a fresh process and an empty runs folder.

    python experiments/bench_run.py [--repeats 3]

Times `python run.py` and `python run.py -m sparsity=0.25,0.5,0.75` (one prompt) from outside, imports
and loading included, and writes experiments/results/bench_run.json. Quote the median.
"""

import argparse
import json
import tempfile
from pathlib import Path
from statistics import median

from commands import measured, places
from script import RESULTS, result, write_result

COMMANDS = {"run": [], "sweep of 3": ["-m", "sparsity=0.25,0.5,0.75"]}


def main() -> None:
    """Run, time, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for name, words in COMMANDS.items():
        for _ in range(repeats):
            with tempfile.TemporaryDirectory() as folder:
                took = measured(["run.py", *words, *places(Path(folder))])
                times[name].append(took["seconds"])
    data = result("bench_run", ["--repeats", str(repeats)], seconds=times)
    data["median"] = {name: median(s) for name, s in times.items()}
    write_result(RESULTS / "bench_run.json", data)
    print(json.dumps(data))


if __name__ == "__main__":
    main()
