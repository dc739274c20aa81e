"""The LR flow of a clip and its cache: computed once, shared by every HR variant.

It depends on backbone, weights, prompt, seed, LR size, steps, shift, guidance and the parameters of its
coverage, and on nothing that the HR stage varies (sparsity, order, solver, windows, t_i, hand-off,
method). `LowFlowCache` keeps flows by a hash of these: the most recent in memory, and in a folder

    <folder>/<key>.safetensors    sigma (N+1,) float64; z, v (N+1, C, T, h, w) and coverage
                                  (N+1, layers, heads, g_t, g_h, g_w) float32; the key in full

Files are written atomically, and `limit` bounds their total bytes (least recently used first out). A
file is used only if its tensors have the hash in its header and the header has the requested key.
Anything else is a miss, reported in one line, and is written again. Numbers are stored in full
precision, so a cached flow gives the identical HR clip. (A clip made in a batch differs from one made
alone by rounding; the first one that was made is kept.)

At 1280x768x117, 50 steps, HunyuanVideo's flow takes 3.2 GB and its coverage of every box size 1 GB.
"""

import contextlib
import hashlib
import json
import os
import sys
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from s2flow.flow import Trajectory
from s2flow.grid import Box
from s2flow.store.files import remove_dead_temporaries, written_whole
from s2flow.store.recipes import ADDED_FIELDS, VERSION

FORMAT = "1"  # of the files; another one is a miss
MEMORY = 2 * 2**30  # bytes kept in this process


@dataclass(frozen=True)
class LowFlow:
    """The LR flow: its trajectory and the coverage of every box size.

    coverage: (N+1, layers, B, heads, g_t, g_h, g_w) float32, Eq. 8 at LR; bricks: (g_t, g_h, g_w);
    seconds: the time it took, which every variant that reuses it reports as its own.
    """

    flow: Trajectory
    coverage: Tensor
    bricks: Box
    seconds: float = 0.0

    def at(self, sigma: Tensor) -> "LowFlow":
        """The same flow on the nodes of another noise grid; coverage from the nearest nodes."""
        distance = (sigma[:, None] - self.flow.sigma[None, 1:]).abs()  # row 0 is never used
        nearest = distance.argmin(1) + 1
        return replace(self, flow=self.flow.at(sigma), coverage=self.coverage[nearest])

    def clips(self) -> list["LowFlow"]:
        """The flow of each clip of the batch."""
        flow, n = self.flow, len(self.flow.z[0])

        def part(states: list[Tensor | None], i: int) -> list[Tensor | None]:
            return [None if x is None else x[i : i + 1].clone() for x in states]

        flows = [Trajectory(flow.sigma, part(flow.z, i), part(flow.v, i)) for i in range(n)]
        coverage = self.coverage.split(1, 2)
        return [
            LowFlow(f, coverage[i], self.bricks, self.seconds / n) for i, f in enumerate(flows)
        ]

    @classmethod
    def batch(cls, flows: Sequence["LowFlow"]) -> "LowFlow":
        """The flows of several clips as one; the opposite of `clips`."""
        if len(flows) == 1:
            return flows[0]
        z, v = (
            [None if x[0] is None else torch.cat(x) for x in zip(*states, strict=True)]
            for states in ([f.flow.z for f in flows], [f.flow.v for f in flows])
        )
        coverage, seconds = (
            torch.cat([f.coverage for f in flows], 2),
            sum(f.seconds for f in flows),
        )
        return cls(Trajectory(flows[0].flow.sigma, z, v), coverage, flows[0].bricks, seconds)

    def nbytes(self) -> int:
        """Memory held, for the cache's limit."""
        kept = [*self.flow.z, *self.flow.v, self.coverage]
        return sum(t.nbytes for t in kept if t is not None)


def low_key(low_identity: str, prompt: str, seed: int, ranks: int | None = None) -> str:
    """The cache key of a clip's LR flow.

    low_identity: `Recipe.low_identity()`; ranks: how many made it together, since all of them must
    hold it, or none.
    """
    clip = {"prompt": prompt, "seed": seed} | ({} if ranks is None else {"ranks": ranks})
    return json.dumps([VERSION, low_identity, clip], sort_keys=True)


class LowFlowCache:
    """Flows of single clips by key (any text; see `low_key`): in memory, and in a folder.

    folder: None for memory only; limit: bytes of the folder.
    """

    def __init__(self, folder: str | Path | None = None, limit: int = 0, memory: int = MEMORY):
        self.folder, self.limit, self.memory = folder and Path(folder), limit, memory
        self._held: OrderedDict[str, LowFlow] = OrderedDict()

    def get(self, key: str) -> LowFlow | None:
        """The flow, or None if it must be computed."""
        if key in self._held:
            self._held.move_to_end(key)
            return self._held[key]
        if self.folder is None or not self.path(key).exists():
            return None
        try:
            low = _read(self.path(key), key)
            os.utime(self.path(key))  # used just now
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            reason = str(error).split("\n")[0]
            _note(f"{self.path(key)} is not usable ({reason}); the LR flow is computed again")
            return None
        self._hold(key, low)
        return low

    def put(self, key: str, low: LowFlow) -> None:
        """Keep a flow of one clip. Where the disk cannot be written, only the reuse is lost."""
        self._hold(key, low)
        if self.folder is None:
            return
        if low.nbytes() > self.limit:
            _note(
                f"an LR flow of {low.nbytes() / 2**30:.3g} GiB is not kept on disk: it is over "
                f"lr_cache_gib={self.limit / 2**30:g}"
            )
            return
        try:
            self._make_room(low.nbytes())
            with written_whole(self.path(key)) as temporary:
                _write(temporary, key, low)
        except (OSError, SafetensorError) as error:
            reason = str(error).split("\n")[0]
            where = "lr_cache_dir=... names another place"
            _note(f"the LR flow is not kept on disk: {reason}; {where}")

    def tidy(self) -> None:
        """Remove the temporaries of dead processes of this machine."""
        if self.folder is not None:
            with contextlib.suppress(OSError):
                remove_dead_temporaries(self.folder)

    def drop(self) -> None:
        """From now on hold only the flow in use in memory; the folder stays."""
        self.memory = 0
        self._held.clear()

    def path(self, key: str) -> Path:
        """The file of a flow."""
        return self.folder / f"{self.name(key)}.safetensors"

    @staticmethod
    def name(key: str) -> str:
        """The name of a flow's file, without its ending."""
        return hashlib.sha256(key.encode()).hexdigest()[:24]

    def _hold(self, key: str, low: LowFlow) -> None:
        self._held[key] = low
        self._held.move_to_end(key)
        while len(self._held) > 1 and sum(f.nbytes() for f in self._held.values()) > self.memory:
            self._held.popitem(last=False)

    def _make_room(self, wanted: int) -> None:
        files = []
        for path in self.folder.glob("*.safetensors"):
            with contextlib.suppress(OSError):  # another process removed it
                files.append((path.stat().st_mtime_ns, path.stat().st_size, path))
        held = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if held + wanted <= self.limit:
                break
            path.unlink(missing_ok=True)
            held -= size


def find_flow(
    folder: str | Path, prompt: str, seed: int, recipe: dict[str, Any]
) -> LowFlow | None:
    """The cached LR flow of a finished clip, or None; recipe: of its record.

    Unlike `LowFlowCache`, it marks no file as used.
    """
    for path in sorted(Path(folder).glob("*.safetensors")):
        # an incomplete file, or one of another format, raises
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, SafetensorError):
            with safe_open(path, "pt") as file:
                key = file.metadata()["of"]
            version, low, clip = json.loads(key)
            stated = json.loads(low).items()
            same = all(recipe.get(k, ADDED_FIELDS.get(k, v)) == v for k, v in stated)
            if version == VERSION and clip == {"prompt": prompt, "seed": seed} and same:
                return _read(path, key)
    return None


def _write(path: Path, key: str, low: LowFlow) -> None:
    flow = low.flow
    tensors = {
        "sigma": flow.sigma,
        "z": torch.cat(flow.z),
        "v": torch.cat([torch.zeros_like(flow.z[0]), *flow.v[1:]]),
        "coverage": low.coverage[:, :, 0].contiguous(),
    }
    header = {"format": FORMAT, "of": key, "sha256": _hash(tensors)}
    header |= {"bricks": json.dumps(low.bricks), "seconds": repr(low.seconds)}
    save_file(tensors, path, header)


def _read(path: Path, key: str) -> LowFlow:
    """Raises ValueError for a file of another format, flow or content."""
    with safe_open(path, "pt") as file:
        header = file.metadata() or {}
        if header.get("format") != FORMAT:
            raise ValueError(f"it has format {header.get('format')}, not {FORMAT}")
        if header.get("of") != key:
            raise ValueError("it is the flow of something else")
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if _hash(tensors) != header["sha256"]:
        raise ValueError("its content was altered")
    z, v = list(tensors["z"].split(1)), list(tensors["v"].split(1))
    flow = Trajectory(tensors["sigma"], z, [None, *v[1:]])
    bricks = tuple(json.loads(header["bricks"]))
    return LowFlow(flow, tensors["coverage"][:, :, None], bricks, float(header["seconds"]))


def _hash(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        x = tensors[name].contiguous()
        digest.update(f"{name} {tuple(x.shape)} {x.dtype}".encode())
        digest.update(memoryview(x.numpy()).cast("B"))
    return digest.hexdigest()


def _note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)
