"""MUSIQ on native crops: image quality at full resolution, not of a downscaled frame.

    musiq_512 = mean over frames f and crops c of MUSIQ(frame f, crop c) / 100           in 0 .. 1

VBench's imaging quality is the same network with the same SPAQ weights, on frames resized to 512 on
the longer side, a fifth of 2560x1536. Here nothing is resized: at most 4 frames, evenly spaced, and of
each at most 3 x 3 crops of 512 x 512, evenly spaced from border to border; a side under 512 is taken
whole. (MUSIQ evaluates each crop at its own size and at two smaller ones, as it does with any image.)

It needs pyiqa (PolyForm Noncommercial) and VBench's weights file, which is never downloaded here:
`needs` names what is missing, and then there is no score.

Where it fails: it judges photographs; a crop of sky or of blurred background counts as much as a
face; it knows nothing of the prompt, of motion, or of the frame as a whole, and rewards sharpness.
"""

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
    """{"musiq_512": in [0, 1], higher is better}, with pyiqa and its weights; see the module.

    device: auto, cpu, cuda or cuda:n. cache_dir: of VBench's weights; None: $VBENCH_CACHE_DIR or its
    default. Raises UserError for a device that is not here.
    """

    names = ("musiq_512",)
    preprocessing = "native 512x512 crops, 4 frames of at most 3x3"

    def __init__(self, device: str = "cpu", cache_dir: str | None = None):
        self.device = device_of("scorer.musiq.device", device)
        self.path = weights.cache_folder(cache_dir) / MUSIQ.file

    def score(self, clip: Clip) -> dict[str, float | None]:
        """See the module; None while something is missing."""
        if self.needs:
            return {"musiq_512": None}
        frames = clip.frames
        chosen = torch.linspace(0, len(frames) - 1, min(FRAMES, len(frames))).round().long()
        values = [self._of(crop) for t in chosen for crop in crops(frames[t])]
        return {"musiq_512": sum(values) / len(values) / 100}

    @cached_property
    def needs(self) -> list[str]:
        """The missing package and file, each with what to do about it."""
        needs = []
        try:
            _network()
        except Exception as error:  # torchvision for another torch raises RuntimeError
            needs.append(
                f"pyiqa ({error}): pip install --no-deps pyiqa==0.1.16 and what it imports"
            )
        if not self.path.exists():
            needs.append(f"{self.path} from {MUSIQ.url}")
        return needs

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

    @torch.no_grad()
    def _of(self, crop: Tensor) -> float:
        return self.model(crop.movedim(-1, 0)[None].to(self.device).float() / 255).item()


def _network() -> type[nn.Module]:
    compat.torchvision_operators()
    from pyiqa.archs import musiq_arch  # optional, and its import takes seconds

    return musiq_arch.MUSIQ


def crops(frame: Tensor) -> list[Tensor]:
    """(H, W, 3) -> up to 3 x 3 pieces of (512, 512, 3); a side under 512 stays whole."""
    rows, columns = (_starts(n) for n in frame.shape[:2])
    return [frame[i : i + SIDE, j : j + SIDE] for i in rows for j in columns]


def _starts(n: int) -> list[int]:
    """Where pieces of 512 begin on a side of n pixels: as many as fit, from border to border."""
    count = max(1, min(CROPS, n // SIDE))
    if count == 1:
        return [max(0, (n - SIDE) // 2)]
    return torch.linspace(0, n - SIDE, count).round().long().tolist()
