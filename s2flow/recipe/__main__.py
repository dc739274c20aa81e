"""`python -m s2flow.recipe FOLDER`: write what is derived from the declaration of knobs.

FOLDER is a checkout: docs/knobs.md, and s2flow/recipe/keywords.py for type checkers.
"""

import sys
from dataclasses import Field
from pathlib import Path

from s2flow.recipe.schema import CLIP_KNOBS, KNOBS, page

TYPES = {
    "list[int] | None": "Sequence[int] | None",
    "list[float] | None": "Sequence[float] | None",
}
HEAD = '''"""Keywords of `s2flow.generate`, for type checkers; by `python -m s2flow.recipe .`."""

from collections.abc import Sequence
from typing import Any, Literal, TypedDict


class Knobs(TypedDict, total=False):
    """Knobs that describe a clip (docs/knobs.md), and diffusers' names of some of them."""

    method: str | dict[str, Any]
    windows: str | dict[str, Any]
'''
THEIRS = """    num_frames: int | None
    num_inference_steps: int | None
    guidance_scale: float | None
    guidance_scale_2: float | None
    prompt_embeds: Any
    prompt_embeds_2: Any
    prompt_embeds_mask: Any
    prompt_embeds_mask_2: Any
    prompt_attention_mask: Any
    pooled_prompt_embeds: Any
    negative_prompt_embeds: Any
    negative_prompt_embeds_2: Any
    negative_prompt_embeds_mask: Any
    negative_prompt_embeds_mask_2: Any
"""


def keywords() -> str:
    """The text of keywords.py."""
    knobs = [f"    {f.name}: {_type(f)}\n" for f in KNOBS if f.name in CLIP_KNOBS]
    return HEAD + "".join(knobs) + THEIRS


def _type(f: Field) -> str:
    if f.metadata["choices"]:
        words = (f'"{word}"' for word in f.metadata["choices"])
        return f"Literal[{', '.join(words)}]"
    if f.type in (int, float, str, bool):
        return f.type.__name__
    text = str(f.type).removeprefix("typing.")
    return TYPES.get(text, text)


def main() -> None:
    """Write both files below the folder that was typed."""
    root = Path(sys.argv[1])
    (root / "docs" / "knobs.md").write_text(page(), encoding="utf-8")
    (root / "s2flow" / "recipe" / "keywords.py").write_text(keywords(), encoding="utf-8")


if __name__ == "__main__":
    main()
