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

where render_k are four renders of the caption at the clip's own resolution and length, seeds fixed.
Detail is near 1 for a sharp clip and falls with blur. If the oracle sees no object at all, shape,
colour, texture and motion count as wrong. Over a set of clips, with means m and covariances C of the
oracle's 128 features,

    frechet_distance = |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)),

here against true renders of the same captions at the clips' resolution; squared, as FID and FVD are.

Where it fails. Agreement: the oracle must name something, so a blob may agree by chance; its own errors
(weights/<size>.json) are a ceiling. Count and repetition: taught on copies of one object, so debris may
or may not count. Detail: noise, ringing and flicker are gradients as well; even a perfect clip scatters
around 1 (deviation 0.09, up to 1.4, in the micro world), so read it as a mean over clips. Frechet
distance: biased upwards for few clips (below a few hundred, compare only sets of equal size), blind to
what the oracle was taught to ignore (soft edges, noise), of no meaning between different oracles.
"""

import math
import random

import torch
from torch import Tensor

from s2flow.embedded import world as toy
from s2flow.embedded.model import SIZES as NETWORKS
from s2flow.embedded.render import render
from s2flow.scorers import Clip, Scorer
from s2flow.scorers.mask import load_mask, measure
from s2flow.scorers.oracle import OF_OBJECT, SIZES, answers, attributes, load, weights_hash
from s2flow.video import luminance

RENDERS = 4
BESIDE = (-2, -1, 1, 2)  # neighbours that a frequency of the lattice is compared with


class WorldAgreement(Scorer):
    """The scores of the module docstring, by the oracle of world `size` ("micro", "small", "tiny").

    A prompt that is not word for word a caption of that world gets None everywhere but in object_count.
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
        seen = answers(self.oracle, clip.video[None])[0]
        count = seen["count"]
        scores = dict.fromkeys(self.names) | {"object_count": float(count)}
        asked = toy.attributes(clip.prompt, self.world)
        if asked is None:
            return scores
        scene = toy.all_captions_cached(self.world)[clip.prompt]
        right = {
            f"world_{name}": float(seen[name] == value and (count > 0 or name not in OF_OBJECT))
            for name, value in asked.items()
            if name in seen
        }
        scores |= right | {"world_agreement": sum(right.values()) / len(right)}
        scores["repetition"] = float(count > scene.number)
        scores |= measure(self.mask, clip.video, scene)
        return scores | beside_renders(clip.video, scene, self.period)


def beside_renders(video: Tensor, scene: toy.Scene, period: int) -> dict[str, float]:
    """`detail` and `grid` of (T, H, W, 3) over the means of a scene's renders at the same size."""
    frames, height, width = video.shape[:3]
    placed = [toy.place(scene, random.Random(k)) for k in range(RENDERS)]
    true = [luminance(r) for r in render(placed, height, width, frames)]
    energy = sum(map(gradient_energy, true)) / RENDERS
    lattice = sum(lattice_power(y, period) for y in true) / RENDERS
    y = luminance(video)
    return {"detail": gradient_energy(y) / energy, "grid": lattice_power(y, period) / lattice}


def lattice_power(y: Tensor, period: int) -> float:
    """Power of (T, H, W) at multiples of 1 / period along rows and columns, over that beside them.

    1 where nothing repeats with the lattice. Sides that are no multiple of the period are cut.
    """
    total = 0.0
    for axis in (1, 2):
        step = y.shape[axis] // period
        power = torch.fft.rfft(y.narrow(axis, 0, step * period), dim=axis).abs().square()
        power = power.mean((0, 3 - axis))
        on = torch.arange(step, len(power), step)
        beside = torch.stack([power[(on + k).clamp(max=len(power) - 1)] for k in BESIDE]).mean(0)
        total += (power[on] / beside.clamp(min=1e-9)).log().mean().item()
    return math.exp(total / 2)


def gradient_energy(y: Tensor) -> float:
    """Mean squared difference of neighbouring luminances (T, H, W), down plus across."""
    return sum(y.diff(dim=axis).square().mean() for axis in (1, 2)).item()


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
    values, vectors = torch.linalg.eigh(cov_a)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()
    distance = (a.mean(0) - b.mean(0)).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross
    return distance.clamp(min=0).item()
