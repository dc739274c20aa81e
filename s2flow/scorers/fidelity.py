"""Distance of a clip to the clip of the same prompt and seed in another run (say, full attention).

With clip a and reference b, both (T, H, W, 3) in [0, 1], and z, z_b their final latents:

    psnr           = -10 log10 mean (a - b)^2                      in dB, at most 100 (see below)
    ssim           = mean of (2 m_a m_b + c1)(2 s_ab + c2) / ((m_a^2 + m_b^2 + c1)(s_a + s_b + c2))
    relative_error = |a - b| / |b|                                 root of the sums of squares
    lpips          = distance of AlexNet features as Zhang et al. 2018 weigh them, mean over frames
    latent_relative_error = |z - z_b| / |z_b|

SSIM follows Wang et al. 2004: means m, variances s and covariance s_ab under an 11 x 11 Gaussian
of deviation 1.5, c1 = 0.01^2, c2 = 0.03^2, only where the window fits; per frame and colour
channel, then averaged. PSNR is cut at 100 dB because JSON has no infinity: 100 means identical.
LPIPS needs `pip install --no-deps lpips torchvision` and AlexNet's weights where torchvision keeps
them (nothing is downloaded); latents are there if both runs were made with keep_latents=true, and
are compared if they have one shape. What is missing is None.

Where it fails: it is distance, not quality. The reference is itself out of distribution beyond the
training resolution, and a clip that is better is scored lower; a shift by one pixel costs more than a
blur. Both clips went through a lossy mp4, which bounds PSNR from above; the latents did not.
"""

import itertools
import json
import math
import warnings
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from s2flow.errors import UserError
from s2flow.scorers import Clip, Scorer, Suite
from s2flow.scorers.vbench import compat
from s2flow.store import clip_key, sha256_of
from s2flow.video import read_frames, size_text

PSNR_OF_IDENTICAL = 100.0
PATCH = (128, 192)  # of SSIM's map at once: what fits a core's cache
ALEXNET = "alexnet-owt-7be5be79.pth"
ALEXNET_URL = f"https://download.pytorch.org/models/{ALEXNET}"


class Fidelity(Suite):
    """Distance to run `reference`, an id in the same runs folder; see the module.

    reference="auto" is the clip of the same recipe with full attention and Euler steps, in any run of
    the folder; for methods other than s2flow and cascade every score is then None. The parts raise
    UserError if the reference has no such clip, or one of another size.
    """

    def __init__(self, reference: str):
        self.reference = reference

    def parts(self) -> dict[str, Any]:
        """Pixels, latents and LPIPS: each may be missing without the others."""
        of = {"fidelity": Pixels, "fidelity_latent": Latent, "fidelity_lpips": Lpips}
        return {name: part(self.reference) for name, part in of.items()}


class Compared(Scorer):
    """Common to pixels, latents and LPIPS: a reference, which may be made again."""

    def __init__(self, reference: str):
        self.reference = reference

    def depends(self, clip: Clip) -> list[Any] | None:
        """Hash of the clip to compare with, and whether both latents are there; None without one."""
        try:
            path = find_reference(clip, self.reference)
        except UserError:
            return None
        if path is None:
            return None
        record = json.loads((path.parents[1] / "records" / f"{path.stem}.json").read_text())
        return [record.get("sha256"), *(_latent(p).exists() for p in (clip.path, path))]

    def score(self, clip: Clip) -> dict[str, float | None]:
        """None for all of `names` without a reference. Raises UserError as `Fidelity` says."""
        path = find_reference(clip, self.reference)
        return dict.fromkeys(self.names) if path is None else self.compare(clip, path)


class Pixels(Compared):
    """{"psnr", "ssim", "relative_error"} of the frames as they were saved."""

    names = ("psnr", "ssim", "relative_error")
    version = 2  # 2: from bytes

    def compare(self, clip: Clip, path: Path) -> dict[str, float | None]:
        """The scores beside the reference at `path`."""
        a, b = clip.frames, _frames_like(clip, path)
        return {"psnr": psnr(a, b), "ssim": ssim(a, b), "relative_error": relative_error(a, b)}


class Latent(Compared):
    """{"latent_relative_error"}; None where one of the two kept no latent, or of another shape."""

    names = ("latent_relative_error",)

    def compare(self, clip: Clip, path: Path) -> dict[str, float | None]:
        """See the class."""
        files = [_latent(p) for p in (clip.path, path)]
        kept = [load_file(file)["latent"] for file in files if file.exists()]
        comparable = len(kept) == 2 and kept[0].shape == kept[1].shape
        return {"latent_relative_error": relative_error(*kept) if comparable else None}


class Lpips(Compared):
    """{"lpips"}, lower is nearer; no score while anything is in `needs`."""

    names = ("lpips",)
    preprocessing = "frames at their own size, in [-1, 1]"

    def __init__(self, reference: str):
        super().__init__(reference)
        self.file = Path(torch.hub.get_dir()) / "checkpoints" / ALEXNET

    @torch.no_grad()
    def compare(self, clip: Clip, path: Path) -> dict[str, float | None]:
        """See the class."""
        pairs = torch.stack([clip.frames, _frames_like(clip, path)], 1).movedim(-1, 2)
        values = [self.model(*(pair[:, None] / 127.5 - 1)).item() for pair in pairs]
        return {"lpips": sum(values) / len(values)}

    @property
    def needs(self) -> list[str]:
        """The missing package and file, each with what to do about it."""
        needs = []
        try:
            compat.torchvision_operators()
            import lpips  # noqa: F401 (optional)
        except Exception as error:  # torchvision for another torch raises RuntimeError
            needs.append(f"lpips ({error}): pip install --no-deps lpips torchvision")
        return needs if self.file.exists() else [*needs, f"{self.file} from {ALEXNET_URL}"]

    @cached_property
    def weights(self) -> dict[str, str]:
        """{file: sha256} of the backbone; the linear heads are those of the package."""
        return {ALEXNET: sha256_of(self.file)} if self.file.exists() else {}

    @cached_property
    def model(self) -> nn.Module:
        """LPIPS 0.1 with AlexNet, read from its file: the package itself would download it."""
        import lpips  # optional

        with warnings.catch_warnings(action="ignore"):  # it calls torchvision in an older way
            model = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
        state = torch.load(self.file, map_location="cpu", weights_only=True)
        for part in model.net.children():  # slices of AlexNet, whose layers keep their numbers
            part.load_state_dict({k: state[f"features.{k}"] for k in part.state_dict()})
        return model.eval()


def find_reference(clip: Clip, reference: str) -> Path | None:
    """The mp4 to compare with; None if reference="auto" and the clip is not of s2flow or cascade.

    Raises UserError if there is no such run or clip.
    """
    run_id, identity = reference, clip.record.get("recipe") or {}
    if reference == "auto":
        if identity.get("method") not in ("cascade", "s2flow"):
            return None
        run_id = _full_run(clip.runs_dir, identity)
    run, given = clip.runs_dir / run_id, clip.record.get("prompt", clip.prompt)
    named = (given, clip.seed) + ((clip.prompt,) if given != clip.prompt else ())  # augmented
    record = run / "records" / f"{clip_key(*named)}.json"
    # The record of a failed clip names no video.
    video = json.loads(record.read_text()).get("video") if record.exists() else None
    if not video or not (run / video).exists():
        raise UserError(
            f"reference run {run_id} has no clip of prompt {clip.prompt!r}, seed {clip.seed}: "
            "generate it with `python run.py ...` first; the table at the end of a run names its id"
        )
    return run / video


def _full_run(runs_dir: Path, identity: dict[str, Any]) -> str:
    """The run of the same recipe with full attention and Euler steps, as s2flow or as cascade."""
    for path in sorted(runs_dir.glob("*/recipe.json")):
        recipe = json.loads(path.read_text())
        plain = recipe.get("method") == "cascade" or (
            recipe.get("solver") == "euler" and recipe.get("windows") == {"name": "full"}
        )
        if plain and _of_cascade(recipe) == _of_cascade(identity):
            return path.parent.name
    raise UserError(
        "reference=auto finds no run of this recipe with full attention and Euler steps; "
        "make it with `python run.py method=cascade ...` and the same other words first"
    )


def _of_cascade(identity: dict[str, Any]) -> dict[str, Any]:
    """The fields that decide the pixels of a cascade with full attention and Euler steps."""
    own = {"method", "version", "windows", "sparsity", "density", "brick_low", "brick_high"}
    own |= {"coverage_rows", "attention", "solver", "order", "stencil", "lr_time", "upsample"}
    return {k: v for k, v in identity.items() if k not in own}


def _frames_like(clip: Clip, path: Path) -> Tensor:
    """The frames of the reference. Raises UserError if they are of another size than the clip's."""
    other = read_frames(path)
    if other.shape != clip.frames.shape:
        raise UserError(
            f"fidelity compares clips of one size: this one is {size_text(clip.frames.shape)}, that of "
            f"run {path.parents[1].name} is {size_text(other.shape)}: name a reference of the same "
            "resolution"
        )
    return other


def _latent(path: Path) -> Path:
    """The file of the final latent that a run keeps of an mp4."""
    return path.parent.parent / "latents" / f"{path.stem}.safetensors"


def psnr(a: Tensor, b: Tensor) -> float:
    """Peak signal-to-noise ratio in dB over the whole clip; (T, H, W, 3), both uint8 or in [0, 1]."""
    error = _square_error(a, b) / a.numel() / _peak(a) ** 2
    return min(-10 * math.log10(error), PSNR_OF_IDENTICAL) if error else PSNR_OF_IDENTICAL


def relative_error(a: Tensor, b: Tensor) -> float | None:
    """|a - b| / |b|; None for a black reference, which has no scale."""
    scale = _square_error(b, torch.zeros_like(b[:1]).expand_as(b))
    return math.sqrt(_square_error(a, b) / scale) if scale else None


def _square_error(a: Tensor, b: Tensor) -> float:
    """|a - b|^2, frame by frame; of bytes it is exact, because float32 holds their squares."""
    return sum(
        (x.float() - y.float()).square_().sum(dtype=torch.float64).item()
        for x, y in zip(a, b, strict=True)
    )


def _peak(x: Tensor) -> float:
    return 255.0 if x.dtype == torch.uint8 else 1.0


def ssim(a: Tensor, b: Tensor) -> float | None:
    """Structural similarity in [-1, 1] of (T, H, W, 3), both uint8 or in [0, 1].

    None for frames under 11 pixels, where no window fits.
    """
    height, width = a.shape[1] - 10, a.shape[2] - 10
    if min(height, width) < 1:
        return None
    rows, columns = PATCH
    total = 0.0
    for i, j in itertools.product(range(0, height, rows), range(0, width, columns)):
        for x, y in zip(a, b, strict=True):
            piece = (slice(i, i + rows + 10), slice(j, j + columns + 10))
            total += _ssim_map(x[piece], y[piece]).sum(dtype=torch.float64).item()
    return total / (len(a) * height * width * 3)


def _ssim_map(a: Tensor, b: Tensor) -> Tensor:
    """(h, w, 3) twice -> SSIM of the windows inside, (3, h - 10, w - 10)."""
    # Variances do not depend on where zero is; around 1/2 their rounding errors are smallest.
    x, y = (t.movedim(-1, 0).float() / _peak(t) - 0.5 for t in (a, b))
    mx, my, squares, product = _smooth(torch.stack([x, y, x * x + y * y, x * y]))
    covariance, variances = product - mx * my, squares - mx * mx - my * my
    mx, my = mx + 0.5, my + 0.5
    c1, c2 = 0.01**2, 0.03**2
    top = (2 * mx * my + c1) * (2 * covariance + c2)
    return top / ((mx * mx + my * my + c1) * (variances + c2))


def _smooth(x: Tensor) -> Tensor:
    """Gaussian of deviation 1.5 over the last two axes, where its 11 x 11 window fits."""
    k = torch.exp(-(torch.arange(11, dtype=torch.float64) - 5).square() / (2 * 1.5**2))
    for axis in (-2, -1):
        size = x.shape[axis] - 10
        out = torch.zeros_like(x.narrow(axis, 0, size))
        for i, weight in enumerate((k / k.sum()).tolist()):  # twice as fast as a convolution
            out.add_(x.narrow(axis, i, size), alpha=weight)
        x = out
    return x
