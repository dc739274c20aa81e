"""MUSIQ on native crops: image quality at full resolution, not of a downscaled frame.

    musiq_512 = mean over frames f and crops c of MUSIQ(frame f, crop c) / 100           in 0 .. 1

VBench's imaging quality is the same network and weights (SPAQ) on frames resized to 512 on the longer
side. Here nothing is resized: at most 4 frames, evenly spaced, and of each at most 3 x 3 crops of
512 x 512, evenly spaced from border to border; a side under 512 is taken whole.

It needs pyiqa (PolyForm Noncommercial) and VBench's weights file, which is never downloaded here.

Where it fails: it judges photographs; a crop of sky or of blurred background counts as much as a
face; it knows nothing of the prompt, of motion, or of the frame as a whole, and rewards sharpness.
"""

import itertools
from functools import cached_property

import torch
from torch import Tensor, nn

from s2flow.scorers import Clip, Scorer, device_of
from s2flow.scorers.vbench import compat, weights
from s2flow.store import sha256_of

MUSIQ = next(w for w in weights.TABLE if w.key == "musiq_spaq")
FILE = MUSIQ.file.rpartition("/")[2]
SIDE, FRAMES, CROPS = 512, 4, 3


class Musiq(Scorer):
    """{"musiq_512": in [0, 1], higher is better}, None while anything is in `needs`.

    device: auto, cpu, cuda or cuda:n. cache_dir: of VBench's weights; None: $VBENCH_CACHE_DIR or its
    default. Raises UserError for a device that is not here.
    """

    names = ("musiq_512",)
    preprocessing = "native 512x512 crops, 4 frames of at most 3x3"

    def __init__(self, device: str = "cpu", cache_dir: str | None = None):
        self.device = device_of("scorer.musiq.device", device)
        self.path = weights.cache_folder(cache_dir) / MUSIQ.file

    @torch.no_grad()
    def score(self, clip: Clip) -> dict[str, float | None]:
        """See the class."""
        if self.needs:
            return {"musiq_512": None}
        chosen = torch.linspace(0, len(clip.frames) - 1, min(FRAMES, len(clip.frames)))
        pieces = [crop for t in chosen.round().long() for crop in crops(clip.frames[t])]
        inputs = (crop.movedim(-1, 0)[None].to(self.device).float() / 255 for crop in pieces)
        return {"musiq_512": sum(self.model(x).item() for x in inputs) / len(pieces) / 100}

    @cached_property
    def needs(self) -> list[str]:
        """The missing package and file, each with what to do about it."""
        needs = []
        try:
            _network()
        except Exception as error:  # torchvision for another torch raises RuntimeError
            what = "pip install --no-deps pyiqa==0.1.16 and what it imports"
            needs.append(f"pyiqa ({error}): {what}")
        return needs if self.path.exists() else [*needs, f"{self.path} from {MUSIQ.url}"]

    @cached_property
    def weights(self) -> dict[str, str]:
        """{file: sha256}; empty while it is missing."""
        return {FILE: sha256_of(self.path)} if self.path.exists() else {}

    @cached_property
    def model(self) -> nn.Module:
        """MUSIQ with SPAQ's one score; its file is read as plain tensors."""
        model = _network()(pretrained=False)
        state = torch.load(self.path, map_location="cpu", weights_only=True)
        model.load_state_dict({k.removeprefix("module."): v for k, v in state.items()})
        return model.to(self.device).eval()


def _network() -> type[nn.Module]:
    compat.torchvision_operators()
    from pyiqa.archs import musiq_arch  # optional, and its import takes seconds

    return musiq_arch.MUSIQ


def crops(frame: Tensor) -> list[Tensor]:
    """(H, W, 3) -> up to 3 x 3 pieces of (512, 512, 3); a side under 512 stays whole."""
    places = itertools.product(*map(_starts, frame.shape[:2]))
    return [frame[i : i + SIDE, j : j + SIDE] for i, j in places]


def _starts(n: int) -> list[int]:
    """Where pieces of 512 begin on a side of n pixels: as many as fit, from border to border."""
    if n < 2 * SIDE:
        return [max(0, (n - SIDE) // 2)]
    return torch.linspace(0, n - SIDE, min(CROPS, n // SIDE)).round().long().tolist()
