"""Native: the backbone at high resolution from pure noise, N Euler steps, full attention.

With `rope=interpolate` positions stay within the LR range: a cheap and strong baseline.
"""

from s2flow.cascade import Cascade, Generated

KNOBS = ("rope", "temperature")


def generate(run: Cascade) -> Generated:
    """The unmodified model beyond its training resolution."""
    z = run.noise(run.high_shape, "high")
    return run.finish(run.high_flow(z, run.recipe.steps))
