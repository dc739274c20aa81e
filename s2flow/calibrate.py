"""`python -m s2flow.calibrate`: see `s2flow.run.calibrate`."""

from s2flow.run.calibrate import main
from s2flow.terminal.cli import terminal

if __name__ == "__main__":
    with terminal():
        main()
