"""A checkpoint of diffusers: found, looked through before it is opened, named, and opened.

    source/model_index.json                     the pipeline's class and its parts
    source/<part>/config.json
    source/<part>/<stem>.safetensors            or <stem>.safetensors.index.json and its shards

`source` is such a folder, or a name on the hub. Only safetensors and the family's classes are read:
neither pickles nor a repository's own code ever run. What would fail after minutes is looked for first.

`identity` names the weights: the commit on the hub; of a folder a hash of the parts' configs and
weights. Of files above 64 MiB it sees the header and 4 KiB from the middle of every tensor, because
reading 26 GB for a run id would take minutes: a finetune changes these samples, a change of a few
single weights can go unseen. The same weights have one name as a folder and another on the hub.
"""

import contextlib
import functools
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from huggingface_hub import errors as hub
from huggingface_hub import hf_hub_download, model_info, try_to_load_from_cache

from s2flow.backbones import inspect
from s2flow.backbones.base import Origin
from s2flow.errors import UserError

SMALL = 64 * 2**20  # files up to this size are hashed wholly
SAMPLE = 4096  # bytes read of every tensor of a larger one
STEMS = ("diffusion_pytorch_model", "model")  # what diffusers and transformers call weights
LIBRARIES = ("diffusers", "transformers")  # no other module is imported
TEXTS = (".json", ".txt", ".model", ".jinja")  # configs and vocabularies
OPTIONAL = ("transformer_2",)  # may be null in model_index.json
SETTINGS = ("scheduler", "guider")  # parts without weights, whose values are the recipe's


def identity(origin: Origin, parts: dict[str, str | None], pipeline: type) -> str:
    """Short name of the weights: part of every recipe. Raises UserError if they cannot be used.

    parts: the folders that decide pixels, with the class that each must be (None: any).
    """
    folder = local_folder(origin)
    if folder is None:
        return hub_commit(origin)[:12]
    index = check(folder, parts, pipeline)
    digest = hashlib.sha256()
    for part in present(index, parts):
        texts = sorted(p for p in (folder / part).iterdir() if p.suffix in TEXTS)
        for path in [*texts, *weight_files(folder / part)]:
            digest.update(f"{part}/{path.name} {path.stat().st_size}\n".encode())
            digest.update(content(path))
    if index.get("boundary_ratio") is not None:  # the one setting of this file that decides pixels
        digest.update(f"boundary_ratio {index['boundary_ratio']}".encode())
    return digest.hexdigest()[:12]


CONFIGS = ("model_index.json", "scheduler/scheduler_config.json", "transformer/config.json")


def state(origin: Origin, parts: dict[str, str | None], pipeline: type) -> inspect.State:
    """What the checkpoint says besides its weights; of the hub only three small files are fetched.

    Raises UserError for a checkpoint that cannot be used.
    """
    folder = local_folder(origin)
    if folder is None:
        commit = hub_commit(origin)
        with _hub_errors(origin):
            files = [try_to_load_from_cache(origin.source, f, revision=commit) for f in CONFIGS]
            if not all(isinstance(f, str) for f in files):
                model_info(origin.source, revision=commit, timeout=10)  # fails at once, offline
                files = [hf_hub_download(origin.source, f, revision=commit) for f in CONFIGS]
        folder = Path(files[0]).parent
    else:
        check(folder, parts, pipeline)
    return inspect.of_folder(folder, pipeline.__name__)


def present(index: dict[str, Any], parts: dict[str, str | None]) -> dict[str, str | None]:
    """The parts that this model_index.json has or must have: all but an optional one that is null."""
    return {p: made for p, made in parts.items() if p not in OPTIONAL or _named(index, p)}


def _named(index: dict[str, Any], part: str) -> bool:
    return isinstance(index.get(part), list) and index[part][0] is not None


def content(path: Path) -> bytes:
    """What a hash sees of a file: all of a small one, a sample of every tensor of a large one."""
    if path.suffix != ".safetensors" or path.stat().st_size <= SMALL:
        return path.read_bytes()
    length, header = safetensors_header(path)
    with path.open("rb") as file:
        seen = [file.read(length)]
        for name in sorted(header):
            start, end = header[name]["data_offsets"]
            file.seek(length + start + max(end - start - SAMPLE, 0) // 2)
            seen.append(file.read(min(SAMPLE, end - start)))
    return b"".join(seen)


def safetensors_header(path: Path) -> tuple[int, dict[str, Any]]:
    """Bytes before the data, and the tensors by name. Raises UserError if the file is not whole."""
    try:
        with path.open("rb") as file:
            n = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(n)) if n <= 100_000_000 else None
        header.pop("__metadata__", None)
        length = 8 + n + max((t["data_offsets"][1] for t in header.values()), default=0)
    except (ValueError, AttributeError, KeyError, TypeError, OSError) as error:
        raise UserError(f"{path} is no safetensors file, or truncated; fetch it again") from error
    if path.stat().st_size != length:
        raise UserError(
            f"{path} is truncated: {path.stat().st_size} of {length} bytes; fetch it again"
        )
    return 8 + n, header


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of one part, in order; none for a tokenizer.

    Raises UserError for a missing shard, or where weights are pickles only.
    """
    for stem in STEMS:
        index, single = folder / f"{stem}.safetensors.index.json", folder / f"{stem}.safetensors"
        if index.exists():
            names = sorted(set(_json(index).get("weight_map", {}).values()))
            lost = [name for name in names if not (folder / name).exists()]
            if lost or not names:
                raise UserError(
                    f"{folder} lacks {len(lost)} of {len(names)} shards, {', '.join(lost[:3])}; "
                    "fetch the checkpoint again"
                )
            return [folder / name for name in names]
        if single.exists():
            return [single]
    if any(p.suffix in (".bin", ".pt", ".pth", ".ckpt") for p in folder.iterdir()):
        raise UserError(
            f"{folder} holds pickled weights only, which can run code and are never opened; "
            "convert them: pipeline.save_pretrained(folder, safe_serialization=True)"
        )
    return []


def check(folder: Path, parts: dict[str, str | None], pipeline: type) -> dict[str, Any]:
    """model_index.json of a folder. Raises UserError if `pipeline` could not be opened from it."""
    here, again = f"backbone.source={folder}", "fetch the checkpoint again"
    if not (folder / "model_index.json").exists():
        raise UserError(
            f"{here} is no checkpoint: it has no model_index.json; type the folder of a "
            f"{pipeline.__name__} in diffusers' layout"
        )
    index = _json(folder / "model_index.json")
    if index.get("_class_name") != pipeline.__name__:
        raise UserError(
            f"{here} is a {index.get('_class_name')}, and this backbone runs a "
            f"{pipeline.__name__}; choose another backbone= or another folder"
        )
    strange = sorted({p for p in index if _named(index, p)} - {*parts, *SETTINGS})
    if strange:
        raise UserError(
            f"{here} has the part {strange[0]}, which this backbone does not know; type the folder "
            f"of a plain {pipeline.__name__}"
        )
    boundary, second = index.get("boundary_ratio"), _named(index, "transformer_2")
    if "transformer_2" in parts and second != (boundary is not None):
        raise UserError(
            f"{here} has the part transformer_2, and no boundary_ratio in model_index.json that says "
            f"when it runs; {again}"
            if second
            else f"{here} changes its expert at boundary_ratio={boundary} and lacks the part "
            f"transformer_2; {again}"
        )
    settings = {s: None for s in SETTINGS if s == "scheduler" or _named(index, s)}
    for part, wanted in {**present(index, parts), **settings}.items():
        library, found = index.get(part) or (None, None)
        if library not in LIBRARIES or found != (wanted or found):
            wanted = f"{wanted or 'class'} of {' or '.join(LIBRARIES)}"
            raise UserError(f"{here}: its {part} is {library}.{found}, and must be a {wanted}")
        if not (folder / part).is_dir():
            raise UserError(f"{here} lacks the folder {part}; {again}")
        files = weight_files(folder / part)
        if wanted is not None and not files:
            raise UserError(f"{here}: {part} holds no safetensors; {again}")
        for file in files:
            safetensors_header(file)
    return index


def open_pipeline(
    origin: Origin, device: str, parts: dict[str, str | None], pipeline: type
) -> Any:
    """The pipeline on its device, its VAE in float32. Raises UserError for what cannot be used."""
    folder = local_folder(origin)
    if folder is None:
        commit = hub_commit(origin)
        with _hub_errors(origin):
            folder = Path(pipeline.download(origin.source, revision=commit, use_safetensors=True))
    check(folder, parts, pipeline)
    dtype = {"default": getattr(torch, origin.dtype), "vae": torch.float32}
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    try:
        found = pipeline.from_pretrained(folder, dtype=dtype, use_safetensors=True)
    except Exception as error:  # the files are whole; what is left is that they do not fit
        raise UserError(
            f"backbone.source={origin.source} cannot be opened ({reason(error)}); fetch it again"
        ) from error
    found.to(device)
    if device == "cpu":
        own_memory(found)
    return found


def own_memory(pipeline: Any) -> None:
    """Copy weights out of their mapped files, whose alignment would decide the last bit."""
    for part in pipeline.components.values():
        for p in part.parameters() if isinstance(part, torch.nn.Module) else ():
            p.data = p.data.clone()


def reason(error: Exception) -> str:
    """The first line of what a library says, 200 characters at most."""
    return str(error).strip().split("\n")[0][:200]


# -- the hub ----------------------------------------------------------------------------------


def local_folder(origin: Origin) -> Path | None:
    """The folder that source names; None for a name on the hub. Raises UserError for neither."""
    if not origin.source:
        raise UserError(
            f"backbone.source is not set; type backbone.source=FOLDER, where {origin.name} lies"
        )
    folder = Path(origin.source).expanduser()
    if folder.is_dir():
        return folder
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", origin.source) or origin.source[0] in "./~":
        raise UserError(
            f"backbone.source={origin.source} is neither a folder nor a name on the hub; type "
            "backbone.source=FOLDER or backbone.source=OWNER/NAME"
        )
    return None


def revision(origin: Origin) -> str | None:
    """The commit that was loaded; None for a folder and for weights that ship with s2flow."""
    return hub_commit(origin) if origin.source and local_folder(origin) is None else None


@functools.lru_cache  # one commit per process, whatever is pushed meanwhile
def hub_commit(origin: Origin) -> str:
    """The commit of a name on the hub: asked there, or else of the cache of earlier downloads."""
    wanted = origin.revision or "main"
    if re.fullmatch(r"[0-9a-f]{40}", wanted):
        return wanted
    with _hub_errors(origin):
        try:
            return model_info(origin.source, revision=wanted, timeout=10).sha
        except (hub.RepositoryNotFoundError, hub.RevisionNotFoundError, hub.HFValidationError):
            raise
        except Exception:  # no answer, in the words of whatever HTTP client the library uses
            cached = try_to_load_from_cache(origin.source, "model_index.json", revision=wanted)
    if isinstance(cached, str):
        return Path(cached).parent.name
    raise UserError(
        f"backbone.source={origin.source} cannot be fetched (no network) and was not fetched "
        "before; type backbone.source=FOLDER, where a copy lies"
    )


@contextlib.contextmanager
def _hub_errors(origin: Origin):
    said = f"backbone.source={origin.source}"
    try:
        yield
    except hub.GatedRepoError as error:
        raise UserError(f"{said} is gated; accept its licence and type: hf auth login") from error
    except (hub.RepositoryNotFoundError, hub.HFValidationError) as error:
        raise UserError(f"{said} is not on the hub, and no folder; check the name") from error
    except hub.RevisionNotFoundError as error:
        raise UserError(
            f"backbone.revision={origin.revision} is not in {origin.source}; type "
            "backbone.revision=main or a commit"
        ) from error
    except Exception as error:
        raise UserError(
            f"{said} cannot be fetched ({reason(error)}); type the same command again, or "
            "backbone.source=FOLDER, where a copy lies"
        ) from error


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UserError(f"{path} cannot be read as JSON; fetch the checkpoint again") from error
