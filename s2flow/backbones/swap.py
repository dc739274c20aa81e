"""Attributes of an object that are others for a while."""

import contextlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def swapped(owner: Any, **values: Any) -> Iterator[None]:
    """Within, these attributes of `owner` have these values; what its class provided is so again."""
    own = {k for k in values if k in vars(owner) or not hasattr(type(owner), k)}
    before = {k: getattr(owner, k) for k in own}
    for name, value in values.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for name in values:
            setattr(owner, name, before[name]) if name in own else delattr(owner, name)
