"""`python -m s2flow.scorers.vbench check [dimension ...] [--cache DIR]`: which weights are present."""

import argparse
import importlib
import sys

from s2flow.errors import UserError, print_error
from s2flow.scorers.vbench import (
    DIMENSIONS,
    INSTALL,
    compat,
    known_dimensions,
    package_problem,
    weights,
    worker,
)


def check(dimensions: list[str], cache: str | None = None) -> int:
    """Print package and weights of some dimensions; 0 if all is there, else 1."""
    dimensions = known_dimensions(dimensions or DIMENSIONS)
    folder = weights.cache_folder(cache)
    package_fits = _print_package(dimensions)
    print(f"\nweights below {folder}")
    files = weights.look(dimensions, folder)
    bad = [f for f in files if f.state in ("missing", "wrong hash")]
    for f in files:
        state = "with openai-clip" if f.state == "bundled" else f.state
        print(f"\n{state:18}{f.weight.dimension:24}{f.weight.size:14}{f.weight.licence}")
        print(f"{'':18}{f.path}")
        if f in bad:
            print(f"{'':18}{f.weight.url}")
        if f.sha256:
            why = "as expected" if f.trusted or f.state == "bundled" else "no full hash is known"
            why = f"expected {f.weight.sha256}..." if f.state == "wrong hash" else why
            print(f"{'':18}sha256 {f.sha256}, {why}")
    if "temporal_flickering" in dimensions:
        print(f"\n{'needs none':18}temporal_flickering")
    if bad:
        print(
            f"\n{len(bad)} of {len(files)} files are missing or wrong. Put them there by hand, or type "
            "scorer.vbench.allow_download=true where you score"
        )
    return 0 if package_fits and not bad else 1


def _print_package(dimensions: tuple[str, ...]) -> bool:
    versions = worker.versions()
    problem = package_problem(versions.get("vbench"))
    if problem:
        print(f"{problem}; type {INSTALL}")
        return False
    try:
        declared = compat.torchvision_operators()
        with compat.imports(weights.cache_folder(None)):
            for name in dimensions:
                if name != "overall_consistency":  # reads its vocabulary when imported
                    importlib.import_module(f"vbench.{name}")
            importlib.import_module("timm")
    except Exception as error:
        print(f"vbench {versions['vbench']} cannot be imported ({error}); type {INSTALL}")
        return False
    print(", ".join(f"{k} {v}" for k, v in versions.items()))
    if declared:
        vision = versions["torchvision"]
        print(
            f"torchvision {vision} was built for another torch than {versions['torch']}: VBench runs, "
            "but diffusers cannot be imported beside it; install torchvision from where your torch is "
            f"from, such as torchvision=={vision.split('+')[0]} "
            "--index-url https://download.pytorch.org/whl/cpu"
        )
    return True


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser("python -m s2flow.scorers.vbench", description=__doc__)
    parser.add_argument("command", choices=["check"])
    parser.add_argument("dimensions", nargs="*", metavar="dimension")
    parser.add_argument("--cache", help="folder of the weights; default VBENCH_CACHE_DIR")
    typed = parser.parse_args(argv)
    try:
        return check(typed.dimensions, typed.cache)
    except UserError as error:
        print_error(error)
        return 2


if __name__ == "__main__":
    sys.exit(main())
