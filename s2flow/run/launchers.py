"""Hydra's launchers: their requirements are checked before a sweep starts.

    hydra/launcher=joblib        processes of this machine, as many as cores / threads
    hydra/launcher=slurm         Slurm jobs, by submitit
    hydra/launcher=ray_cluster   tasks of a Ray cluster that runs already
    hydra/launcher=gpus          one job per GPU of this machine, by a private Ray

The presets are in conf/hydra/launcher; joblib is the plugin's own. Remote jobs log errors to their own
stderr, and Hydra raises the first failure only. So each job writes its error to its output folder, and
the sweep prints all of them at its end.
"""

import atexit
import shutil
import sys
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, read_write

from s2flow.errors import UserError
from s2flow.process.ranks import free_jobs
from s2flow.terminal.cli import one_line

REMOTE_LAUNCHERS = ("slurm", "submitit", "ray", "gpus")  # their jobs have a separate stderr


class Ready(Callback):
    """Hydra callback: refuses a launcher that cannot work here, and prints errors of remote jobs."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Exit with 2 for a launcher without a sweep: Hydra would run the job in this process."""
        name = _launcher(config)
        if name != "basic":
            _refuse(f"hydra/launcher={name} is for sweeps; type python run.py -m ... with it")

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Exit with 2 for a launcher whose requirements are not met."""
        name = _launcher(config)
        try:
            check(name, config.hydra.launcher)
        except UserError as error:
            _refuse(one_line(error))
        if name == "joblib" and config.hydra.launcher.n_jobs == -1:  # its default: all cores
            with read_write(config):
                config.hydra.launcher.n_jobs = free_jobs(config.threads)
        if name.startswith(REMOTE_LAUNCHERS):
            atexit.register(print_errors, Path(config.hydra.sweep.dir))

    def on_job_end(self, config: DictConfig, job_return: Any, **kwargs: Any) -> None:
        """Write the error of a job beside its log."""
        value = getattr(job_return, "_return_value", None)
        path = Path(config.hydra.runtime.output_dir) / "error.txt"
        path.unlink(missing_ok=True)
        if isinstance(value, Exception):
            line = one_line(value) if isinstance(value, UserError) else repr(value)
            path.write_text(line + "\n")


def check(name: str, launcher: DictConfig) -> None:
    """Raises UserError for a launcher that cannot start jobs here. Starts or joins Ray if needed."""
    there = shutil.which("sbatch") and shutil.which("srun")
    if name in ("slurm", "submitit_slurm") and not there:
        raise UserError(
            f"hydra/launcher={name} needs sbatch and srun, and this machine has none; type it where "
            "Slurm is, or hydra/launcher=joblib"
        )
    if name in ("gpus", "ray_cluster"):
        import torch  # as `executor` does; other launchers do without

        from s2flow.run import executor

        if name == "gpus" and not torch.cuda.device_count():
            raise UserError(
                "hydra/launcher=gpus: torch finds no GPU on this machine; type "
                "hydra/launcher=joblib device=cpu"
            )
        executor.start(launcher.ray.init.address)


def print_errors(folder: Path) -> None:
    """Print the errors of the jobs below a sweep's folder, a line each."""
    for path in sorted(folder.glob("*/error.txt"), key=lambda p: (len(p.parent.name), p)):
        print(f"error: job {path.parent.name}: {path.read_text().strip()}", file=sys.stderr)


def _launcher(config: DictConfig) -> str:
    return config.hydra.runtime.choices.get("hydra/launcher") or "basic"


def _refuse(line: str) -> None:
    """Print and exit: Hydra suppresses exceptions of callbacks, but not SystemExit."""
    print(f"error: {line}", file=sys.stderr)
    sys.exit(2)
