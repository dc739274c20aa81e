"""The one exception that is meant for the person at the terminal, and how a command prints it."""

import sys


class UserError(ValueError):
    """What the user typed cannot be done: one line with what, the value, and what to type."""


WANTED = {  # what OmegaConf says of a value -> what to type
    "to Integer": "a whole number",
    "to Float": "a number",
    "not a ListConfig": "a list in brackets",
    "not a valid bool": "true or false",
    "not Optional": "a value other than null",
}


def printable() -> None:
    """From here on, what the terminal's encoding cannot hold is printed as `?`, not raised."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not of a notebook or a test
            stream.reconfigure(errors="replace")


def print_error(error: BaseException) -> None:
    """`error: ...` on one line of standard error."""
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)


def note(text: str) -> None:
    """`note: ...` on one line of standard error: something the user should know, and no error."""
    print(f"note: {' '.join(text.split())}", file=sys.stderr)
