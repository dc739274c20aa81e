"""The one exception that is meant for the person at the terminal."""


class UserError(ValueError):
    """What the user typed cannot be done: one line with what, the value, and what to type."""
