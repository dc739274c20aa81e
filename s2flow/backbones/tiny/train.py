"""Train the embedded backbone from nothing: autoencoder, then the flow with its text encoder.

    python -m s2flow.backbones.tiny.train micro --minutes 100 --state DIR

Flow matching: z = (1 - sigma) x0 + sigma eps, loss |v_theta(z, sigma, text) - (eps - x0)|^2, sigma
logit-normal. One pixel count only: multi-scale training would hide the very failure that the method
repairs. Single frames come first: they teach shape, colour and background some five times faster
than whole clips, which then teach motion, one direction of time before both (`Pool.batch`). In the
last stage every other shard of the pool has another aspect ratio at the same scale and area, as real
video models are trained: attention that has only ever seen one frame wipes objects out at HR.
Matrices inside the transformer are trained by Muon, everything else by AdamW; weights are averaged.

Everything lives in DIR (outside Git): `vae/`, `pool-*.pt` (rendered and encoded clips, renewed while
training) and `flow.pt`, written to a temporary name and renamed, so a killed run goes on where it
last saved, with the same command. `--export` writes the averaged weights as a `WanPipeline` folder;
`--init` starts from such a folder (without a name: the one in the package) instead of from nothing.
"""

import argparse
import json
import math
import os
import random
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from s2flow.backbones.tiny.model import Size, build_flow, embed
from s2flow.backbones.tiny.render import render
from s2flow.backbones.tiny.text import build_tokenizer
from s2flow.backbones.tiny.vae import PatchVAE
from s2flow.backbones.tiny.world import MOTIONS, WORLDS, caption, sample_scenes

WEIGHTS = Path(__file__).parent / "weights"
REVERSED = ("left", "down", "shrinks")  # right, up, grows, run backwards
RARE = 0.15  # share of those clips that a lopsided batch keeps
SHAPES = ((2, 3), (3, 2), (2, 3), (1.5, 4), (2, 3), (4, 1.5))  # of a shard, in half-heights

SIZES = {
    "micro": Size(
        32, 48, "micro", 4, 6, 384, 96, 2e-3, 3072, ((0.2, 1, 128), (1.0, 8, 64)), logit_mean=0.5
    ),
    "tiny": Size(
        64, 96, "tiny", 6, 8, 768, 96, 1e-3, 8192, ((0.2, 1, 1024), (1.0, 8, 256)), logit_mean=0.3
    ),
}


def clips(
    size: Size, seed: int, count: int, scale: int = 1, device="cpu", shape=SHAPES[0]
) -> tuple[Tensor, list]:
    """`count` training clips in [-1, 1] as (B, 3, T, H, W), and their captions.

    In frames of another shape, objects keep their size in pixels and spread over the whole frame.
    """
    unit = size.height * scale / 2  # pixels in a half-height
    scenes = sample_scenes(WORLDS[size.world], count, seed)
    spread = [
        replace(
            s,
            objects=tuple(
                replace(o, x=o.x * shape[1] / 3, y=o.y * shape[0] / 2) for o in s.objects
            ),
        )
        for s in scenes
    ]
    height, width = (round(side * unit) for side in shape)
    x = render(spread, height, width, size.frames, device, 1 / unit)
    return x.movedim(-1, 1) * 2 - 1, [caption(s) for s in scenes]


# -- autoencoder ------------------------------------------------------------------------------


def train_vae(size: Size, folder: Path, steps: int, device: str) -> PatchVAE:
    """Fit the autoencoder on single frames of both sizes, set the latent scale, save it."""
    x, _ = clips(size, 1, 192, device=device)
    vae = PatchVAE().to(device)
    vae.fit_pca(x)
    learned = [p for p in vae.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(learned, lr=2e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=steps)
    for step in range(steps):
        if step % 40 == 0:
            small, _ = clips(size, 10_000 + step, 64, device=device)
            large, _ = clips(size, 20_000 + step, 24, scale=2, device=device)
        frames = random.Random(step).sample(range(size.frames), 2)
        x = small[:, :, frames] if step % 2 else large[step // 2 % 3 :: 3, :, frames]
        z = vae.encode(x).latent_dist.mode()
        z = z + 0.02 * z.detach().std() * torch.randn_like(z)  # the flow will not be exact
        error = vae.decode(z).sample - x
        loss = error.square().mean() + 0.1 * error.abs().mean()
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(learned, 0.1)
        optimiser.step()
        schedule.step()
        if step % 100 == 0 or step == steps - 1:
            psnr = 10 * math.log10(4 / error.square().mean().item())
            print(f"vae step {step}/{steps}  {psnr:.1f} dB at {x.shape[-2]}x{x.shape[-1]}")
    with torch.no_grad():
        x, _ = clips(size, 2, 256, device=device)
        z = vae.encode(x).latent_dist.mode()
        std = z.std((0, 2, 3, 4))
        target = std.sqrt() / std.sqrt().square().mean().sqrt()  # see vae.py on latent scaling
        mean = z.mean((0, 2, 3, 4))
        vae.register_to_config(latents_mean=mean.tolist(), latents_std=(std / target).tolist())
    vae.save_pretrained(folder)
    return vae


def normalised_latent(vae: PatchVAE, x: Tensor) -> Tensor:
    """Latent of x in the scale that the flow sees."""
    mean, std = (
        torch.tensor(v, device=x.device).view(1, -1, 1, 1, 1)
        for v in (vae.config.latents_mean, vae.config.latents_std)
    )
    return (vae.encode(x).latent_dist.mode() - mean) / std


# -- pool of encoded clips --------------------------------------------------------------------


class Pool:
    """Six shards of rendered, encoded clips; `renew` replaces the oldest with fresh ones."""

    def __init__(self, size: Size, vae: PatchVAE, folder: Path, device: str):
        self.size, self.vae, self.folder, self.device = size, vae, folder, device
        self.shards, self.born = [], 0
        for path in sorted(folder.glob("pool-*.pt"))[-6:]:
            self.shards.append(torch.load(path, weights_only=True))
            self.born = int(path.stem.split("-")[1]) + 1
        while len(self.shards) < 2:
            self.renew()

    @torch.no_grad()
    def renew(self, shape: tuple[float, float] = SHAPES[0]) -> None:
        """Render and encode one shard of scenes never used before, in frames of one shape."""
        latents, texts = [], []
        for k in range(0, self.size.pool, 128):
            seed = 1_000_000 + self.born * 1000 + k
            x, text = clips(self.size, seed, 128, device=self.device, shape=shape)
            latents.append(normalised_latent(self.vae, x).half())
            texts += text
        shard = {"z": torch.cat(latents), "text": texts}
        if self.device == "cpu":  # a GPU renders faster than it writes
            save(shard, self.folder / f"pool-{self.born:05d}.pt")
            for old in sorted(self.folder.glob("pool-*.pt"))[:-6]:
                old.unlink()
        self.shards = [*self.shards[-5:], shard]
        self.born += 1

    def batch(
        self, count: int, frames: int, rng: random.Random, lopsided: bool = False
    ) -> tuple[Tensor, list[str]]:
        """Random clips of `frames` consecutive frames: (count, C, frames, h, w) and captions.

        `lopsided`: motions that are another one's reverse in time (REVERSED) are rare. While both
        directions are as frequent, a network that is symmetric in time is a saddle it does not
        leave: knowing which way time runs pays only together with knowing which word names which
        direction. With one direction rare, time's arrow pays by itself, and the words follow.
        """
        shard = rng.choice(self.shards)
        rows = rng.sample(range(len(shard["text"])), min(2 * count, len(shard["text"])))
        if lopsided:
            rows = [i for i in rows if not reverses(shard["text"][i]) or rng.random() < RARE]
        rows = rows[:count]
        start = rng.randint(0, self.size.frames - frames)
        z = shard["z"][rows][:, :, start : start + frames].float()
        return z.to(self.device), [shard["text"][i] for i in rows]


def reverses(text: str) -> bool:
    """Whether the caption names a motion of REVERSED."""
    return any(f" {MOTIONS[name]} " in text for name in REVERSED)


def save(state: dict, path: Path) -> None:
    """torch.save that never leaves a half-written file under the final name."""
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)


# -- flow -------------------------------------------------------------------------------------


def corrupt(text: str, rng: random.Random, frames: int) -> str:
    """Training captions lose words now and then, so that any text is a legal prompt.

    A single frame shows no motion, so its caption names none: to be trained on motion words that
    change nothing makes them all alike in the text encoder, and whole clips cannot undo that.
    """
    if rng.random() < 0.1:
        return ""  # the unconditional branch of guidance
    if frames == 1:
        for phrase in MOTIONS.values():
            text = text.replace(f" {phrase}", "")
    words = [w for w in text.split() if rng.random() > 0.02]
    words = ["qqq" if rng.random() < 0.02 else w for w in words]  # <unk>
    if rng.random() < 0.3:
        words = [w for w in words if w not in ("large", "small")]
    return " ".join(words)


def flow_loss(
    flow: nn.ModuleDict, tokenizer, x0: Tensor, texts: list[str], size: Size, half: bool
) -> Tensor:
    """Squared velocity error at random noise levels, antithetic within the batch.

    Plain, plus the part that is coarse and odd in time once more: see `coarse_reversal`.
    """
    B, device = len(x0), x0.device
    u = (torch.arange(B, device=device) + torch.rand(1, device=device)) / B
    sigma = torch.sigmoid(
        size.logit_mean + torch.erfinv((2 * u - 1).clamp(-0.999, 0.999)) * 2**0.5
    )
    sigma = size.shift * sigma / (1 + (size.shift - 1) * sigma)
    s = sigma.view(-1, 1, 1, 1, 1)
    eps = torch.randn_like(x0)
    with torch.autocast(x0.device.type, torch.bfloat16, enabled=half):
        text = embed(flow["text_encoder"], tokenizer, texts, device)
        v = flow["transformer"](
            hidden_states=(1 - s) * x0 + s * eps,
            timestep=1000 * sigma,
            encoder_hidden_states=text,
            return_dict=False,
        )[0]
    error = v.float() - (eps - x0)
    return error.square().mean() + coarse_reversal(error)


def coarse_reversal(error: Tensor) -> Tensor:
    """Mean square of the part of (B, C, T, h, w) that is coarse and odd under time reversal.

    Scaled to be the plain mean square for white noise. What tells left from right, or growing from
    shrinking, is in these few numbers only, a fortieth of the plain loss at sigma 0.9. Weighting a
    part of a squared error more leaves its minimum in place.
    """
    side = min(error.shape[-2:]) // 2
    coarse = F.avg_pool3d(error, (1, side, side))
    return 2 * side**2 * ((coarse - coarse.flip(2)) / 2).square().mean()


def optimisers(flow: nn.ModuleDict, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the transformer's blocks, AdamW for the rest."""
    matrices = [
        p
        for name, p in flow["transformer"].named_parameters()
        if p.ndim == 2 and name.startswith("blocks.")
    ]
    chosen = {id(p) for p in matrices}
    rest = [p for p in flow.parameters() if id(p) not in chosen]
    muon = torch.optim.Muon(matrices, lr=lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    return [muon, torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.98), weight_decay=0.01)]


def start_from(folder: Path, flow: nn.ModuleDict) -> int:
    """Load exported weights into the networks; returns the samples that they have seen."""
    pipeline = WanPipeline.from_pretrained(folder, dtype=torch.float32)
    for name, network in flow.items():
        network.load_state_dict(getattr(pipeline, name).state_dict())
    return json.loads((folder / "card.json").read_text())["samples_seen"]


def train_flow(args, size: Size, vae: PatchVAE, folder: Path) -> None:
    """Train until `--minutes` of training time (summed over restarts) are spent."""
    device = args.device
    flow = build_flow(size).to(device)
    tokenizer = build_tokenizer()
    opts = optimisers(flow, size.lr)
    average = {k: v.clone() for k, v in flow.state_dict().items()}
    seen = step = 0
    spent = 0.0
    if args.init:
        seen = start_from(args.init, flow)
        average = {k: v.clone() for k, v in flow.state_dict().items()}
    path = folder / "flow.pt"
    if path.exists():
        old = torch.load(path, weights_only=True, map_location=device)
        flow.load_state_dict(old["flow"])
        average = old["average"]
        for opt, state in zip(opts, old["optimisers"], strict=True):
            opt.load_state_dict(state)
        seen, step, spent = old["seen"], old["step"], old["spent"]
        print(f"resumed at step {step}, {seen} samples, {spent / 60:.1f} min")
    kernel = SDPBackend.MATH if device == "cpu" else SDPBackend.FLASH_ATTENTION
    if args.compile:
        flow["transformer"].compile(dynamic=False)
    pool = Pool(size, vae, folder, device)
    rng = random.Random(step)
    torch.manual_seed(step)
    command = f"python -m s2flow.backbones.tiny.train {size.world} --minutes {args.minutes:g}"
    command += "".join(f" --{o}" for o in ("bf16", "compile", "init") if getattr(args, o))
    budget, losses, saved, since_renewal = args.minutes * 60, [], time.time(), 0
    clock = time.time()
    while spent < budget:
        progress = spent / budget
        frames, batch = next((f, b) for until, f, b in size.stages if progress < until)
        warm = min(1.0, (step + 1) / 100)
        decay = min(1.0, (1 - progress) / 0.45)
        for opt in opts:
            for group in opt.param_groups:
                group["lr"] = size.lr * warm * max(decay, 0.01)
        x0, texts = pool.batch(batch, frames, rng, progress < size.lopsided_until)
        texts = [corrupt(t, rng, frames) for t in texts]
        for opt in opts:
            opt.zero_grad()
        with sdpa_kernel([kernel, SDPBackend.MATH]):  # a CPU's fused kernel is slow backwards
            loss = flow_loss(flow, tokenizer, x0, texts, size, args.bf16)
            loss.backward()
        nn.utils.clip_grad_norm_(flow.parameters(), 1.0)
        for opt in opts:
            opt.step()
        with torch.no_grad():
            keep = min(0.999, 1 - 1 / (step / 10 + 1))
            for k, v in flow.state_dict().items():
                average[k].lerp_(v, 1 - keep) if v.is_floating_point() else average[k].copy_(v)
        seen, step, since_renewal = seen + batch, step + 1, since_renewal + batch * frames
        losses.append(loss.detach())
        due = since_renewal > args.renew_every * size.pool * size.frames or len(pool.shards) < 6
        if due and step % 25 == 0:
            lopsided = progress < size.lopsided_until
            pool.renew(SHAPES[0 if lopsided else pool.born % len(SHAPES)])
            since_renewal = 0
        now = time.time()
        spent, clock = spent + now - clock, now
        if step % 50 == 0:
            row = {
                "step": step,
                "seen": seen,
                "minutes": round(spent / 60, 2),
                "frames": frames,
                "loss": round(torch.stack(losses).mean().item(), 4),
            }
            losses = []
            print(row, flush=True)
            with open(folder / "log.jsonl", "a") as log:
                log.write(json.dumps(row) + "\n")
        if now - saved > args.save_seconds or spent >= budget:
            state = {"flow": flow.state_dict(), "average": average, "seen": seen, "step": step}
            state["command"] = command
            save({**state, "spent": spent, "optimisers": [o.state_dict() for o in opts]}, path)
            saved = time.time()


def export(name: str, folder: Path, target: Path) -> None:
    """Averaged weights in float16 as a complete `WanPipeline` folder with `card.json`."""
    size = SIZES[name]
    state = torch.load(folder / "flow.pt", weights_only=True, map_location="cpu")
    flow = build_flow(size)
    flow.load_state_dict(state["average"])
    pipeline = WanPipeline(
        tokenizer=build_tokenizer(),
        text_encoder=flow["text_encoder"].half(),
        vae=PatchVAE.from_pretrained(folder / "vae").half(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=size.shift),
        transformer=flow["transformer"].half(),
    )
    pipeline.save_pretrained(target)
    index = json.loads((target / "model_index.json").read_text())
    index["tokenizer"] = ["transformers", "PreTrainedTokenizerFast"]
    index["vae"] = ["s2flow.backbones.tiny.vae", "PatchVAE"]
    (target / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    config = json.loads((target / "vae" / "config.json").read_text())
    config.pop("_name_or_path", None)  # names a folder of this machine
    (target / "vae" / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    card = {
        "size": name,
        **asdict(size),
        "samples_seen": state["seen"],
        "steps": state["step"],
        "training_minutes": round(state["spent"] / 60, 1),
        "command": state.get("command"),
    }
    (target / "card.json").write_text(json.dumps(card, indent=2) + "\n")
    print(f"wrote {target}")


def main() -> None:
    """Command line; see the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("size", choices=SIZES)
    parser.add_argument("--state", type=Path, required=True, help="folder for resumable state")
    parser.add_argument("--minutes", type=float, default=100, help="training time in all")
    parser.add_argument("--vae-steps", type=int, default=1500)
    parser.add_argument("--renew-every", type=float, default=6, help="uses of a clip, roughly")
    parser.add_argument("--save-seconds", type=float, default=120)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument(
        "--compile", action="store_true", help="a fifth faster; needs a C++ compiler"
    )
    parser.add_argument("--init", type=Path, nargs="?", const=WEIGHTS, help="start from weights")
    parser.add_argument("--export", type=Path, nargs="?", const=WEIGHTS, help="write the weights")
    args = parser.parse_args()
    size, folder = SIZES[args.size], args.state
    folder.mkdir(parents=True, exist_ok=True)
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    args.export, args.init = (
        f / args.size if f == WEIGHTS else f for f in (args.export, args.init)
    )
    if args.export:
        return export(args.size, folder, args.export)
    if args.init and not (args.init / "card.json").exists():
        parser.error(
            f"--init {args.init} holds no exported weights (card.json, transformer/, vae/)"
        )
    if args.init and not (folder / "vae").exists():
        PatchVAE.from_pretrained(args.init / "vae").save_pretrained(folder / "vae")
    if (folder / "vae" / "config.json").exists():
        vae = PatchVAE.from_pretrained(folder / "vae").to(args.device)
    else:
        vae = train_vae(size, folder / "vae", args.vae_steps, args.device)
    train_flow(args, size, vae.requires_grad_(False), folder)


if __name__ == "__main__":
    main()
