"""S²Flow: training-free high-resolution video generation, guided by the low-resolution flow."""

import importlib.metadata
import os
import sys

# Before torch starts its threads: by default they spin while they wait, and on cores that anything
# else uses as well a clip then takes thirty times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

if sys.argv[:1] == ["-m"]:  # `python -m s2flow.X` is about to start
    from s2flow.errors import printable

    printable()


def __getattr__(name: str):
    """`s2flow.generate`, `Result`, `__version__`: torch and diffusers are imported when asked for."""
    if name in ("generate", "Result"):
        from s2flow import api

        return getattr(api, name)
    if name == "__version__":
        return importlib.metadata.version("s2flow")
    raise AttributeError(f"module 's2flow' has no attribute {name!r}")
