"""Where a backbone's parts live, and how its weights are stored.

    offload  none    every part stays on the device
             model   text encoders, transformer and autoencoder are there one at a time, while used
             group   as model, but the transformer's blocks come and go one by one; on CUDA the next
                     one travels on a stream of its own while this one computes
    fp8      the transformer's linear layers are stored as float8_e4m3fn and cast to the model's type
             while they compute: half the memory of bfloat16, and other pixels

At rest, what is offloaded is in the CPU's memory. The flow's own state stays on the device; recorded
trajectories are on the CPU (`s2flow.flow.Trajectory`).
"""

from typing import Any

import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from diffusers.hooks import apply_group_offloading
from torch import nn

FP8 = torch.float8_e4m3fn


class _Alone(ModelHook):
    """Brings its module to the device before it computes, and sends all others to the CPU."""

    def __init__(self, device: str, modules: list[nn.Module]) -> None:
        self.device, self.modules = torch.device(device), modules

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple:
        """See accelerate; diffusers also calls it before an autoencoder's encode and decode."""
        left = [m for m in self.modules if m is not module and m.device != torch.device("cpu")]
        for other in left:
            other.to("cpu")
        if left and self.device.type == "cuda":
            torch.cuda.empty_cache()  # what left in many pieces would not fit the next in one
        module.to(self.device)
        return args, kwargs


def place(backbone: Any, device: str, offload: str = "none", fp8: bool = False) -> None:
    """Put a backbone that was loaded on the CPU where it shall work; `backbone.device` says where.

    `device` is where it computes, "cpu" included (tests). Once per backbone: hooks stay.
    """
    parts = {k: m for k, m in backbone.pipeline.components.items() if isinstance(m, nn.Module)}
    transformers = {k: m for k, m in parts.items() if k.startswith("transformer")}
    backbone.device = device
    if fp8:
        for module in transformers.values():
            module.enable_layerwise_casting(storage_dtype=FP8, compute_dtype=module.dtype)
    if offload == "none":
        for module in parts.values():
            module.to(device)
        return
    if offload == "group":
        for module in transformers.values():
            apply_group_offloading(
                module,
                onload_device=torch.device(device),
                offload_device=torch.device("cpu"),
                offload_type="block_level",
                num_blocks_per_group=1,
                use_stream=device.startswith("cuda"),
            )
        parts = {k: m for k, m in parts.items() if k not in transformers}
    alone = list(parts.values())
    for module in alone:
        add_hook_to_module(module, _Alone(device, alone))
