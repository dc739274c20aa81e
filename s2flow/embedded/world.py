"""The toy world that the embedded backbone was trained on: captions and their videos.

A *scene* is one or more objects (shape, colour, texture, size, motion) before a background, seen by
a camera; `render.py` draws it at any resolution.

A *world* is the part of the vocabulary that a model was trained on (`MICRO`, `SMALL`, `TINY`).
Captions have one grammar: "a large red striped ball moves right over a cloudy sky, the camera zooms
in", or "two large red balls move right on grass". They are split into training and held-out ones by
hash (`held_out`), so evaluation prompts were never seen.
"""

import functools
import hashlib
import itertools
import math
import random
from dataclasses import dataclass, field, replace

COLOURS = {
    "red": (0.90, 0.10, 0.10),
    "green": (0.10, 0.72, 0.22),
    "blue": (0.12, 0.28, 0.92),
    "yellow": (0.99, 0.88, 0.10),
    "purple": (0.62, 0.14, 0.82),
    "orange": (1.00, 0.54, 0.05),
    "white": (0.97, 0.97, 0.97),
    "black": (0.07, 0.07, 0.07),
}
SHAPES = ("ball", "square", "triangle", "star", "ring", "cross")
TEXTURES = ("plain", "striped", "dotted", "checkered")
SIZES = {"small": (0.30, 0.38), "large": (0.55, 0.76)}  # radius, in half-heights of the frame
MOTIONS = {"still": "stays still"} | {
    way: f"moves {way}" for way in ("right", "left", "up", "down")
}
MOTIONS |= {change: change for change in ("grows", "shrinks", "spins")}
BACKGROUNDS = {
    "sky": "over a cloudy sky",
    "grass": "on grass",
    "sand": "on sand",
    "night": "in the night sky",
    "bricks": "before a brick wall",
    "floor": "on a tiled floor",
}
CAMERAS = {
    "still": "",
    "in": "the camera zooms in",
    "out": "the camera zooms out",
    "pan": "the camera pans right",
}
SYNONYMS = {
    "circle": "ball", "sun": "ball", "moon": "ball", "sphere": "ball", "apple": "ball",
    "car": "square", "box": "square", "cube": "square", "house": "square", "book": "square",
    "mountain": "triangle", "pyramid": "triangle", "tree": "triangle", "boat": "triangle",
    "flower": "star", "starfish": "star", "wheel": "ring", "donut": "ring", "circus": "ring",
    "plus": "cross", "plane": "cross", "airplane": "cross", "crimson": "red", "pink": "purple",
    "violet": "purple", "gold": "yellow", "golden": "yellow", "navy": "blue", "lime": "green",
    "dark": "black", "big": "large", "huge": "large", "tiny": "small", "little": "small",
    "stripes": "striped", "dots": "dotted", "spotted": "dotted", "checked": "checkered",
    "sits": "stays still", "stands": "stays still", "flies": "moves up", "rises": "moves up",
    "falls": "moves down", "drops": "moves down", "rolls": "moves right", "runs": "moves right",
    "walks": "moves left", "drives": "moves right", "rotates": "spins", "turns": "spins",
    "rotating": "spins", "spinning": "spins", "growing": "grows", "shrinking": "shrinks",
    "night": "night sky", "space": "night sky", "galaxy": "night sky", "stars": "night sky",
    "clouds": "cloudy sky", "sunny": "cloudy sky", "beach": "sand", "desert": "sand",
    "lawn": "grass", "meadow": "grass", "field": "grass", "park": "grass", "forest": "grass",
    "bricks": "brick wall", "street": "tiled floor", "room": "tiled floor", "kitchen": "tiled floor",
    "an": "a", "the": "the", "zoom": "zooms", "pan": "pans",
}  # fmt: skip
OF_OBJECTS = {*SHAPES, *COLOURS, *TEXTURES, *SIZES}  # words that no synonym may replace
PAIRS = {"night sky", "cloudy sky", "stays still", "brick wall", "tiled floor"}  # nor their first
NUMBERS = {1: "a", 2: "two", 3: "three"}
CLOSEUP = "in closeup"  # said of a training view that is nearer than the caption's own
# Words that came later stand behind the others, so that older weights keep their token numbers.
LATER_WORDS = ("closeup", "two", "three", *(f"{s}s" for s in SHAPES if s != "cross"), "crosses")
LATER_WORDS += ("stay", "move", "grow", "shrink", "spin")
LONGEST = 23  # words that a prompt may have; the end mark makes TEXT_LENGTH of text.py
HELD_OUT_IN = 8  # one caption in eight is never trained on


@dataclass(frozen=True)
class Object:
    """One moving shape. Positions and radius in half-heights, angle in radians, all at t = 1/2."""

    shape: str
    colour: str
    texture: str
    size: str
    motion: str
    x: float = 0.0
    y: float = 0.0
    radius: float = 0.6
    angle: float = 0.0


@dataclass(frozen=True)
class Scene:
    """What a caption says (`objects[0]`, `background`, `camera`) and the rest drawn at random.

    `phase` shifts the background and `grain` divides its wavelengths; further objects are copies of
    the first one. `number` of them is in the caption, unless they only teach the oracle to count.
    """

    objects: tuple[Object, ...]
    background: str
    camera: str = "still"
    phase: tuple[float, ...] = field(default=(0.0,) * 8)
    grain: float = 1.0
    number: int = 1


@dataclass(frozen=True)
class World:
    """The share of the vocabulary that one backbone was trained on."""

    textures: tuple[str, ...]
    cameras: tuple[str, ...]
    sizes: tuple[str, ...]
    shapes: tuple[str, ...] = SHAPES
    colours: tuple[str, ...] = tuple(COLOURS)
    motions: tuple[str, ...] = tuple(MOTIONS)
    backgrounds: tuple[str, ...] = tuple(BACKGROUNDS)
    numbers: tuple[int, ...] = (1,)


MICRO = World(textures=("plain", "striped"), cameras=("still",), sizes=("large",))
SMALL = World(textures=TEXTURES, cameras=tuple(CAMERAS), sizes=("large",), numbers=(1, 2, 3))
TINY = World(textures=TEXTURES, cameras=tuple(CAMERAS), sizes=tuple(SIZES))

WORLDS = {"micro": MICRO, "small": SMALL, "tiny": TINY}


# -- captions ---------------------------------------------------------------------------------


def caption(scene: Scene, still: bool = False) -> str:
    """The scene in the world's grammar; unstated means plain texture and still camera.

    still: of one frame of it, which shows neither motion nor camera.
    """
    o = scene.objects[0]
    texture = "" if o.texture == "plain" else f" {o.texture}"
    shape, motion = o.shape, MOTIONS[o.motion]
    if scene.number > 1:
        verb, *rest = motion.split()
        shape = "crosses" if shape == "cross" else f"{shape}s"
        motion = " ".join([verb.removesuffix("s"), *rest])
    motion, camera = ("", "") if still else (f" {motion}", CAMERAS[scene.camera])
    words = f"{NUMBERS[scene.number]} {o.size} {o.colour}{texture} {shape}{motion} "
    return words + BACKGROUNDS[scene.background] + (f", {camera}" if camera else "")


def held_out(text: str) -> bool:
    """Whether a caption belongs to the evaluation split; decided by its text alone."""
    return hashlib.sha256(text.encode()).digest()[0] % HELD_OUT_IN == 0


def all_captions(world: World) -> dict[str, Scene]:
    """Every caption of a world with a scene that shows it, in a fixed order."""
    out, w = {}, world
    objects = itertools.product(w.sizes, w.colours, w.textures, w.shapes, w.motions)
    rest = list(itertools.product(w.backgrounds, w.cameras, w.numbers))
    for size, colour, texture, shape, motion in objects:
        if motion == "spins" and shape in ("ball", "ring") and texture == "plain":
            continue  # nobody can see it spin
        shown = Object(shape, colour, texture, size, motion)
        scenes = [Scene((shown,), background, camera, number=n) for background, camera, n in rest]
        out |= {caption(scene): scene for scene in scenes}
    return out


all_captions_cached = functools.cache(all_captions)  # built once per process


def held_out_captions(world: World, count: int, seed: int = 0) -> list[str]:
    """`count` captions of the evaluation split, in an order set by `seed`."""
    captions = [text for text in all_captions(world) if held_out(text)]
    random.Random(seed).shuffle(captions)
    return captions[:count]


def normalise(text: str, world: World) -> tuple[str, float]:
    """Text in the world's words, and the share of its words that the model cannot use.

    Lower-cases, drops punctuation, maps synonyms ("car" -> "square"). A word that no caption of the
    world holds becomes "unknown", which the tokenizer turns into <unk>; training has seen that through
    word dropout. Words beyond LONGEST are lost, and counted as well.
    """
    given = words_in(text)
    words, lost, own = [], 0, words_of(world)
    for word, follows in itertools.pairwise([*given, ""]):
        counted = word in LATER_WORDS and word in own  # "stars" of a world that counts
        if f"{word} {follows}" not in PAIRS and not counted and word not in OF_OBJECTS:
            word = SYNONYMS.get(word, word)
        known = [w if w in own else "unknown" for w in word.split()]
        lost += "unknown" in known or len(words) + len(known) > LONGEST
        words += known
    return " ".join(words), lost / max(len(given), 1)


def words_in(text: str) -> list[str]:
    """Lower-cased, without punctuation."""
    return "".join(c if c.isalnum() else " " for c in text.lower()).split()


def unknown_words(text: str, world: World) -> list[str]:
    """The words of a text that are not in the world's vocabulary, each once."""
    return [w for w in dict.fromkeys(words_in(text)) if normalise(w, world)[1]]


@functools.cache
def words_of(world: World) -> set[str]:
    """Every word of the world's captions."""
    captions = [CLOSEUP, *all_captions_cached(world)]
    return {w.strip(",") for text in captions for w in text.split()}


def vocabulary() -> set[str]:
    """Every word that a caption of the full grammar can contain, but for LATER_WORDS."""
    phrases = [*MOTIONS.values(), *BACKGROUNDS.values(), *CAMERAS.values(), "a"]
    return {w for p in phrases for w in p.split()} | OF_OBJECTS


def attributes(text: str, world: World) -> dict[str, str] | None:
    """What a caption of the world asks for, attribute by attribute; None for any other text."""
    scene = all_captions_cached(world).get(text)
    if scene is None:
        return None
    of_object = ("shape", "colour", "texture", "motion")
    asked = {name: getattr(scene.objects[0], name) for name in of_object}
    return asked | {"background": scene.background, "camera": scene.camera}


# -- sampling ---------------------------------------------------------------------------------


def place(scene: Scene, rng: random.Random, copies: int | None = None) -> Scene:
    """The scene with position, radius, angle, background phase and grain drawn from `rng`.

    Paths are centred on the frame so that the object stays in sight. `copies`, by default the
    scene's number, show the object at smaller size in distinct parts of the frame (several where
    the caption asks for one: the failure that native HR shows).
    """
    copies = scene.number if copies is None else copies
    o = scene.objects[0]
    radius = rng.uniform(*SIZES[o.size])
    angle = rng.uniform(-0.12, 0.12)
    if copies == 1:
        reach_x = 0.15 if o.motion in ("left", "right") else 0.55
        reach_y = 0.06 if o.motion in ("up", "down") else 0.22
        x, y = rng.uniform(-reach_x, reach_x), rng.uniform(-reach_y, reach_y)
        placed = [replace(o, x=x, y=y, radius=radius, angle=angle)]
    else:
        placed = []
        cells = [(-0.85, -0.5), (0.85, -0.5), (-0.85, 0.5), (0.85, 0.5), (0.0, -0.5), (0.0, 0.5)]
        for cx, cy in rng.sample(cells, copies):
            x, y = cx + rng.uniform(-0.12, 0.12), cy + rng.uniform(-0.1, 0.1)
            placed.append(replace(o, x=x, y=y, radius=radius * rng.uniform(0.5, 0.7), angle=angle))
    phase = tuple(rng.uniform(0, 1) for _ in range(8))
    grain = math.exp(rng.uniform(-0.22, 0.22))
    return replace(scene, objects=tuple(placed), phase=phase, grain=grain)


def sample_scenes(world: World, count: int, seed: int, split: str = "train") -> list[Scene]:
    """`count` random scenes of one split ("train" or "held_out")."""
    rng = random.Random(f"{split}-{seed}")
    texts = all_captions_cached(world)
    keys = [k for k in texts if held_out(k) == (split == "held_out")]
    return [place(texts[rng.choice(keys)], rng) for _ in range(count)]
