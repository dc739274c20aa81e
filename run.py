"""S²Flow experiments: `python run.py --help` explains every knob."""

import hydra
from omegaconf import DictConfig

import s2flow.recipe.schema  # noqa: F401  (registers the schema behind conf/)
from s2flow.process.stopping import caught
from s2flow.terminal.cli import reported, terminal


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> dict:
    """One job of a run or sweep."""
    from s2flow.run.runner import run  # diffusers and transformers stay out of --help

    with caught(working=True), reported():
        return run(cfg)


if __name__ == "__main__":
    with terminal(), caught():
        main()
