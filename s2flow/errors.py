"""The one exception that is meant for the person at the terminal."""


class UserError(ValueError):
    """What the user typed cannot be done: one line with what, the value, and what to type."""


WANTED = {  # what OmegaConf says of a value -> what to type
    "to Integer": "a whole number",
    "to Float": "a number",
    "not a ListConfig": "a list in brackets",
    "not a valid bool": "true or false",
    "not Optional": "a value other than null",
}
