"""Wall seconds, CPU seconds and peak memory of commands, each in a process of its own."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from script import ROOT

ONE_THREAD = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def measured(*commands: list[str], env: dict[str, str] | None = None) -> dict[str, float]:
    """Seconds until all of some commands, started at once, have ended, and CPU seconds of all.

    words: what follows `python`. peak_mb: of the largest process. Exits with the output of a command
    that fails.
    """
    start, cpu, peak = time.perf_counter(), 0.0, 0
    with tempfile.TemporaryDirectory() as folder:
        logs = [Path(folder, str(i)) for i in range(len(commands))]
        started = []
        for words, log in zip(commands, logs, strict=True):
            with open(log, "w") as out:
                more = {"cwd": ROOT, "env": os.environ | (env or {}), "stdout": out}
                command = [sys.executable, *words]
                started.append(subprocess.Popen(command, stderr=subprocess.STDOUT, **more))
        for process, words, log in zip(started, commands, logs, strict=True):
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode:
                sys.exit(f"python {' '.join(words)} failed: {log.read_text()}")
            cpu += used.ru_utime + used.ru_stime
            peak = max(peak, used.ru_maxrss)
    seconds = round(time.perf_counter() - start, 2)
    return {"seconds": seconds, "cpu_seconds": round(cpu, 2), "peak_mb": round(peak / 1e3)}


def places(folder: Path) -> list[str]:
    """Words of run.py that keep everything it writes below a folder."""
    return [f"runs_dir={folder}", f"hydra.run.dir={folder}/out", f"hydra.sweep.dir={folder}/out"]
