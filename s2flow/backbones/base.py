"""What a backbone must offer; `wan.py`, on top of `pipeline.py`, is the worked example.

A backbone hides one video model behind latents (B, C, T, H, W) in float32 and video (B, T, H, W, 3)
in [0, 1]. Guidance lives inside `velocity`. Its `router` shows every self-attention layer's q and k,
and lets the computation be replaced, through the model's own call (`routing.py`).

A family is a module of this package with three functions:

    identity(origin)             names the weights in every recipe, without reading gigabytes
    state(origin)                what else the checkpoint says (`inspect.State`); None: nothing
    from_origin(origin, device)  the backbone; raises UserError for weights that cannot be used
"""

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from s2flow.backbones.routing import AttentionRouter
from s2flow.grid import Box


@dataclass(frozen=True)
class Origin:
    """Which weights, and in which type: what a file of conf/backbone says of them.

    source: a folder, or a name on the hub at some `revision`; None: they ship with s2flow.
    """

    name: str
    source: str | None = None
    revision: str | None = None
    dtype: str = "float32"

    @classmethod
    def of(cls, conf: Any) -> "Origin":
        """The weights that a file of conf/backbone means."""
        return cls(conf.name, conf.source, conf.revision, conf.dtype)


class Backbone(Protocol):
    """A rectified-flow video model with its autoencoder and text encoder."""

    name: str
    device: str
    router: AttentionRouter
    multiple: int  # sides in pixels must be multiples of this
    frame_step: int  # frames must be a multiple of this, plus 1
    ropes: list[nn.Module]  # its modules of rotary positions
    max_side: float  # longest side, in pixels, that its positions can address
    embeds: dict[str, Tensor]  # given in place of text, in the names of the pipeline's own call

    def release(self) -> None:
        """Give the pipeline back exactly as it was; the backbone is of no use after that."""

    def encode_prompt(self, prompts: list[str], negative: str, guidance: float) -> Any:
        """Condition for a batch of prompts, passed back to `velocity` as it is.

        A model with two experts takes the second one's guidance as a fourth argument.
        """

    def velocity(self, z: Tensor, sigma: float, condition: Any) -> Tensor:
        """Guided velocity dz/dsigma, float32, shaped like z; the model is told this very sigma."""

    def encode(self, video: Tensor) -> Tensor:
        """Video in [0, 1] -> latent in the scale of the flow (the mode of the posterior)."""

    def decode(self, latent: Tensor) -> Tensor:
        """Latent -> video in [0, 1]."""

    def latent_shape(self, height: int, width: int, frames: int) -> tuple[int, int, int, int]:
        """(C, T, h, w) of a clip."""

    def token_grid(self, latent_shape: tuple[int, int, int, int]) -> Box:
        """(T, H, W) of the transformer's tokens for such a latent."""

    def oov_rate(self, prompt: str) -> float:
        """Share of the prompt's words outside the backbone's vocabulary; 0 for open vocabularies."""

    def lost_words(self, prompt: str) -> tuple[int, str]:
        """(tokens, text) of what the prompt's end loses to the text encoder's length; (0, "")."""


def beyond(tokenizer: Any, text: str, length: int) -> tuple[int, str]:
    """(tokens, text) of what a tokenizer cuts off beyond `length` tokens, its end mark included."""
    if tokenizer is None:
        return 0, ""
    ids = tokenizer(text, truncation=False, verbose=False)["input_ids"]
    if len(ids) <= length:
        return 0, ""
    lost = ids[length - 1 : -1]
    return len(lost), tokenizer.decode(lost, skip_special_tokens=True)
