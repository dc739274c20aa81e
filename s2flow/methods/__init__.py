"""The compared methods, one file per row of Table 1, all of one shape:

    KNOBS     names of the recipe's fields that this method reads, beyond those that all read
    generate(run: Cascade) -> Generated

A new method is one such file and `conf/method/<name>.yaml`.
"""

import importlib
import pkgutil
from types import ModuleType

from s2flow.errors import UserError

CASCADE_KNOBS = ("low", "t_i", "handoff", "noise", "rope", "temperature", "shift_high")


def method(name: str) -> ModuleType:
    """The module of a method by name; raises UserError with the names that exist."""
    names = sorted(m.name for m in pkgutil.iter_modules(__path__))
    if name not in names:
        raise UserError(f"method={name} is unknown; type one of method={'|'.join(names)}")
    return importlib.import_module(f"{__name__}.{name}")
