"""VBench in an environment of its own, with the versions that it pins.

VBench 0.1.5 pins transformers 4.33.2 and numpy below 2, which conflict with diffusers 0.42. Here
`worker.py` runs under a Python that you name, keeps its models, and never imports s2flow. Verdicts have
the version `vbench-0.1.5-subprocess` and the package versions of that environment.

    python3.11 -m venv vbench-env
    vbench-env/bin/python -m pip install vbench==0.1.5 torch==2.13.0 torchvision==0.28.0
    python -m s2flow.score 'scorer=[vbench_subprocess]' \\
        scorer.vbench_subprocess.python=vbench-env/bin/python

After a worker died, its clip has failed and a new worker is started for the next clip, unless the dead
one never gave a score.
"""

import json
import subprocess
import tempfile
from functools import cached_property
from pathlib import Path
from typing import Any

from s2flow.errors import UserError
from s2flow.scorers.vbench import VBench, package_problem, worker


class VBenchSubprocess(VBench):
    """`VBench` in the environment of another Python; further arguments as there.

    python: its interpreter. device auto means the one that s2flow would use.
    """

    KEY, SUFFIX = "vbench_subprocess", "-subprocess"

    def __init__(self, python: str, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.python = str(python)
        self._process: subprocess.Popen | None = None
        self._answered = True  # whether the last worker gave any score

    def check_package(self) -> None:
        """Start the worker. Raises UserError if there is no such Python, or no VBench in it."""
        problem = package_problem(self.versions.get("vbench"))
        if problem:
            raise UserError(
                f"{problem} for python={self.python}; type {self.python} -m pip install vbench==0.1.5"
            )

    @cached_property
    def hello(self) -> dict[str, Any]:
        """The worker's first answer: its versions and the path of VBench's list of prompts."""
        return self._start()

    @property
    def versions(self) -> dict[str, str]:
        """{package: version} in the worker's environment."""
        return self.hello["versions"]

    def info_path(self) -> Path:
        """See `VBench`; the worker's copy unless one is given."""
        self.full_info = self.full_info or self.hello["full_info"]
        return super().info_path()

    def evaluate(self, dimension: str, path: str, prompt: str) -> float | None:
        """See `VBench`. Raises UserError if the worker dies, RuntimeError for its errors."""
        if self._process is None or self._process.poll() is not None:
            if not self._answered:
                raise UserError(self._death_message())
            self._start()
        answer = self._ask({"dimension": dimension, "video": path, "prompt": prompt})
        self._answered = True
        if "error" in answer:
            raise RuntimeError(f"VBench under {self.python}: {answer['error']}")
        return answer["score"]

    def close(self) -> None:
        """End the worker."""
        if self._process is not None:
            self._process.stdin.close()
            self._process.wait()

    def _start(self) -> dict[str, Any]:
        self._log = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115
        self._answered = False
        command = [self.python, "-I", worker.__file__]  # -I: nothing of ours on its path
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._log}
        try:
            self._process = subprocess.Popen(command, encoding="utf-8", **pipes)
        except OSError as error:
            raise UserError(
                f"python={self.python} cannot be started ({error.strerror}); type the path of the "
                "interpreter in VBench's environment, such as vbench-env/bin/python"
            ) from None
        return self._ask(self.setup(self.dimensions))

    def _ask(self, what: dict[str, Any]) -> dict[str, Any]:
        try:
            self._process.stdin.write(json.dumps(what) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line.endswith("\n"):
            self._process.wait()
            raise UserError(self._death_message())
        return json.loads(line)

    def _death_message(self) -> str:
        self._log.seek(0)
        last = (self._log.read().strip() or "nothing").splitlines()[-1]
        return (
            f"the VBench worker under python={self.python} ended with code "
            f"{self._process.returncode}, and its last line is: {last}; repair that environment"
        )
