"""Does a clip of the toy world show what its caption asks for, once, and in full detail?

The oracle (oracle.py) reads the clip, and each attribute is compared with the caption:

    world_a         = 1 if the oracle's likeliest answer is the caption's, else 0;
                      a in shape, colour, texture, motion, background, and camera where it moves
    world_agreement = mean over a
    object_count    = likeliest of 0, 1, 2, 3; 3 stands for 3 and more
    repetition      = 1 if object_count > 1, else 0: a caption asks for one object, and more is
                      what a model shows beyond its training resolution
    detail          = E(clip) / mean_k E(render_k),  E = mean |grad luminance|^2

where render_k are a few scenes of the same caption, drawn by the world's renderer at the clip's
own resolution and length with fixed seeds. Detail is near 1 for a sharp clip and falls with blur.
If the oracle sees no object at all, shape, colour, texture and motion count as wrong, whatever it
would have named. Over a set of clips, with means m and covariances C of the oracle's 128 features,

    frechet_distance = |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)),

here against true renders of the same captions at the clips' resolution; squared, as FID and FVD
are printed.

Where it fails. Agreement: the oracle must name something, so a blob agrees by chance, once in six
for shape and once in two for texture of the micro world; its own errors (weights/<size>.json) are
a ceiling; only what the caption states is asked, not whether the object looks good. Count and
repetition: taught on copies of one object, so debris may or may not count. Detail: noise, ringing
and flicker are gradients as well and can lift it to 1 and beyond; objects differ in size from
render to render, so even a perfect clip scatters around 1 (deviation 0.09, up to 1.4, in the micro
world); read it as a mean over clips. Frechet distance: biased upwards for few clips (below a few
hundred, compare only sets of equal size), blind to whatever the oracle was taught to ignore (soft
edges, noise), and of no meaning between different oracles.
"""

import random
from collections.abc import Iterable

import torch
from torch import Tensor

from s2flow.backbones.tiny import world as toy
from s2flow.backbones.tiny.render import render
from s2flow.scorers import Clip
from s2flow.scorers.oracle import (
    OF_OBJECT,
    SIZES,
    Oracle,
    answers,
    attributes,
    load,
    read,
    weights_hash,
)

RENDERS = 4


class WorldAgreement:
    """{"world_shape", ..., "world_agreement", "object_count", "repetition", "detail"} of a clip.

    `size` names the world ("micro" or "tiny"). A prompt that is not word for word a caption of
    that world gets None everywhere but in object_count: nobody knows how many it asks for.
    """

    version = 2  # 2 added repetition; records of another version are scored again

    def __init__(self, size: str = "micro"):
        self.oracle = load(size)
        self.weights = weights_hash(size)
        self.world = SIZES[size].world
        asked = (*(f"world_{name}" for name in attributes(self.world)), "world_agreement")
        self.names = (*asked, "object_count", "repetition", "detail")

    def __call__(self, clip: Clip) -> dict[str, float | None]:
        """See the class."""
        seen = answers(self.oracle, clip.video[None].float().cpu())[0]
        scores: dict[str, float | None] = dict.fromkeys(self.names)
        asked = toy.attributes(clip.prompt, self.world)
        if asked is not None:
            right = agreement(seen, asked)
            scores |= {f"world_{name}": value for name, value in right.items()}
            scores["world_agreement"] = sum(right.values()) / len(right)
            scores["repetition"] = float(seen["count"] > 1)
            scores["detail"] = detail(clip.video.float().cpu(), clip.prompt, self.world)
        return scores | {"object_count": float(seen["count"])}


def agreement(seen: dict[str, str | int], asked: dict[str, str]) -> dict[str, float]:
    """1 or 0 per attribute; those of the object are 0 where no object was seen."""
    absent = seen["count"] == 0
    return {
        name: float(seen[name] == value and not (absent and name in OF_OBJECT))
        for name, value in asked.items()
        if name in seen
    }


def detail(video: Tensor, caption: str, world: toy.World) -> float:
    """Gradient energy of (T, H, W, 3) over that of the caption's renders at the same size."""
    scene = toy.all_captions_cached(world)[caption]
    frames, height, width = video.shape[:3]
    energies = [
        gradient_energy(render([placed], height, width, frames)[0])
        for placed in (toy.place(scene, random.Random(k)) for k in range(RENDERS))
    ]
    return gradient_energy(video) * RENDERS / sum(energies)


def gradient_energy(video: Tensor) -> float:
    """Mean squared difference of neighbouring luminances, down plus across."""
    luminance = video @ torch.tensor([0.299, 0.587, 0.114])
    down, across = luminance.diff(dim=1), luminance.diff(dim=2)
    return (down.square().mean() + across.square().mean()).item()


@torch.no_grad()
def features(oracle: Oracle, videos: Iterable[Tensor]) -> Tensor:
    """The oracle's features (N, 128) of clips (T, H, W, 3) in [0, 1]."""
    return torch.cat([oracle.features(read(v[None].float(), oracle.size)) for v in videos])


def renders(captions: list[str], world: toy.World, shape: tuple[int, int, int], each: int = 4):
    """`each` true renders (T, H, W, 3) of every caption at shape (frames, height, width)."""
    frames, height, width = shape
    for text in captions:
        scene = toy.all_captions_cached(world)[text]
        placed = [toy.place(scene, random.Random(1000 + k)) for k in range(each)]
        yield from render(placed, height, width, frames)


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Squared Frechet distance of features (N, D) and (M, D), each set taken as a Gaussian.

    ValueError for fewer than two rows: one clip has no covariance.
    """
    if min(len(a), len(b)) < 2:
        raise ValueError(f"{min(len(a), len(b))} clips have no covariance; give at least 2")
    a, b = a.double(), b.double()
    cov_a, cov_b = torch.cov(a.T), torch.cov(b.T)
    # tr (C_a C_b)^(1/2) = tr (S C_b S)^(1/2) with S = C_a^(1/2), whose argument is symmetric
    root = _symmetric_root(cov_a)
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()
    distance = (a.mean(0) - b.mean(0)).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross
    return distance.clamp(min=0).item()


def _symmetric_root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T
