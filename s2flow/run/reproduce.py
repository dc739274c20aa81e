"""`python run.py reproduce=RUN` or `reproduce=RUN/CLIP`: one recorded clip, made again and compared.

The recipe is rebuilt from runs/RUN/recipe.json alone, so that its hash is RUN again, or the command is
refused with what differs. Prompt and seed come from the record (of the clip with the first key, if none
is named); device, threads, offload and the like are those typed now. The LR flow is made anew, too.
Nothing is written into the store. Reported are

    same mp4 bytes or not; PSNR and largest difference of a pixel between both mp4s, decoded (0 to 255);
    the largest difference of the latents relative to their largest value, if one was kept;
    and what differs of versions, device, commit, threads, batch, context_parallel, offload, compile.

Within tolerance (exit status 0, else 1): PSNR of at least 40 dB, latents within 1e-2 of their largest
value. In bfloat16 and float16, and of clips that were made in a batch: 30 dB, and 0.5. Measured with
the embedded backbone on one CPU: alone, latents are the same to the last bit, whatever the threads,
the order, the worker and the state of the LR cache. In a batch sums have another order: 5e-6 to 5e-5
and 84 dB while all windows are the same ones; but adaptive windows choose among candidates that may
tie, and where rounding decides otherwise, latents moved by up to 0.28 and pixels to 37 dB.
"""

import json
import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.console import Console
from safetensors.torch import load_file

from s2flow import methods
from s2flow.backbones.base import Origin
from s2flow.backbones.tiles import tile_vae
from s2flow.errors import UserError
from s2flow.policies import sta
from s2flow.policies.base import Policy
from s2flow.process import loading
from s2flow.process.provenance import provenance
from s2flow.process.ranks import world_size
from s2flow.recipe.defaults import conf_file
from s2flow.recipe.identity import Recipe
from s2flow.recipe.limits import check_choices
from s2flow.recipe.schema import BackboneConf
from s2flow.scorers.fidelity import psnr
from s2flow.store import read_record, sha256_of
from s2flow.store.lowflow import LowFlowCache
from s2flow.store.recipes import ADDED_FIELDS, VERSION
from s2flow.video import read_frames, write_video

FINE, COARSE = (40.0, 1e-2), (30.0, 0.5)  # (least PSNR in dB, most of the largest latent)
WITH = ("versions", "device", "commit", "dirty", "threads", "batch", "context_parallel")
WITH += ("offload", "compile")
READ = ("reproduce", "runs_dir", "backbone", "device", "threads", "offload", "compile", "progress")


def reproduce(cfg: DictConfig) -> dict[str, Any]:
    """Make the clip that `cfg.reproduce` names again, and print and return how it differs.

    Raises UserError if it cannot be made here, SystemExit(1) if it is over the tolerance.
    """
    if world_size() > 1:
        raise UserError(
            f"reproduce={cfg.reproduce} is one process's work; type it without torchrun"
        )
    check_words(cfg)
    check_choices(cfg)
    folder, record = recorded(cfg)
    conf = backbone_conf(cfg, record)
    recipe = restored(cfg, folder, conf)
    if cfg.threads is not None:
        torch.set_num_threads(cfg.threads)
    device = loading.device_here(cfg.device)
    if cfg.offload != "none" and device == "cpu":
        raise UserError(f"offload={cfg.offload} needs a GPU; leave offload out")
    backbone = loading.load_backbone(conf, device, cfg.offload, recipe.fp8, cfg.compile)
    tile_vae(backbone.vae, recipe.vae_tile)
    methods.check(backbone, recipe)
    own = LowFlowCache()  # in memory
    pair = ([record["prompt"]], [record["seed"]])
    made = methods.generate(backbone, recipe, *pair, cache=own)
    here = provenance(backbone.device) | {"batch": 1, "context_parallel": 1}
    here |= {"offload": cfg.offload, "compile": cfg.compile}
    key = Path(record["video"]).stem
    found = {"run_id": recipe.run_id, "clip": key}
    found |= compared(made, folder, record) | {"differs": differences(record, here)}
    fine = recipe.dtype == "float32" and record.get("batch", 1) == 1
    tolerance = FINE if fine else COARSE
    found["within"] = within(found, tolerance)
    show(found, record, tolerance)
    if not found["within"]:
        raise SystemExit(1)
    return found


def check_words(cfg: DictConfig) -> None:
    """Raises UserError for a word beside `reproduce=` that would be read by nobody."""
    hydra = HydraConfig.instance().cfg
    for word in [] if hydra is None else hydra.hydra.overrides.task:
        if re.split(r"[.=@]", word.lstrip("+~"))[0] not in READ:
            raise UserError(
                f"reproduce={cfg.reproduce} takes from the recipe what decides a clip, and reads no "
                f"{word}; leave it out"
            )


# -- what was recorded --------------------------------------------------------------------------


def recorded(cfg: DictConfig) -> tuple[Path, dict[str, Any]]:
    """The run's folder and the record of the clip. Raises UserError if there is none."""
    word, runs_dir = cfg.reproduce, Path(cfg.runs_dir)
    named = re.fullmatch(r"([0-9a-f]{10})(?:/([0-9a-f]{16}))?", word)
    if named is None:
        raise UserError(
            f"reproduce={word} names no clip; type reproduce=RUN or reproduce=RUN/CLIP, as in the "
            f"names of {runs_dir}/RUN/records/CLIP.json"
        )
    folder = runs_dir / named[1]
    if not (folder / "recipe.json").is_file():
        raise UserError(
            f"reproduce={word}: {runs_dir} has no run {named[1]}; type runs_dir=FOLDER, where it lies"
        )
    paths = sorted((folder / "records").glob(f"{named[2] or '[!.]*'}.json"))
    records = (r for r in map(read_record, paths) if r is not None)
    record = next((r for r in records if (folder / r["video"]).is_file()), None)
    if record is None:
        which = f"no clip {named[2]}" if named[2] else "no finished clip"
        raise UserError(f"reproduce={word}: {folder} has {which}; type reproduce=RUN/CLIP")
    return folder, record


def backbone_conf(cfg: DictConfig, record: dict[str, Any]) -> DictConfig:
    """The backbone of a record, from the source that was typed now, or the one it was made from."""
    name = record["recipe"]["backbone"]
    own = cfg.backbone.name == name
    conf = cfg.backbone.copy() if own else conf_file("backbone", name, BackboneConf)
    if conf.family != "tiny":
        usual = conf_file("backbone", name, BackboneConf)
        typed = cfg.backbone.source if not own or cfg.backbone.source != usual.source else None
        conf.source = typed or record.get("source") or conf.source
        conf.revision = cfg.backbone.revision if typed else record.get("revision", conf.revision)
    conf.dtype = record["recipe"].get("dtype", ADDED_FIELDS["dtype"])
    return conf


def restored(cfg: DictConfig, folder: Path, conf: DictConfig) -> Recipe:
    """The recipe of recipe.json, with the very run id. Raises UserError with what differs."""
    try:
        stored = json.loads((folder / "recipe.json").read_text(encoding="utf-8"))
        version = stored.pop("version", None)
        recipe = _recipe(stored, conf, cfg.windows.file)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{folder}/recipe.json is no recipe of this version of s2flow "
            f"({type(error).__name__}: {error}); type another reproduce=RUN"
        ) from None
    if version != VERSION:
        raise UserError(
            f"run {folder.name} is of recipe version {version}, and this is {VERSION}, where the same "
            f"recipe gives other pixels; check out the commit of its records"
        )
    weights = loading.weights_hash(conf.family, Origin.of(conf))
    if weights != recipe.weights:
        raise UserError(
            f"run {folder.name} was made with weights {recipe.weights} of {recipe.backbone}, and those "
            f"here are {weights}; type backbone.source=FOLDER, where the others lie"
        )
    if recipe.run_id != folder.name:
        ours, names = recipe.identity(), sorted({*recipe.identity(), *stored})
        odd = [k for k in names if ours.get(k) != stored.get(k)]
        said = ", ".join(odd) or "the name of the folder"
        raise UserError(
            f"recipe.json of run {folder.name} is now run {recipe.run_id} ({said}); check out the "
            "commit of its records"
        )
    return recipe


def _recipe(stored: dict[str, Any], conf: DictConfig, file: str | None) -> Recipe:
    """The inverse of `Recipe.identity`: what it leaves out changes no pixel, or has one value."""
    module = methods.method(stored["method"])
    open_ = {  # of what may be left out
        **{"low": conf.low, "t_i": stored["steps"], "handoff": "x0", "noise": "fresh"},
        **{"sparsity": 1.0, "density": "volume", "windows": {"name": "full"}},
        **{"brick_low": conf.brick_low, "brick_high": conf.brick_high, "coverage_rows": 128},
        **{"attention": "auto", "solver": "euler", "order": 1, "stencil": "grid"},
        **{"lr_time": "sigma", "upsample": "bilinear", **ADDED_FIELDS},
    }
    knobs = open_ | stored
    knobs["low"] = knobs.pop("rope_low", knobs["low"])
    params = getattr(module, "Params", None)
    knobs["params"] = None if params is None else params(**(knobs["params"] or {}))
    windows = knobs["windows"]
    knobs["windows"] = Policy(**_frozen(windows | {"exponents": windows.get("exponents", [])}))
    if windows.get("file"):
        policy = sta.with_file(knobs["windows"], file)
        if policy.file != windows["file"]:
            raise UserError(
                f"windows.file={file} holds windows {policy.file}, and the run was made with "
                f"{windows['file']}; type windows.file=FILE with those"
            )
        knobs["windows"] = policy
    return Recipe(**_frozen(knobs), knobs=module.KNOBS)


def _frozen(knobs: dict[str, Any]) -> dict[str, Any]:
    return {k: _tuples(v) for k, v in knobs.items()}


def _tuples(value: Any) -> Any:
    is_list = not isinstance(value, (str, dict)) and hasattr(value, "__iter__")
    return tuple(map(_tuples, value)) if is_list else value


# -- how it differs -----------------------------------------------------------------------------


def compared(made: Any, folder: Path, record: dict[str, Any]) -> dict[str, Any]:
    """Bytes, pixels and latents of a clip made now against those stored; see the module."""
    video = folder / record["video"]
    with TemporaryDirectory() as place:
        path = Path(place) / video.name
        write_video(path, made.video[0], record["fps"])
        same, now = sha256_of(path) == sha256_of(video), read_frames(path)
    then = read_frames(video)
    if now.shape != then.shape:
        raise UserError(f"{video} is {list(then.shape)}, and its recipe makes {list(now.shape)}")
    found = {
        "same_bytes": same,
        "psnr": round(psnr(now.float() / 255, then.float() / 255), 2),
        "largest_pixel_difference": int((now.int() - then.int()).abs().max()),
        "largest_latent_difference": None,
    }
    kept = folder / "latents" / f"{video.stem}.safetensors"
    if kept.is_file():
        z, own = load_file(kept)["latent"], made.latent[0].float().cpu()
        largest = float((z - own).abs().max() / z.abs().max()) if z.shape == own.shape else 1.0
        found["largest_latent_difference"] = float(f"{largest:.3g}")
    return found


def differences(record: dict[str, Any], here: dict[str, Any]) -> dict[str, list[Any]]:
    """{name: [then, now]} of what the clip was made with; versions one by one."""
    flat = [{k: x.get(k) for k in WITH if k != "versions"} for x in (record, here)]
    for words, x in zip(flat, (record, here), strict=True):
        words |= {f"versions.{k}": v for k, v in (x.get("versions") or {}).items()}
    then, now = flat
    return {k: [then.get(k), now.get(k)] for k in {**then, **now} if then.get(k) != now.get(k)}


def within(found: dict[str, Any], tolerance: tuple[float, float]) -> bool:
    """Whether a difference is within the tolerance of the module's docstring."""
    least, most = tolerance
    latent = found["largest_latent_difference"]
    return found["psnr"] >= least and (latent is None or latent <= most)


def show(found: dict[str, Any], record: dict[str, Any], tolerance: tuple[float, float]) -> None:
    """The report for a person."""
    console, (least, most) = Console(highlight=False), tolerance
    latent = found["largest_latent_difference"]
    lines = [
        f"{found['run_id']}/{found['clip']}  {json.dumps(record['prompt'], ensure_ascii=False)}, "
        f"seed {record['seed']}",
        f"mp4      {'the same bytes' if found['same_bytes'] else 'other bytes'}, PSNR "
        f"{found['psnr']:g} dB, largest difference of a pixel {found['largest_pixel_difference']}",
        f"latent   {'was not kept' if latent is None else f'largest difference {latent:g}'}",
        *(f"differs  {k}: {a} then, {b} now" for k, (a, b) in found["differs"].items()),
        f"{'within' if found['within'] else 'OVER'} the tolerance: PSNR {least:g} dB, latents {most:g}",
    ]
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)
