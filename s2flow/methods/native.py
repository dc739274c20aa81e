"""Native: the backbone at high resolution from pure noise, N Euler steps, full attention.

With `rope=interpolate` its positions stay within the LR range: cheap, and a strong baseline.
"""

from s2flow.cascade import Cascade, Generated

KNOBS = ("rope", "temperature")


def generate(run: Cascade) -> Generated:
    """What the unaided model does beyond its training resolution."""
    z = run.noise(run.high_shape, "high")
    return run.finish(run.high_flow(z, run.recipe.steps))
