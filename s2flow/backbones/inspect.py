"""What a loaded diffusers pipeline, or a checkpoint folder, brings along besides its weights.

A pipeline comes in a state of its own: another scheduler or shift, LoRAs, caches, quantised or cast
weights, attention backends, tiles, offloading. `of_pipe` and `of_folder` read that state once. What
alters the clip is in `State.identity`, which is part of the recipe, so that a clip made with a LoRA has
another run id than one without; `State.check` refuses what is not supported, before anything is
computed. docs/your-pipeline.md lists what works, what is recorded and what is refused.
"""

import hashlib
import importlib
import inspect
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from s2flow.errors import UserError

GRID_OPTIONS = {  # of a scheduler: options that change its noise levels, at their plain values
    "use_karras_sigmas": (False,),
    "use_exponential_sigmas": (False,),
    "use_beta_sigmas": (False,),
    "use_dynamic_shifting": (False,),
    "invert_sigmas": (False,),
    "stochastic_sampling": (False,),
    "shift_terminal": (None, 0, False),
}
CACHES = ("FirstBlockCacheConfig", "PyramidAttentionBroadcastConfig")
CAUSES = {  # why another cache is refused
    "MagCacheConfig": "its ratios belong to a whole schedule, and the HR stage starts inside one",
    "FasterCacheConfig": "it joins both passes of guidance in one batch, which are two calls here",
}
SAMPLE = 4096  # bytes hashed of every tensor


@dataclass(frozen=True)
class State:
    """What was read. Names of parts are those of the pipeline's folder.

    parts: part -> class, without those that are None. storage: part -> how its weights are held, such
    as "bfloat16" or "float8_e4m3fn computed in bfloat16". channels: (in, out) of the transformer.
    scheduler: its class and whatever is not its class's default, `shift` at its live value.
    adapters: (part, name, weight, hash) of every active one. caches: part -> {"class", options}.
    attention: part -> backend or processor class that is not diffusers' own. tiles: of the VAE, if it
    works in tiles. offload: None | "model" | "sequential" | "group". config: the pipeline's own.
    """

    pipeline: str
    parts: dict[str, str]
    storage: dict[str, str]
    channels: tuple[int, int]
    scheduler: dict[str, Any]
    config: dict[str, Any] = field(default_factory=dict)
    adapters: tuple[tuple[str, str, float, str], ...] = ()
    caches: dict[str, dict[str, Any]] = field(default_factory=dict)
    attention: dict[str, str] = field(default_factory=dict)
    tiles: dict[str, int] = field(default_factory=dict)
    offload: str | None = None
    latent: int | None = None  # channels of the VAE's latents; None: not known

    @property
    def shift(self) -> float | None:
        """Shift of the scheduler's noise levels; None if it has none."""
        found = self.scheduler.get("shift", self.scheduler.get("flow_shift"))
        return None if found is None else float(found)

    def identity(self, dtype: str) -> dict[str, Any]:
        """What alters a clip and is in no other field of the recipe; empty for a plain pipeline.

        dtype: the recipe's, of transformer and text encoders; the VAE's plain type is float32.
        """
        plain = {"vae": "float32"}
        held = {p: s for p, s in self.storage.items() if s != plain.get(p, dtype)}
        found = {
            "storage": held,
            "adapters": [list(a) for a in self.adapters],
            "caches": self.caches,
            "attention": self.attention,
            "tiles": self.tiles,
        }
        return {name: value for name, value in found.items() if value}

    def check(self, here: str, method: str | None = None) -> None:
        """Raises UserError, in one line, for a state that is not supported.

        here: how the error names the pipeline. method: None for a check before it is known.
        """
        self._check_channels(here)
        for part, cache in self.caches.items():
            if cache["class"] not in CACHES:
                why = CAUSES.get(cache["class"], "it was never tried")
                raise UserError(
                    f"{here}: its {part} has the cache {cache['class']}, which is not supported "
                    f"({why}); type pipe.{part}.disable_cache()"
                )
        predicts = self.scheduler.get("prediction_type", "flow_prediction")
        if method == "native" and predicts != "flow_prediction":
            raise UserError(
                f"{here}: its scheduler predicts {predicts}, and these "
                "models predict a flow; load the checkpoint's own scheduler"
            )
        for option, plain in GRID_OPTIONS.items():
            value = self.scheduler.get(option, plain[0])
            dynamic = option == "use_dynamic_shifting"
            if value in plain or (method in (None, "native") and not dynamic):
                continue
            why = "it is not supported" if dynamic else f"method={method} steps on our own levels"
            raise UserError(
                f"{here}: its scheduler has {option}={value}, and {why}; type pipe.scheduler = "
                f"type(pipe.scheduler).from_config(pipe.scheduler.config, {option}={plain[0]})"
            )

    def _check_channels(self, here: str) -> None:
        """Image-to-video weights take more channels than they give."""
        taken, given = self.channels
        text_to_video = {given, 2 * given + 1} if "Video15" in self.pipeline else {given}
        if taken not in text_to_video or self.config.get("image_dim"):
            family = self.pipeline.replace("Pipeline", "ImageToVideoPipeline")
            raise UserError(
                f"{here}: its transformer takes {taken} channels for {given}: these are "
                f"image-to-video weights, of a {family}, which is not supported; load "
                "text-to-video weights"
            )
        if self.latent not in (None, given):
            raise UserError(
                f"{here}: its vae makes latents of {self.latent} channels, and its transformer gives "
                f"{given}: they are of different models; load both from one checkpoint"
            )


def of_pipe(pipe: Any) -> State:
    """The state of a loaded pipeline."""
    modules = {k: m for k, m in pipe.components.items() if isinstance(m, nn.Module)}
    models = {k: m for k, m in modules.items() if k.startswith("transformer")}
    first = next(iter(models.values()))
    caches = {k: getattr(m, "_cache_config", None) for k, m in models.items()}
    vae = modules.get("vae")
    return State(
        pipeline=type(pipe).__name__,
        parts={k: type(m).__name__ for k, m in pipe.components.items() if m is not None},
        storage={k: _storage(m) for k, m in modules.items()},
        channels=(first.config.in_channels, first.config.out_channels or first.config.in_channels),
        scheduler=_scheduler(type(pipe.scheduler), pipe.scheduler.config, pipe.scheduler),
        config={"image_dim": first.config.get("image_dim")},
        adapters=tuple(found for part, m in modules.items() for found in _adapters(part, m)),
        caches={k: _cache(config) for k, config in caches.items() if config is not None},
        attention={k: name for k, m in models.items() if (name := _attention(m))},
        tiles=_tiles(vae) if getattr(vae, "use_tiling", False) else {},
        offload=_offload(modules.values()),
        latent=None if vae is None else _latent(vae.config),
    )


def of_folder(folder: Path, pipeline: str) -> State:
    """The state of a checkpoint that is not loaded, from its configs; its parts were checked."""

    def read(part: str, name: str = "config.json") -> dict[str, Any]:
        path = folder / part / name
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    index, model = read("", "model_index.json"), read("transformer")
    parts = {k: v[1] for k, v in index.items() if isinstance(v, list) and v[0] is not None}
    quantised = {p: read(p).get("quantization_config", {}).get("quant_method") for p in parts}
    config = read("scheduler", "scheduler_config.json")
    made = getattr(importlib.import_module("diffusers"), config.get("_class_name", ""), None)
    taken = model.get("in_channels", 0)
    return State(
        pipeline=pipeline,
        parts=parts,
        storage={p: q for p, q in quantised.items() if q},
        channels=(taken, model.get("out_channels") or taken),
        scheduler={} if made is None else _scheduler(made, config),
        config={"image_dim": model.get("image_dim")},
        latent=_latent(read("vae")),
    )


def _latent(config: Any) -> int | None:
    """Channels of a VAE's latents by its config, where it says so."""
    return config.get("z_dim", config.get("latent_channels"))


def weights(pipe: Any) -> str:
    """Short hash of a loaded pipeline's weights: name, shape and a sample of every tensor.

    Adapters are not in it (`State.adapters`), nor are tensors that cannot be read, of some
    quantisations: of those it holds name and shape. Offloading does not change it.
    """
    digest = hashlib.sha256()
    for part, module in sorted(pipe.components.items()):
        for name, tensor in sorted(_tensors(module)) if isinstance(module, nn.Module) else ():
            if "lora_" not in name:
                name = f"{part}.{name}".replace(".base_layer.", ".")
                digest.update(f"{name} {tuple(tensor.shape)}".encode() + sample(tensor))
    return digest.hexdigest()[:12]


def sample(tensor: Tensor) -> bytes:
    """At most 4 KiB from the middle of a tensor; nothing where its type cannot be read."""
    try:
        flat = tensor.detach().reshape(-1)
        count = max(SAMPLE // flat.element_size(), 1)
        start = max(len(flat) - count, 0) // 2
        return flat[start : start + count].cpu().contiguous().view(torch.uint8).numpy().tobytes()
    except (RuntimeError, NotImplementedError, AttributeError, TypeError):
        return str(tensor.dtype).encode()


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of a module's parameters, also where hooks keep them elsewhere."""
    for path, child in module.named_modules():
        hook = getattr(child, "_hf_hook", None)
        maps = [getattr(h, "weights_map", None) for h in getattr(hook, "hooks", (hook,))]
        kept = next((m for m in maps if m is not None), None)
        for name, tensor in child.named_parameters(path, recurse=False):
            if tensor.is_meta and kept is not None:
                tensor = kept[name.rpartition(".")[2]]
            yield name, tensor


def _storage(module: nn.Module) -> str:
    """How a module's matrices are held, and in which type they compute if it is another."""
    quantiser = getattr(module, "hf_quantizer", None)
    if quantiser is not None:
        return str(quantiser.quantization_config.quant_method).rpartition(".")[2].lower()
    left_out = {"lora_A", "lora_B", *(getattr(module, "_keep_in_fp32_modules", None) or ())}
    parameters = ((n.split("."), p) for n, p in module.named_parameters())
    matrices = [p for names, p in parameters if p.ndim > 1 and not left_out & {*names}]
    kinds = {_kind(p) for p in matrices} or {"empty"}
    held = " and ".join(sorted(kinds))
    hooks = [m._diffusers_hook for m in module.modules() if hasattr(m, "_diffusers_hook")]
    casting = [h for r in hooks if (h := r.get_hook("layerwise_casting")) is not None]
    if casting:
        return f"{held} computed in {_name(casting[0].compute_dtype)}"
    return held


def _kind(p: Tensor) -> str:
    plain = type(p) in (nn.Parameter, Tensor) and type(p.data) is Tensor
    return _name(p.dtype) if plain else f"{type(p.data).__name__} {_name(p.dtype)}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _scheduler(made: type, config: Any, live: Any = None) -> dict[str, Any]:
    """Class and options that are not its defaults; the live shift where there is one."""
    parameters = inspect.signature(made.__init__).parameters
    own = {k: v for k, v in config.items() if k in parameters and v != parameters[k].default}
    shift = getattr(live, "shift", None)
    if "shift" in parameters:
        own["shift"] = config.get("shift", 1.0) if shift is None else shift
    if "prediction_type" in parameters:
        own["prediction_type"] = config.get("prediction_type")
    if "flow_shift" in parameters:
        own["flow_shift"] = config.get("flow_shift", 1.0)
    return {"class": made.__name__, **dict(sorted(own.items()))}


def _adapters(part: str, module: nn.Module) -> Iterator[tuple[str, str, float, str]]:
    """(part, name, weight, hash) of a module's active adapters."""
    layers = [(n, m) for n, m in module.named_modules() if hasattr(m, "lora_A")]
    active = {name for _, m in layers if not m.disable_adapters for name in m.active_adapters}
    for adapter in sorted(active):
        digest, weight = hashlib.sha256(), 0.0
        for name, layer in layers:
            if adapter not in layer.lora_A:
                continue
            scale = layer.scaling[adapter]
            weight = scale * layer.r[adapter] / layer.lora_alpha[adapter]
            digest.update(f"{name} {scale}".encode())
            for half in (layer.lora_A, layer.lora_B):
                digest.update(half[adapter].weight.detach().float().cpu().numpy().tobytes())
        yield part, adapter, round(weight, 6), digest.hexdigest()[:12]
    merged = sorted({name for _, m in layers for name in m.merged_adapters})
    for adapter in merged:
        if adapter not in active:
            yield part, adapter, 0.0, "merged"


def _cache(config: Any) -> dict[str, Any]:
    """A cache's class and its options; callbacks say nothing about the clip."""
    pairs = (
        ((f.name, getattr(config, f.name)) for f in fields(config)) if is_dataclass(config) else ()
    )
    options = {k: v for k, v in pairs if not callable(v) and not k.startswith("_")}
    return {"class": type(config).__name__, **json.loads(json.dumps(options, default=str))}


def _attention(model: nn.Module) -> str | None:
    """Backend or processor class of a transformer's layers if it is not diffusers' own."""
    found = set()
    for layer in model.modules():
        processor = getattr(layer, "processor", None)
        processor = getattr(processor, "stock", processor)  # another backbone of this pipeline
        if processor is None:
            continue
        if not type(processor).__module__.startswith(("diffusers.", "s2flow.")):
            found.add(type(processor).__name__)
        backend = getattr(processor, "_attention_backend", None)
        if backend is not None:
            found.add(getattr(backend, "value", str(backend)))
    return " and ".join(sorted(found)) or None


def _tiles(vae: Any) -> dict[str, int]:
    """Sizes of a VAE's tiles, as its attributes name them."""
    return {k: float(v) for k, v in sorted(vars(vae).items()) if k.startswith("tile_")}


def _offload(modules: Any) -> str | None:
    """How the parts come and go; hooks of accelerate and diffusers."""
    kinds = set()
    for module in modules:
        registry = getattr(module, "_diffusers_hook", None)
        if any(
            r.get_hook("group_offloading") is not None
            for m in module.modules()
            if (r := getattr(m, "_diffusers_hook", registry)) is not None
        ):
            kinds.add("group")
        hook = getattr(module, "_hf_hook", None)
        if hook is not None:
            kinds.add("sequential" if any(p.is_meta for p in module.parameters()) else "model")
    return next((k for k in ("sequential", "group", "model") if k in kinds), None)
