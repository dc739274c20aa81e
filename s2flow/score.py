"""`python -m s2flow.score`: see `s2flow.scorers.score`."""

from s2flow.scorers.score import main
from s2flow.terminal.cli import terminal

if __name__ == "__main__":
    with terminal():
        main()
