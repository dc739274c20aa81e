"""`python run.py reproduce=RUN` or `reproduce=RUN/CLIP`: make one recorded clip again and compare.

The recipe is rebuilt from runs/RUN/recipe.json alone. Its hash must be RUN, otherwise the command is
refused with the differing fields. Prompt and seed come from the record (of the first key, if no clip is
named); device, threads, offload and so on come from the command. The LR flow is computed again, too.
Nothing is written into the store. Reported are

    whether the mp4 bytes are equal; PSNR and largest pixel difference (0 to 255) of the decoded mp4s;
    the largest difference of the latents relative to their largest value, if a latent was stored;
    differing versions, device, commit, threads, batch, context_parallel, offload, compile.

Tolerance (exit status 0 if met, else 1): PSNR of at least 40 dB, latents within 1e-2 of their largest
value. For bfloat16, float16, and clips made in a batch: 30 dB and 0.5. Measured with the embedded
backbone on one CPU: a clip made alone has bit-identical latents for any threads, order, worker and
state of the LR cache. In a batch, sums have another order: 5e-6 to 5e-5 and 84 dB while all windows
are equal. Adaptive windows choose among candidates that may tie; where rounding decides otherwise,
latents differed by up to 0.28 and PSNR fell to 37 dB.
"""

import json
import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
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
from s2flow.recipe.schema import KNOBS, BackboneConf
from s2flow.scorers.fidelity import psnr
from s2flow.store import read_record, sha256_of
from s2flow.store.lowflow import LowFlowCache
from s2flow.store.recipes import ADDED_FIELDS, VERSION
from s2flow.video import read_frames, write_video

# (least PSNR in dB, largest relative latent difference)
STRICT_TOLERANCE, LOOSE_TOLERANCE = (40.0, 1e-2), (30.0, 0.5)
COMPARED_FIELDS = ("device", "commit", "dirty", "threads", "batch", "context_parallel")
COMPARED_FIELDS += ("offload", "compile")
READ_KNOBS = ("reproduce", "runs_dir", "backbone", "device", "threads", "offload", "compile")
READ_KNOBS += ("progress",)


def reproduce(cfg: DictConfig) -> dict[str, Any]:
    """Make the clip that `cfg.reproduce` names again; print and return the comparison.

    Raises UserError if it cannot be made here, SystemExit(1) if it exceeds the tolerance.
    """
    if world_size() > 1:
        raise UserError(
            f"reproduce={cfg.reproduce} is one process's work; type it without torchrun"
        )
    check_overrides(cfg)
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
    cache = LowFlowCache()  # in memory
    pair = ([record["prompt"]], [record["seed"]])
    made = methods.generate(backbone, recipe, *pair, cache=cache)
    here = provenance(backbone.device) | {"batch": 1, "context_parallel": 1}
    here |= {"offload": cfg.offload, "compile": cfg.compile}
    key = Path(record["video"]).stem
    comparison = {"run_id": recipe.run_id, "clip": key}
    comparison |= compared(made, folder, record) | {"differs": differences(record, here)}
    strict = recipe.dtype == "float32" and record.get("batch", 1) == 1
    tolerance = STRICT_TOLERANCE if strict else LOOSE_TOLERANCE
    comparison["within"] = within(comparison, tolerance)
    _show(comparison, record, tolerance)
    if not comparison["within"]:
        raise SystemExit(1)
    return comparison


def check_overrides(cfg: DictConfig) -> None:
    """Raises UserError for an override that `reproduce=` does not read."""
    hydra = HydraConfig.instance().cfg
    for override in [] if hydra is None else hydra.hydra.overrides.task:
        if re.split(r"[.=@]", override.lstrip("+~"))[0] not in READ_KNOBS:
            raise UserError(
                f"reproduce={cfg.reproduce} takes the knobs of a clip from its recipe and reads no "
                f"{override}; leave it out"
            )


# -- the record ---------------------------------------------------------------------------------


def recorded(cfg: DictConfig) -> tuple[Path, dict[str, Any]]:
    """The run's folder and the record of the clip. Raises UserError if there is none."""
    name, runs_dir = cfg.reproduce, Path(cfg.runs_dir)
    match = re.fullmatch(r"([0-9a-f]{10})(?:/([0-9a-f]{16}))?", name)
    if match is None:
        raise UserError(
            f"reproduce={name} names no clip; type reproduce=RUN or reproduce=RUN/CLIP, as in the "
            f"names of {runs_dir}/RUN/records/CLIP.json"
        )
    folder = runs_dir / match[1]
    if not (folder / "recipe.json").is_file():
        raise UserError(
            f"reproduce={name}: {runs_dir} has no run {match[1]}; type runs_dir=FOLDER, where it lies"
        )
    paths = sorted((folder / "records").glob(f"{match[2] or '[!.]*'}.json"))
    records = (r for r in map(read_record, paths) if r is not None)
    record = next((r for r in records if (folder / r["video"]).is_file()), None)
    if record is None:
        missing = f"no clip {match[2]}" if match[2] else "no finished clip"
        raise UserError(f"reproduce={name}: {folder} has {missing}; type reproduce=RUN/CLIP")
    return folder, record


def backbone_conf(cfg: DictConfig, record: dict[str, Any]) -> DictConfig:
    """The backbone of a record, from the source given now or else the recorded one."""
    name = record["recipe"]["backbone"]
    same = cfg.backbone.name == name
    conf = cfg.backbone.copy() if same else conf_file("backbone", name, BackboneConf)
    if conf.family != "tiny":
        default = conf_file("backbone", name, BackboneConf)
        given = cfg.backbone.source if not same or cfg.backbone.source != default.source else None
        conf.source = given or record.get("source") or conf.source
        conf.revision = cfg.backbone.revision if given else record.get("revision", conf.revision)
    conf.dtype = record["recipe"].get("dtype", ADDED_FIELDS["dtype"])
    return conf


def restored(cfg: DictConfig, folder: Path, conf: DictConfig) -> Recipe:
    """The recipe of recipe.json, with the same run id. Raises UserError with the differences."""
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
        rebuilt, names = recipe.identity(), sorted({*recipe.identity(), *stored})
        different = [k for k in names if rebuilt.get(k) != stored.get(k)]
        listed = ", ".join(different) or "the name of the folder"
        raise UserError(
            f"recipe.json of run {folder.name} is now run {recipe.run_id} ({listed}); check out the "
            "commit of its records"
        )
    return recipe


def _recipe(stored: dict[str, Any], conf: DictConfig, file: str | None) -> Recipe:
    """The inverse of `Recipe.identity`: fields that it leaves out change no pixel or have one value."""
    module = methods.method(stored["method"])
    defaults = {f.name: f.default for f in KNOBS if f.name in Recipe.__dataclass_fields__}
    sizes = {name: conf[name] for name in ("low", "brick_low", "brick_high")}
    unread = {"t_i": stored["steps"], "sparsity": 1.0, "solver": "euler", "order": 1}
    knobs = defaults | sizes | unread | {"windows": {"name": "full"}} | ADDED_FIELDS | stored
    knobs["low"] = knobs.pop("rope_low", knobs["low"])
    params = getattr(module, "Params", None)
    knobs["params"] = None if params is None else params(**(knobs["params"] or {}))
    windows = {"exponents": []} | knobs["windows"]
    knobs["windows"] = policy = Policy(**{k: _tuples(v) for k, v in windows.items()})
    if policy.file:
        knobs["windows"] = sta.with_file(policy, file)
        if knobs["windows"].file != policy.file:
            raise UserError(
                f"windows.file={file} holds windows {knobs['windows'].file}, and the run was made "
                f"with {policy.file}; type windows.file=FILE with those"
            )
    return Recipe(**{k: _tuples(v) for k, v in knobs.items()}, knobs=module.KNOBS)


def _tuples(value: Any) -> Any:
    is_list = not isinstance(value, (str, dict)) and hasattr(value, "__iter__")
    return tuple(map(_tuples, value)) if is_list else value


# -- comparison ---------------------------------------------------------------------------------


def compared(made: Any, folder: Path, record: dict[str, Any]) -> dict[str, Any]:
    """Bytes, pixels and latents of a new clip against the stored ones; see the module."""
    video = folder / record["video"]
    with TemporaryDirectory() as directory:
        path = Path(directory) / video.name
        write_video(path, made.video[0], record["fps"])
        same, new = sha256_of(path) == sha256_of(video), read_frames(path)
    old = read_frames(video)
    if new.shape != old.shape:
        raise UserError(f"{video} is {list(old.shape)}, and its recipe makes {list(new.shape)}")
    comparison = {
        "same_bytes": same,
        "psnr": round(psnr(new.float() / 255, old.float() / 255), 2),
        "largest_pixel_difference": int((new.int() - old.int()).abs().max()),
        "largest_latent_difference": None,
    }
    stored = folder / "latents" / f"{video.stem}.safetensors"
    if stored.is_file():
        z, new_z = load_file(stored)["latent"], made.latent[0].float().cpu()
        largest = float((z - new_z).abs().max() / z.abs().max()) if z.shape == new_z.shape else 1.0
        comparison["largest_latent_difference"] = float(f"{largest:.3g}")
    return comparison


def differences(record: dict[str, Any], here: dict[str, Any]) -> dict[str, list[Any]]:
    """{name: [old, new]} of differing COMPARED_FIELDS, and of versions one by one."""
    old, new = (
        {k: x.get(k) for k in COMPARED_FIELDS}
        | {f"versions.{k}": v for k, v in (x.get("versions") or {}).items()}
        for x in (record, here)
    )
    return {k: [old.get(k), new.get(k)] for k in {**old, **new} if old.get(k) != new.get(k)}


def within(comparison: dict[str, Any], tolerance: tuple[float, float]) -> bool:
    """Whether a comparison is within a tolerance."""
    least, most = tolerance
    latent = comparison["largest_latent_difference"]
    return comparison["psnr"] >= least and (latent is None or latent <= most)


def _show(result: dict[str, Any], record: dict[str, Any], tolerance: tuple[float, float]) -> None:
    least, most = tolerance
    latent = result["largest_latent_difference"]
    lines = [
        f"{result['run_id']}/{result['clip']}  {json.dumps(record['prompt'], ensure_ascii=False)}, "
        f"seed {record['seed']}",
        f"mp4      {'the same bytes' if result['same_bytes'] else 'other bytes'}, PSNR "
        f"{result['psnr']:g} dB, largest difference of a pixel {result['largest_pixel_difference']}",
        f"latent   {'was not kept' if latent is None else f'largest difference {latent:g}'}",
        *(f"differs  {k}: {a} then, {b} now" for k, (a, b) in result["differs"].items()),
        f"{'within' if result['within'] else 'OVER'} the tolerance: "
        f"PSNR {least:g} dB, latents {most:g}",
    ]
    print("\n".join(lines))
