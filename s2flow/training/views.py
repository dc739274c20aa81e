"""Training clips of the flow: the toy world at several scales.

A model trained at one scale only fails at HR, because edges, stripes and backgrounds are twice as large
in pixels as in training, whereas real video models are trained on close-ups, too. Four kinds of view:

    plain   the LR frame of the caption
    close   the LR frame zoomed in up to 2.2 times, the object in it; named in the caption from 1.3 on
    view    a frame of another shape or area, the scene scaled with it
    pixel   the same frames, objects at their LR size in pixels: more area does not mean more objects

Areas are at most 2.4 times LR's. HR has 4 times, and is never in the training data.
"""

import math
import random
from dataclasses import dataclass, replace

from torch import Tensor

from s2flow.embedded.model import Size
from s2flow.embedded.render import render
from s2flow.embedded.world import CLOSEUP, WORLDS, Scene, caption, sample_scenes

LR = (1.0, 1.0)  # height and width of a frame, relative to LR
SHAPES = ((1.5, 2 / 3), (0.75, 4 / 3), (1.25, 7 / 6), (1.5, 1.5))
SHARES = {"plain": 0.45, "close": 0.30, "view": 0.15, "pixel": 0.10}
LAST_SHARES = {"plain": 0.76, "close": 0.12, "view": 0.08, "pixel": 0.04}
MAX_ZOOM, NAMED_ZOOM = 2.2, 1.3  # zoom of close-ups; the zoom from which the caption names it
REVERSED = ("left", "down", "shrinks")  # time reversals of right, up, grows
REVERSED_SHARE = 0.15  # share of REVERSED motions that a lopsided batch keeps


@dataclass(frozen=True)
class View:
    """A kind of view with its frame (height and width relative to LR) and zoom."""

    kind: str
    shape: tuple[float, float]
    zoom: float

    @classmethod
    def draw(cls, rng: random.Random, shares: dict[str, float] = SHARES) -> "View":
        """A view of a random kind."""
        (kind,) = rng.choices(list(shares), list(shares.values()))
        shape = LR if kind in ("plain", "close") else rng.choice(SHAPES)
        zoom = 1.0
        if kind == "close":
            zoom = math.exp(rng.uniform(0, math.log(MAX_ZOOM)))
        if kind == "view":
            zoom = math.sqrt(math.prod(shape)) * rng.uniform(0.9, 1.1)
        return cls(kind, shape, zoom)

    def pixels(self, size: Size) -> tuple[int, int]:
        """Height and width of the frame, in whole tokens."""
        token, sides = 4 * size.patch, (size.height, size.width)
        return tuple(round(f * s / token) * token for f, s in zip(self.shape, sides, strict=True))

    def place(self, scene: Scene, size: Size, rng: random.Random) -> Scene:
        """The scene with its objects where this view shows them."""
        if self.kind == "plain":
            return scene
        half = [side / size.height / self.zoom for side in self.pixels(size)]  # in half-heights
        if self.kind == "view":
            spread = half[1] / 1.5, half[0]
            moved = [replace(o, x=o.x * spread[0], y=o.y * spread[1]) for o in scene.objects]
            return replace(scene, objects=tuple(moved))
        # close: the object's centre anywhere at least a fifth of its radius from the border;
        # pixel: the complete object anywhere in the frame
        (first,) = scene.objects
        margin, least = (0.2, 0.5) if self.kind == "close" else (1.0, 0.0)
        reach = [max(h - margin * first.radius, least * first.radius) for h in half]
        dx = rng.uniform(-reach[1], reach[1]) - first.x
        dy = rng.uniform(-reach[0], reach[0]) - first.y
        return replace(scene, objects=(replace(first, x=first.x + dx, y=first.y + dy),))


def clips(
    size: Size,
    view: View,
    count: int,
    rng: random.Random,
    times: int | Tensor | None = None,
    device: str = "cpu",
    lopsided: bool = False,
) -> tuple[Tensor, list[str]]:
    """`count` training clips in [-1, 1] as (B, 3, T, H, W), and their captions.

    times: of the frames, see `render`; a Tensor means stills, whose captions name no motion.
    lopsided: motions that are the time reversal of another (REVERSED) are rare. If both directions are
    equally frequent, a network that is symmetric in time stays at a saddle point: the direction of time
    lowers the loss only together with the word for each direction.
    """
    scenes: list[Scene] = []
    while len(scenes) < count:
        drawn = sample_scenes(WORLDS[size.world], count, rng.getrandbits(48))
        if view.kind in ("close", "pixel"):  # a single object can be moved anywhere
            drawn = [s for s in drawn if s.number == 1]
        for s in drawn:
            if (
                not lopsided
                or s.objects[0].motion not in REVERSED
                or rng.random() < REVERSED_SHARE
            ):
                scenes.append(s)
    scenes = [view.place(s, size, rng) for s in scenes[:count]]
    times = size.frames if times is None else times
    x = render(scenes, *view.pixels(size), times, device, 2 / size.height / view.zoom)
    suffix = f", {CLOSEUP}" if view.kind == "close" and view.zoom > NAMED_ZOOM else ""
    texts = [caption(s, still=isinstance(times, Tensor)) + suffix for s in scenes]
    return x.movedim(-1, 1) * 2 - 1, texts
