"""Does a clip of the toy world show what its caption asks for, once, and in full detail?

The oracle (oracle.py) reads the clip, and each attribute is compared with the caption:

    world_a         = 1 if the oracle's likeliest answer is the caption's, else 0;
                      a in shape, colour, texture, motion, background
    world_agreement = mean over a
    object_count    = likeliest of 0, 1, 2, 3; 3 stands for 3 and more
    detail          = E(clip) / mean_k E(render_k),  E = mean |grad luminance|^2

where render_k are a few scenes of the same caption, drawn by the world's renderer at the clip's
own resolution and length with fixed seeds. A caption asks for one object, so a count above 1 is
the repetition that a model shows beyond its training resolution; detail is near 1 for a sharp clip
and falls with blur. If the oracle sees no object at all, shape, colour, texture and motion count
as wrong, whatever it would have named.

Where it fails. Agreement: the oracle must name something, so a blob agrees by chance, once in six
for shape and once in two for texture of the micro world; its own errors (weights/<size>.json) are
a ceiling; only what the caption states is asked, not whether the object looks good. Count: taught
on copies of one object, so debris may or may not count. Detail: noise, ringing and flicker are
gradients as well and can lift it to 1 and beyond; objects differ in size from render to render,
so even a perfect clip scatters around 1 (deviation 0.09, up to 1.4, in the micro world); read it
as a mean over clips.
"""

import random

import torch
from torch import Tensor

from s2flow.backbones.tiny import world as toy
from s2flow.scorers import Clip
from s2flow.scorers.oracle import ATTRIBUTES, SIZES, answers, load, weights_hash

RENDERS = 4
NAMES = (*(f"world_{name}" for name in ATTRIBUTES), "world_agreement", "detail")


class WorldAgreement:
    """{"world_shape", ..., "world_agreement", "object_count", "detail"} of one world's clips.

    `size` names the world ("micro" or "tiny"). A prompt that is not word for word a caption of
    that world gets None everywhere but in object_count.
    """

    def __init__(self, size: str = "micro"):
        self.oracle = load(size)
        self.weights = weights_hash(size)
        self.world = SIZES[size].world

    def __call__(self, clip: Clip) -> dict[str, float | None]:
        """See the class."""
        seen = answers(self.oracle, clip.video[None].float().cpu())[0]
        scores: dict[str, float | None] = dict.fromkeys(NAMES)
        asked = toy.attributes(clip.prompt, self.world)
        if asked is not None:
            right = agreement(seen, asked)
            scores |= {f"world_{name}": value for name, value in right.items()}
            scores["world_agreement"] = sum(right.values()) / len(right)
            scores["detail"] = detail(clip.video.float().cpu(), clip.prompt, self.world)
        return scores | {"object_count": float(seen["count"])}


def agreement(seen: dict[str, str | int], asked: dict[str, str]) -> dict[str, float]:
    """1 or 0 per attribute; those of the object are 0 where no object was seen."""
    absent = seen["count"] == 0
    return {
        name: float(seen[name] == asked[name] and not (absent and name != "background"))
        for name in ATTRIBUTES
    }


def detail(video: Tensor, caption: str, world: toy.World) -> float:
    """Gradient energy of (T, H, W, 3) over that of the caption's renders at the same size."""
    scene = toy.all_captions_cached(world)[caption]
    frames, height, width = video.shape[:3]
    energies = [
        gradient_energy(toy.render([placed], height, width, frames)[0])
        for placed in (toy.place(scene, random.Random(k)) for k in range(RENDERS))
    ]
    return gradient_energy(video) * RENDERS / sum(energies)


def gradient_energy(video: Tensor) -> float:
    """Mean squared difference of neighbouring luminances, down plus across."""
    luminance = video @ torch.tensor([0.299, 0.587, 0.114])
    down, across = luminance.diff(dim=1), luminance.diff(dim=2)
    return (down.square().mean() + across.square().mean()).item()
