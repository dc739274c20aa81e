"""Does a clip of the toy world show what its caption asks for, once, whole, and in full detail?

The oracle (oracle.py) reads the clip, and each attribute is compared with the caption:

    world_a         = 1 if the oracle's likeliest answer is the caption's, else 0;
                      a in shape, colour, texture, motion, background, and camera where it moves
    world_agreement = mean over a
    object_count    = likeliest of 0, 1, 2, 3; 3 stands for 3 and more
    repetition      = 1 if object_count is above the caption's, else 0: more is what a model shows
                      beyond its training resolution
    whole, debris   = how well one whole shape fits the object, and what lies beside it: mask.py
    detail          = E(clip) / mean_k E(render_k),  E = mean |grad luminance|^2
    grid            = G(clip) / mean_k G(render_k),  G = power of the luminance on the lattice of the
                      model's tokens (spatial frequencies m / period along either axis, m = 1, 2, ...)
                      over the power beside it

where render_k are a few scenes of the same caption, drawn by the world's renderer at the clip's
own resolution and length with fixed seeds. Detail is near 1 for a sharp clip and falls with blur.
If the oracle sees no object at all, shape, colour, texture and motion count as wrong, whatever it
would have named. Over a set of clips, with means m and covariances C of the oracle's 128 features,

    frechet_distance = |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)),

here against true renders of the same captions at the clips' resolution; squared, as FID and FVD
are printed.

Where it fails. Agreement: the oracle must name something, so a blob may agree by chance, once in two
for texture of the micro world; its own errors (weights/<size>.json) are
a ceiling. Count and
repetition: taught on copies of one object, so debris may or may not count. Detail: noise, ringing
and flicker are gradients as well and can lift it to 1 and beyond; objects differ in size from
render to render, so even a perfect clip scatters around 1 (deviation 0.09, up to 1.4, in the micro
world); read it as a mean over clips. Frechet distance: biased upwards for few clips (below a few
hundred, compare only sets of equal size), blind to whatever the oracle was taught to ignore (soft
edges, noise), and of no meaning between different oracles.
"""

import math
import random
from collections.abc import Iterable

import torch
from torch import Tensor

from s2flow.embedded import world as toy
from s2flow.embedded.model import SIZES as NETWORKS
from s2flow.embedded.render import render
from s2flow.scorers import Clip, Scorer
from s2flow.scorers.mask import load_mask, measure
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
BESIDE = 2  # neighbours on either side that a frequency of the lattice is compared with


class WorldAgreement(Scorer):
    """{"world_shape", ..., "world_agreement", "object_count", "repetition", "whole", "debris",
    "detail", "grid"} of a clip.

    `size` names the world ("micro", "small" or "tiny"). A prompt that is not word for word a caption of
    that world gets None everywhere but in object_count: nobody knows how many it asks for.
    """

    version = 3  # records of another version are scored again

    def __init__(self, size: str = "micro"):
        self.oracle = load(size)
        self.weights = weights_hash(size, "mask")
        self.world = SIZES[size].world
        self.mask = load_mask()
        self.period = 4 * NETWORKS[size].patch  # pixels of a token's side
        asked = (*(f"world_{name}" for name in attributes(self.world)), "world_agreement")
        self.names = (*asked, "object_count", "repetition", "whole", "debris", "detail", "grid")

    def score(self, clip: Clip) -> dict[str, float | None]:
        """See the class."""
        video = clip.video.float().cpu()
        seen = answers(self.oracle, video[None])[0]
        scores: dict[str, float | None] = dict.fromkeys(self.names)
        asked = toy.attributes(clip.prompt, self.world)
        if asked is not None:
            scene = toy.all_captions_cached(self.world)[clip.prompt]
            right = agreement(seen, asked)
            scores |= {f"world_{name}": value for name, value in right.items()}
            scores["world_agreement"] = sum(right.values()) / len(right)
            scores["repetition"] = float(seen["count"] > scene.number)
            scores |= measure(self.mask, video, scene)
            scores |= beside_renders(video, scene, self.period)
        return scores | {"object_count": float(seen["count"])}


def agreement(seen: dict[str, str | int], asked: dict[str, str]) -> dict[str, float]:
    """1 or 0 per attribute; those of the object are 0 where no object was seen."""
    absent = seen["count"] == 0
    return {
        name: float(seen[name] == value and not (absent and name in OF_OBJECT))
        for name, value in asked.items()
        if name in seen
    }


def beside_renders(video: Tensor, scene: toy.Scene, period: int) -> dict[str, float]:
    """`detail` and `grid` of (T, H, W, 3) over the means of a scene's renders at the same size."""
    frames, height, width = video.shape[:3]
    placed = [toy.place(scene, random.Random(k)) for k in range(RENDERS)]
    renders = render(placed, height, width, frames)
    energy = sum(gradient_energy(r) for r in renders) / RENDERS
    lattice = sum(lattice_power(r, period) for r in renders) / RENDERS
    return {
        "detail": gradient_energy(video) / energy,
        "grid": lattice_power(video, period) / lattice,
    }


def lattice_power(video: Tensor, period: int) -> float:
    """Power of (T, H, W, 3) at multiples of 1 / period along rows and columns, over that beside them.

    1 where nothing repeats with the lattice. Sides that are no multiple of the period are cut.
    """
    luminance = video @ torch.tensor([0.299, 0.587, 0.114])
    total = 0.0
    for axis in (1, 2):
        side = luminance.shape[axis] // period * period
        power = torch.fft.rfft(luminance.narrow(axis, 0, side), dim=axis).abs().square()
        power = power.mean([k for k in range(3) if k != axis])
        step = side // period
        on = torch.arange(step, len(power), step)
        near = [k for k in range(-BESIDE, BESIDE + 1) if k]
        beside = torch.stack([power[(on + k).clamp(max=len(power) - 1)] for k in near]).mean(0)
        total += (power[on] / beside.clamp(min=1e-9)).log().mean().item()
    return math.exp(total / 2)


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
