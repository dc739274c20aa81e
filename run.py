"""S²Flow experiments: `python run.py --help` explains every knob."""

import hydra
from omegaconf import DictConfig

import s2flow.recipe.schema  # noqa: F401  (registers the schema behind conf/)
from s2flow.process.stopping import caught
from s2flow.recipe.limits import check_choices
from s2flow.terminal.cli import reported, terminal


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> dict:
    """One job of a run or sweep."""
    with caught(working=True), reported():
        check_choices(cfg)  # before what takes seconds to import
        from s2flow.run.runner import run  # torch and diffusers stay out of --help and refusals

        return run(cfg)


if __name__ == "__main__":
    with terminal(), caught():
        main()
