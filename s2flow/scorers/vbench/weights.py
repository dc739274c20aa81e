"""The weights of VBench: path, source, licence and hash of each file.

The cache is VBench's own: VBENCH_CACHE_DIR, or ~/.cache/vbench. OpenAI's URLs contain the sha256 of the
file, MUSIQ's file name its first eight digits. No published hash of the others is known, so they are
opened as tensors only (`compat.guarded`), unless the user states the hash of a file to be trusted.
Files are downloaded only on request.
"""

import functools
import os
import re
import shutil
import urllib.request
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from s2flow import store
from s2flow.errors import UserError
from s2flow.scorers.vbench import compat

OPENAI = "https://openaipublic.azureedge.net/clip/models"
B32 = "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af"
L14 = "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836"


@dataclass(frozen=True)
class Weight:
    """One file. sha256: the hash, its first digits, or empty where it is unknown."""

    key: str
    dimension: str
    file: str  # below the cache folder
    url: str
    size: str  # about
    licence: str
    sha256: str = ""


RELEASES = "https://github.com/chaofengc/IQA-PyTorch/releases/download/v0.1-weights"
HEAD = "sa_0_4_vit_l_14_linear.pth"
VICLIP = "ViClip-InternVid-10M-FLT.pth"
# fmt: off
TABLE = (
    Weight("clip_b32", "background_consistency", "clip_model/ViT-B-32.pt",
           f"{OPENAI}/{B32}/ViT-B-32.pt", "350 MB", "MIT", B32),
    Weight("clip_l14", "aesthetic_quality", "clip_model/ViT-L-14.pt",
           f"{OPENAI}/{L14}/ViT-L-14.pt", "930 MB", "MIT", L14),
    Weight("laion_head", "aesthetic_quality", f"aesthetic_model/emb_reader/{HEAD}",
           f"https://github.com/LAION-AI/aesthetic-predictor/blob/main/{HEAD}?raw=true", "4 kB", "MIT"),
    Weight("musiq_spaq", "imaging_quality", "pyiqa_model/musiq_spaq_ckpt-358bb6af.pth",
           f"{RELEASES}/musiq_spaq_ckpt-358bb6af.pth", "110 MB", "PolyForm-Noncommercial (pyiqa)",
           "358bb6af"),
    Weight("amt_s", "motion_smoothness", "amt_model/amt-s.pth",
           "https://huggingface.co/lalala125/AMT/resolve/main/amt-s.pth", "under 50 MB",
           "CC BY-NC 4.0"),
    Weight("viclip", "overall_consistency", f"ViCLIP/{VICLIP}",
           f"https://huggingface.co/OpenGVLab/VBench_Used_Models/resolve/main/{VICLIP}", "1.7 GB",
           "see OpenGVLab's model card"),
    Weight("bpe", "overall_consistency", compat.BPE,
           "https://raw.githubusercontent.com/openai/CLIP/main/clip/bpe_simple_vocab_16e6.txt.gz",
           "1.4 MB", "MIT", compat.BPE_SHA256),
)
# fmt: on
KEYS = tuple(w.key for w in TABLE)


@dataclass(frozen=True)
class WeightFile:
    """A file on disk; state: present, wrong hash, missing, or bundled (with openai-clip).

    trusted: its full sha256 is the expected one, so that it may be opened as a pickle.
    """

    weight: Weight
    path: Path
    state: str
    sha256: str = ""
    trusted: bool = False


def cache_folder(given: str | Path | None) -> Path:
    """The folder of the weights: the one given, VBENCH_CACHE_DIR, or VBench's default."""
    folder = given or os.environ.get("VBENCH_CACHE_DIR") or "~/.cache/vbench"
    return Path(folder).expanduser().absolute()


def look(
    dimensions: Iterable[str], cache: Path, own: Mapping[str, str | None] | None = None
) -> list[WeightFile]:
    """The files of these dimensions, hashed. own: {key: sha256} of files that the user trusts."""
    return [_look(w, cache, own or {}) for w in TABLE if w.dimension in dimensions]


def _look(weight: Weight, cache: Path, own: Mapping[str, str | None]) -> WeightFile:
    path, expected = cache / weight.file, own.get(weight.key) or weight.sha256
    if path.is_file():
        digest = sha256_of(path)
        state = "present" if digest.startswith(expected) else "wrong hash"
        return WeightFile(weight, path, state, digest, digest == expected)
    if weight.key == "bpe":  # copied from openai-clip when it is not there
        return WeightFile(weight, path, "bundled", expected)
    return WeightFile(weight, path, "missing")


def sha256_of(path: Path) -> str:
    """Hash of a file's content, computed again only if the file changed."""
    return _sha256(path, path.stat().st_size, path.stat().st_mtime_ns)


@functools.lru_cache
def _sha256(path: Path, *state: int) -> str:
    return store.sha256_of(path)


def check_own(own: Mapping[str, str | None]) -> None:
    """Raises UserError unless these are full hashes of files in the table."""
    for key, value in own.items():
        if key not in KEYS:
            raise UserError(f"sha256.{key} names no weights; type one of {', '.join(KEYS)}")
        if value is not None and not re.fullmatch("[0-9a-f]{64}", str(value)):
            raise UserError(
                f"sha256.{key}={value} is no hash; type the 64 digits that sha256sum gives"
            )


def fetch(weight: Weight, cache: Path, expected: str = "") -> None:
    """Download one file. Raises UserError if it does not arrive, or is not the expected one."""
    expected = expected or weight.sha256
    try:
        with (
            store.written_whole(cache / weight.file) as temporary,
            urllib.request.urlopen(weight.url, timeout=60) as source,
            open(temporary, "wb") as target,
        ):
            shutil.copyfileobj(source, target)
            target.flush()
            stated = source.headers.get("Content-Length")
            if stated is not None and target.tell() != int(stated):
                raise OSError(f"it was truncated after {target.tell()} of {stated} bytes")
            digest = store.sha256_of(temporary)
            if not digest.startswith(expected):
                raise UserError(
                    f"{weight.url} came with sha256 {digest} instead of {expected}; "
                    "nothing was kept; try again or download it by hand"
                )
    except OSError as error:
        raise UserError(
            f"{weight.url} could not be fetched to {cache / weight.file}: {error}; download it by hand"
        ) from None
