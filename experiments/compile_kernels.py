"""Compile the Triton kernels for GPUs that are not there, and look at what came out.

Command:   python experiments/compile_kernels.py          (Linux, the package triton; no GPU)
           --quick: head_dim 128 in bfloat16 alone
Cost:      about 5 s a kernel on one core, 15 minutes for all; 3 minutes with --quick
Expected:  experiments/results/kernels_aot.json and a table: for each kernel, chip (sm_80, 90, 100),
           head_dim, dtype and configuration the registers, the bytes spilled (0), shared memory (no
           more than the chip has) and the matrix instructions (mma.sync, wgmma, tcgen05; none in
           float32, which stays exact). Exit status 1 if one spills or asks for too much.

Says nothing about speed: nothing runs.
"""

import argparse
import inspect
import itertools
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from s2flow.attention import coverage_kernel, window_kernel
from s2flow.attention.triton import configs
from s2flow.coverage import launch_options

SHARED = {80: 163, 90: 227, 100: 227}  # KiB that one block may have
TYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
MATRIX = ("mma.sync", "wgmma.mma_async", "tcgen05.mma")


def compiled(kernel, chip: int, dtype: torch.dtype, options: dict[str, Any]):
    """A kernel compiled for sm_<chip>; options: its constexprs, num_warps and num_stages."""
    names = list(inspect.signature(kernel.fn).parameters)
    fixed = {n: x for n, x in options.items() if n in names}
    floats = ("Lse",) if kernel is not coverage_kernel.brick_sums else ("Out",)
    if kernel is window_kernel.of_text:
        floats = ("Out", "Lse")
    types = dict.fromkeys(names, "i32")  # Triton's words for the types of the arguments
    types |= {n: "i64" for n in names if re.fullmatch("[qkvo]_b", n)}  # strides may pass 2^31
    types |= dict.fromkeys(("windows", "offsets", "chosen", "slots"), "*i32")
    types |= dict.fromkeys(("Q", "K", "V", "Out"), f"*{TYPES[dtype]}")
    types |= dict.fromkeys(floats, "*fp32") | dict.fromkeys(fixed, "constexpr")
    types = {n: types[n] for n in names}
    aligned = [n for n in names if types[n].startswith("*") or re.fullmatch("[qkvo]_[bhl]", n)]
    source = ASTSource(
        fn=kernel,
        signature=types,
        constexprs={(names.index(n),): x for n, x in fixed.items()},
        attrs={(names.index(n),): [["tt.divisibility", 16]] for n in aligned},
    )
    rest = {n: x for n, x in options.items() if n not in names}
    return triton.compile(source, target=GPUTarget("cuda", chip, 32), options=rest)


def looked_at(kernel) -> dict[str, Any]:
    """Registers, spilled bytes, shared KiB and matrix instructions of a compiled kernel."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = subprocess.check_output([tool, "-res-usage", file.name], text=True)
    ptx = kernel.asm["ptx"]
    return {
        "registers": int(re.search(r"REG:(\d+)", usage)[1]),
        "spilled": int(re.search(r"STACK:(\d+)", usage)[1]),
        "shared_kib": round(kernel.metadata.shared / 1024, 1),
        "matrix": {name: n for name in MATRIX if (n := ptx.count(name))},
        "async_copies": ptx.count("cp.async.cg") + ptx.count("cp.async.ca"),
    }


def cases(chip: int, d: int, dtype: torch.dtype) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """(name, kernel, options) of everything that may be launched at this head_dim and dtype."""
    fixed = {"D": d, "D_PADDED": 1 << (d - 1).bit_length()}
    for ragged, volume in ((False, 128), (True, 128), (False, 32)):
        own = {"VOLUME": volume, "RAGGED": ragged, "TEXT": True}
        for config in configs(d, dtype, volume, ragged, chip):
            name = f"windowed, {'ragged ' if ragged else ''}bricks of {volume}"
            yield name, window_kernel.windowed, fixed | own | config._asdict()
    config = configs(d, dtype, 64)[0]._asdict()
    yield "of_text", window_kernel.of_text, fixed | config | {"SPLITS": 4}
    for volume in (32, 4):
        options = launch_options(d, dtype, volume, many=True)
        yield f"brick_sums, bricks of {volume}", coverage_kernel.brick_sums, options


def main() -> None:
    """See the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="head_dim 128 in bfloat16 alone")
    quick = parser.parse_args().quick
    dims, types = ([128], [torch.bfloat16]) if quick else ([64, 96, 128], list(TYPES))
    rows, wrong = [], 0
    for chip, d, dtype in itertools.product(SHARED, dims, types):
        for name, kernel, options in cases(chip, d, dtype):
            facts = looked_at(compiled(kernel, chip, dtype, options))
            bad = facts["spilled"] > 0 or facts["shared_kib"] > SHARED[chip]
            wrong += bad
            tiles = [options.get(x) for x in ("BLOCK_M", "BLOCK_R", "BLOCK_N")]
            config = "x".join(str(x) for x in tiles if x)
            config += f" warps {options['num_warps']} stages {options['num_stages']}"
            of = {"chip": f"sm_{chip}", "head_dim": d, "dtype": TYPES[dtype], "kernel": name}
            rows.append(of | {"config": config} | facts)
            print(*of.values(), config, *facts.values(), "TOO MUCH" if bad else "", flush=True)
    if not quick:
        versions = {"triton": triton.__version__, "torch": torch.__version__}
        text = json.dumps({"versions": versions, "kernels": rows}, indent=1)
        path = Path(__file__).parent / "results" / "kernels_aot.json"
        path.write_text(f"{text}\n")
    if wrong:
        sys.exit(f"{wrong} configurations spill or need more shared memory than the chip has")


if __name__ == "__main__":
    main()
