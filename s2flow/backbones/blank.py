"""A backbone without weights: the checkpoint's own classes and sizes on the meta device.

`blank` reads configs only: from the folder, from the cache of earlier downloads, or, for the published
checkpoints, from `published.py`. Neither weights nor network are touched. Its parts have every shape
and type of the real ones, so that the adapter's own code can be run on it for what it would cost
(`s2flow.costs`).
"""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
import transformers
from huggingface_hub import try_to_load_from_cache
from torch import nn

from s2flow.backbones import hunyuan, tiny, wan
from s2flow.backbones.base import Origin
from s2flow.backbones.checkpoint import local_folder
from s2flow.backbones.published import PUBLISHED
from s2flow.errors import UserError

FAMILIES = {  # parts with their classes, and the adapter
    "wan": (wan.PARTS, wan.WanBackbone),
    "hunyuan": (hunyuan.PARTS, hunyuan.HunyuanVideoBackbone),
    "tiny": (wan.PARTS | {"vae": "PatchVAE"}, wan.WanBackbone),
}


def blank(family: str, origin: Origin) -> Any:
    """The backbone of `origin` on the meta device; `backbone.pipeline` holds its parts.

    Raises UserError where a config cannot be had, or for a family that cannot be planned.
    """
    if family not in FAMILIES:
        raise UserError(f"backbone.family={family} cannot be planned yet; leave plan=true out")
    parts, backbone = FAMILIES[family]
    made = {}
    for part, name in parts.items():
        if name is not None:
            try:
                made[part] = _build(name, part_config(family, origin, part))
            except (TypeError, ValueError, KeyError, AttributeError) as error:
                raise UserError(
                    f"backbone.source={origin.source}: the config of {part} does not make a {name} "
                    f"({str(error).splitlines()[0][:100]}); fetch the checkpoint again"
                ) from error
            if part != "vae":
                cast(made[part], getattr(torch, origin.dtype))
    return backbone(origin.name, SimpleNamespace(**made, components=made))


def part_config(family: str, origin: Origin, part: str) -> dict[str, Any]:
    """config.json of one part, without network."""
    file = f"{part}/config.json"
    folder = tiny.weights_folder(origin.name) if family == "tiny" else local_folder(origin)
    if folder is None:
        found = try_to_load_from_cache(origin.source, file, revision=origin.revision or "main")
        if isinstance(found, str):
            return json.loads(Path(found).read_text())
        if part in PUBLISHED.get(origin.source, {}):
            return PUBLISHED[origin.source][part]
        raise UserError(
            f"backbone.source={origin.source} was not fetched yet and its sizes are not known here; "
            "type backbone.source=FOLDER, where a copy lies, or leave plan=true out"
        )
    try:
        return json.loads((folder / file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"backbone.source={origin.source}: {file} cannot be read; fetch the checkpoint again"
        ) from error


def _build(name: str, config: dict[str, Any]) -> nn.Module:
    with torch.device("meta"):
        if name == "PatchVAE":
            return tiny.PatchVAE.from_config(config).eval()
        if hasattr(diffusers, name):
            return getattr(diffusers, name).from_config(config).eval()
        model = getattr(transformers, name)
        return model(model.config_class(**config)).eval()


def cast(module: nn.Module, dtype: torch.dtype) -> None:
    """Types of the parameters as `from_pretrained(dtype=...)` leaves them."""
    kept = getattr(module, "_keep_in_fp32_modules", None) or ()
    if dtype != torch.float16 and not isinstance(module, diffusers.ModelMixin):
        kept = ()  # transformers keeps them for float16 only
    for name, p in module.named_parameters():
        if not any(word in kept for word in name.split(".")):
            p.data = p.data.to(dtype)
