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
training resolution, and a clip that is better than it is scored lower; a shift by one pixel costs
more than a blur. Both clips went through a lossy mp4, which bounds PSNR from
above; the latents did not.
"""

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
        return {
            "fidelity": Pixels(self.reference),
            "fidelity_latent": Latent(self.reference),
            "fidelity_lpips": Lpips(self.reference),
        }


class Compared(Scorer):
    """Common to pixels, latents and LPIPS: a reference that may be made again."""

    def __init__(self, reference: str):
        self.reference = reference

    def depends(self, clip: Clip) -> list[Any] | None:
        """See `reference_now`."""
        return reference_now(clip, self.reference)


class Pixels(Compared):
    """{"psnr", "ssim", "relative_error"} of the frames as they were saved."""

    names = ("psnr", "ssim", "relative_error")
    version = 2  # 2: from bytes

    def score(self, clip: Clip) -> dict[str, float | None]:
        """See the class."""
        path = find_reference(clip, self.reference)
        if path is None:
            return dict.fromkeys(self.names)
        a, b = clip.frames, _frames_like(clip, path)
        return {"psnr": psnr(a, b), "ssim": ssim(a, b), "relative_error": relative_error(a, b)}


class Latent(Compared):
    """{"latent_relative_error"}; None where one of the two kept no latent, or of another shape."""

    names = ("latent_relative_error",)

    def score(self, clip: Clip) -> dict[str, float | None]:
        """See the class."""
        path = find_reference(clip, self.reference)
        z, other = (None if p is None else _latent(p) for p in (clip.path, path))
        comparable = z is not None and other is not None and z.shape == other.shape
        return {"latent_relative_error": relative_error(z, other) if comparable else None}


class Lpips(Compared):
    """{"lpips"}, lower is nearer; no score while anything is in `needs`."""

    names = ("lpips",)
    preprocessing = "frames at their own size, in [-1, 1]"

    def score(self, clip: Clip) -> dict[str, float | None]:
        """See the class."""
        path = find_reference(clip, self.reference)
        if path is None:
            return {"lpips": None}
        a, b = clip.frames, _frames_like(clip, path)
        values = [self._of_frame(x, y) for x, y in zip(a, b, strict=True)]
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
        if not _alexnet().exists():
            needs.append(f"{_alexnet()} from {ALEXNET_URL}")
        return needs

    @cached_property
    def weights(self) -> dict[str, str]:
        """{file: sha256} of the backbone; the linear heads are those of the package."""
        return {ALEXNET: sha256_of(_alexnet())} if _alexnet().exists() else {}

    @cached_property
    def model(self) -> nn.Module:
        """LPIPS 0.1 with AlexNet, read from its file: the package itself would download it."""
        import lpips  # optional

        with warnings.catch_warnings(action="ignore"):  # it calls torchvision in an older way
            model = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
        state = torch.load(_alexnet(), map_location="cpu", weights_only=True)
        for part in model.net.children():  # slices of AlexNet, whose layers keep their numbers
            part.load_state_dict({k: state[f"features.{k}"] for k in part.state_dict()})
        return model.eval()

    @torch.no_grad()
    def _of_frame(self, a: Tensor, b: Tensor) -> float:
        a, b = (x.movedim(-1, 0)[None].float() / 127.5 - 1 for x in (a, b))
        return self.model(a, b).item()


def _alexnet() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / ALEXNET


# -- the clip to compare with -----------------------------------------------------------------


def reference_now(clip: Clip, reference: str) -> list[Any] | None:
    """Hash of the clip to compare with, and whether both latents are there; None without one."""
    try:
        path = find_reference(clip, reference)
    except UserError:
        return None
    if path is None:
        return None
    record = json.loads((path.parents[1] / "records" / f"{path.stem}.json").read_text())
    return [record.get("sha256"), *(_kept(p).exists() for p in (clip.path, path))]


def find_reference(clip: Clip, reference: str) -> Path | None:
    """The mp4 to compare with; None if reference="auto" and the clip is not of s2flow or cascade."""
    run_id = reference
    if reference == "auto":
        identity = clip.record.get("recipe") or {}
        if identity.get("method") not in ("cascade", "s2flow"):
            return None
        run_id = find_full(clip.runs_dir, identity)
    given = clip.record.get("prompt")
    return find_clip(clip.runs_dir, run_id, clip.prompt, clip.seed, given)


def find_full(runs_dir: Path, identity: dict[str, Any]) -> str:
    """The run of the same recipe with full attention and Euler steps, as s2flow or as cascade."""
    wanted = _of_cascade(identity)
    for path in sorted(Path(runs_dir).glob("*/recipe.json")):
        recipe = json.loads(path.read_text())
        plain = recipe.get("method") == "cascade" or (
            recipe.get("solver") == "euler" and recipe.get("windows") == {"name": "full"}
        )
        if plain and _of_cascade(recipe) == wanted:
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


def find_clip(
    runs_dir: Path, run_id: str, prompt: str, seed: int, given: str | None = None
) -> Path:
    """The mp4 of a prompt and seed in a run; Raises UserError without one.

    given: the augmented text that the model got in place of the prompt, if any.
    """
    run = Path(runs_dir) / run_id
    named = (prompt, seed) if given in (None, prompt) else (given, seed, prompt)
    record = run / "records" / f"{clip_key(*named)}.json"
    # The record of a failed clip names no video.
    video = json.loads(record.read_text()).get("video") if record.exists() else None
    if not video or not (run / video).exists():
        raise UserError(
            f"reference run {run_id} has no clip of prompt {prompt!r}, seed {seed}: generate it "
            "with `python run.py ...` first; the table at the end of a run names its id"
        )
    return run / video


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


def _latent(path: Path) -> Tensor | None:
    """The final latent that was stored beside a run's mp4."""
    return load_file(_kept(path))["latent"] if _kept(path).exists() else None


def _kept(path: Path) -> Path:
    return path.parent.parent / "latents" / f"{path.stem}.safetensors"


# -- the numbers ------------------------------------------------------------------------------


def psnr(a: Tensor, b: Tensor) -> float:
    """Peak signal-to-noise ratio in dB over the whole clip; (T, H, W, 3), both uint8 or in [0, 1]."""
    error = _square_error(a, b) / a.numel() / _peak(a) ** 2
    if error == 0:
        return PSNR_OF_IDENTICAL
    return min(-10 * math.log10(error), PSNR_OF_IDENTICAL)


def relative_error(a: Tensor, b: Tensor) -> float | None:
    """|a - b| / |b|; None for a black reference, which has no scale."""
    scale = _square_error(b, torch.zeros_like(b[:1]).expand_as(b))
    return math.sqrt(_square_error(a, b) / scale) if scale else None


def _square_error(a: Tensor, b: Tensor) -> float:
    """|a - b|^2, frame by frame; of bytes it is exact, because float32 holds their squares."""
    errors = (
        (x.float() - y.float()).square_().sum(dtype=torch.float64)
        for x, y in zip(a, b, strict=True)
    )
    return sum(e.item() for e in errors)


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
    for x, y in zip(a, b, strict=True):
        for i in range(0, height, rows):
            for j in range(0, width, columns):
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
    """Gaussian of deviation 1.5 over the last two axes, where its 11 x 11 window fits.

    Sums of shifted copies, which a CPU does twice as fast as a convolution of so few channels.
    """
    k = torch.arange(6, dtype=torch.float64) - 5
    half = torch.exp(-k.square() / (2 * 1.5**2))
    half = (half / (2 * half.sum() - 1)).tolist()  # the centre occurs once, not twice
    for axis in (-2, -1):
        size = x.shape[axis] - 10
        out = x.narrow(axis, 5, size) * half[5]
        for i in range(5):
            pair = x.narrow(axis, i, size) + x.narrow(axis, 10 - i, size)
            out.add_(pair, alpha=half[i])
        x = out
    return x
