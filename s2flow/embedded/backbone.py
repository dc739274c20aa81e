"""The embedded backbone as a family: a small Wan, trained on a toy world, whose weights ship.

It is a genuine `WanPipeline` folder run by the adapter of real Wan; all that is added here is that
prompts are put into the world's words first, and that unknown words are counted.
"""

import functools
import hashlib
import json
from pathlib import Path

import diffusers
import torch
import transformers
from diffusers import WanPipeline

from s2flow.backbones.base import Origin
from s2flow.backbones.checkpoint import own_memory, reason
from s2flow.backbones.pipeline import Condition
from s2flow.backbones.wan import WanBackbone
from s2flow.embedded.text import TEXT_LENGTH
from s2flow.embedded.vae import PatchVAE  # noqa: F401  (named in model_index.json)
from s2flow.embedded.world import (
    WORLDS,
    World,
    all_captions_cached,
    held_out,
    normalise,
    unknown_words,
)
from s2flow.errors import UserError, note

MAX_NOTES = 3  # prompts whose unknown words are noted
WEIGHTS = Path(__file__).parent / "weights"


def identity(origin: Origin) -> str:
    """See `base`. Raises UserError for a source or type of the user's: the weights ship in float32."""
    if origin != Origin(origin.name):
        raise UserError(
            f"backbone={origin.name} ships with its weights, in float32; for weights of your own "
            "type backbone=wan_1_3b backbone.source=FOLDER"
        )
    return weights_hash(origin.name)


def state(origin: Origin) -> None:
    """See `base`. Its noise levels and steps are the recipe's."""


def from_origin(origin: Origin, device: str) -> "TinyBackbone":
    """See `base`."""
    return load(origin.name, device)


def weights_folder(name: str) -> Path:
    """Folder of a size's weights. Raises UserError if that size was never trained."""
    folder = WEIGHTS / name
    if not (folder / "model_index.json").exists():
        shipped = sorted(p.parent.name for p in WEIGHTS.glob("*/model_index.json"))
        raise UserError(
            f"backbone={name} has no weights in this installation; type backbone={shipped[0]} or "
            f"train it: python -m s2flow.training flow {name} --state DIR"
            if shipped
            else f"no embedded weights found in {WEIGHTS.name}/; reinstall s2flow"
        )
    return folder


def weights_hash(name: str) -> str:
    """Short hash of all weights and configs of a size: part of every recipe."""
    digest = hashlib.sha256()
    for path in sorted(weights_folder(name).rglob("*")):
        if path.suffix in (".safetensors", ".json") and path.name != "card.json":
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def load(name: str, device: str, folder: Path | None = None) -> "TinyBackbone":
    """Load a size in float32, from `folder` or the package.

    Raises UserError if files are missing, truncated or altered.
    """
    folder = folder or weights_folder(name)
    diffusers.utils.logging.set_verbosity_error()  # it would report that our VAE is not Wan's
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    try:
        pipeline = WanPipeline.from_pretrained(folder, dtype=torch.float32)
    except Exception as error:  # safetensors, json and OS errors alike mean: not loadable
        raise UserError(
            f"the weights of backbone={name} cannot be read ({reason(error)}); reinstall s2flow"
        ) from error
    pipeline.to(device)
    own_memory(pipeline)
    return TinyBackbone(name, pipeline, TEXT_LENGTH)


class TinyBackbone(WanBackbone):
    """Wan's adapter with the world's words in front of the tokenizer."""

    @property
    def world(self) -> World:
        """What this size was trained on."""
        return WORLDS[self.name]

    def encode_prompt(self, prompts: list[str], negative: str, guidance: float) -> Condition:
        """See `base.Backbone`; synonyms are mapped into the world's vocabulary first.

        Unknown words are noted, once per prompt and for the first few prompts.
        """
        for prompt in prompts:
            self._note_unknown(prompt)
        known = [normalise(p, self.world)[0] for p in prompts]
        return super().encode_prompt(known, normalise(negative, self.world)[0], guidance)

    def _note_unknown(self, prompt: str) -> None:
        unknown = unknown_words(prompt, self.world)
        if not unknown or prompt in self._noted or len(self._noted) == MAX_NOTES:
            return
        self._noted.add(prompt)
        example = next(text for text in all_captions_cached(self.world) if held_out(text))
        note(
            f"backbone={self.name} was not trained on {', '.join(unknown)} "
            f"({json.dumps(prompt[:80], ensure_ascii=False)}) and shows something of its own world; "
            f'a prompt that works: prompt="{example}"'
        )

    @functools.cached_property
    def _noted(self) -> set[str]:
        """Prompts whose unknown words were noted."""
        return set()

    def oov_rate(self, prompt: str) -> float:
        """Share of the prompt's words that the model never saw, or that stand beyond its length."""
        return normalise(prompt, self.world)[1]

    def lost_words(self, prompt: str) -> tuple[int, str]:
        """See `base.Backbone`; what stands beyond its length counts as unknown words."""
        return 0, ""
