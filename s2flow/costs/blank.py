"""A backbone without weights: the checkpoint's own classes and sizes on the meta device.

`blank` reads configs only: from the folder, from the cache of earlier downloads, or, for the published
checkpoints, from `published.py`. It needs neither weights nor network. All parts have the real shapes
and dtypes, so that `s2flow.costs` can run the adapter's own code on them; inside `Answers` where the
model's control flow depends on data.
"""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
import transformers
from huggingface_hub import try_to_load_from_cache
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from s2flow.backbones import hunyuan, hunyuan15, wan
from s2flow.backbones.base import Origin
from s2flow.backbones.checkpoint import local_folder, present
from s2flow.backbones.published import PUBLISHED
from s2flow.embedded import backbone as tiny
from s2flow.errors import UserError

INDEX = "model_index"
FAMILIES = {  # (parts with their classes, adapter)
    "wan": (wan.PARTS, wan.WanBackbone),
    "hunyuan": (hunyuan.PARTS, hunyuan.HunyuanVideoBackbone),
    "hunyuan15": (hunyuan15.PARTS, hunyuan15.HunyuanVideo15Backbone),
    "tiny": (wan.PARTS | {"vae": "PatchVAE"}, wan.WanBackbone),
}


def blank(family: str, origin: Origin) -> Any:
    """The backbone of `origin` on the meta device; `backbone.pipeline` holds its parts.

    Raises UserError for a config that is not available, or a family that cannot be planned.
    """
    if family not in FAMILIES:
        raise UserError(f"backbone.family={family} cannot be planned yet; leave plan=true out")
    parts, backbone = FAMILIES[family]
    index, modules = part_config(family, origin, INDEX), {}
    for part, class_name in present(index, parts).items():
        if class_name is None:
            continue
        config = part_config(family, origin, part)
        try:
            modules[part] = _build(class_name, config)
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise UserError(
                f"backbone.source={origin.source}: the config of {part} does not make a {class_name} "
                f"({str(error).splitlines()[0][:100]}); fetch the checkpoint again"
            ) from error
        if part != "vae":
            cast(modules[part], getattr(torch, origin.dtype))
    return backbone(origin.name, SimpleNamespace(**modules, components=modules, config=index))


def part_config(family: str, origin: Origin, part: str) -> dict[str, Any]:
    """config.json of one part, or the folder's model_index.json, without network."""
    file = f"{part}.json" if part == INDEX else f"{part}/config.json"
    folder = tiny.weights_folder(origin.name) if family == "tiny" else local_folder(origin)
    if folder is None:
        path = try_to_load_from_cache(origin.source, file, revision=origin.revision or "main")
        if isinstance(path, str):
            return json.loads(Path(path).read_text())
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
    """Set parameter dtypes as `from_pretrained(dtype=...)` does."""
    kept = getattr(module, "_keep_in_fp32_modules", None) or ()
    if dtype != torch.float16 and not isinstance(module, diffusers.ModelMixin):
        kept = ()  # transformers keeps them for float16 only
    for name, p in module.named_parameters():
        if not any(word in kept for word in name.split(".")):
            p.data = p.data.to(dtype)


class Answers(TorchFunctionMode):
    """Values of data-dependent operations on the meta device: every mask is true, so x[m] is x and
    x[~m] is empty. `if tensor` is true.

    HunyuanVideo-1.5 sorts its text by such masks.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is Tensor.__bool__ and args[0].is_meta:
            return True
        x, mask = args if func is Tensor.__getitem__ else (None, None)
        if isinstance(mask, Tensor) and mask.dtype == torch.bool and x.is_meta:
            left = 0 if getattr(mask, "negated", False) else math.prod(mask.shape)
            return x.new_empty(left, *x.shape[mask.ndim :])
        out = func(*args, **(kwargs or {}))
        if func in (Tensor.__invert__, Tensor.bitwise_not, torch.bitwise_not):
            out.negated = not getattr(args[0], "negated", False)
        return out
