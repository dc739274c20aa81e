"""Train the flow of the embedded backbone, with its text encoder, on frozen latents.

    python -m s2flow.training flow micro --state DIR --steps 20000

Flow matching: z = (1 - sigma) x0 + sigma eps, loss |v_theta(z, sigma, text) - (eps - x0)|^2.
Training clips: `views.py`. Half of a batch's noise levels are uniform in [0, 1], half logit-normal
about sigma .7. Rotary positions are stretched a little. Training from scratch starts with still frames,
which teach shape and colour five times faster than clips; then clips teach motion, first with one
direction of time, then with both (`views.clips`). The last quarter has mostly plain views. Matrices in
the transformer's blocks are trained by Muon, the rest by AdamW, with a linear decay over the last 45 %
of the steps; weights are averaged.

A step depends on weights, optimisers and its number alone, so that a run that is stopped and resumed
from DIR/flow.pt ends with the weights of an uninterrupted one. DIR/weights holds the averaged weights
as a `WanPipeline` folder, with a card that lists every run that made them. `--init FOLDER` starts from
such a folder, without the stages for training from scratch and at a lower rate.
"""

import argparse
import hashlib
import json
import math
import random
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from s2flow.embedded.model import SIZES, Size, build_flow, embed
from s2flow.embedded.text import build_tokenizer
from s2flow.embedded.vae import PatchVAE
from s2flow.process.stopping import asked, caught
from s2flow.training.sheets import draw
from s2flow.training.views import LAST_SHARES, LR, SHARES, View, clips

STILLS_PER_CLIP = 4  # still frames in a batch, in place of one clip
EMA_DECAY = 0.999  # of the averaged weights
MAX_LOG_STRETCH = math.log(1.25)  # of rotary positions
INIT_RATE = 0.35  # factor on the learning rate with --init


def drop_words(text: str, rng: random.Random) -> str:
    """Word dropout on training captions, so that any text is a valid prompt."""
    if rng.random() < 0.1:
        return ""  # the unconditional branch of guidance
    words = [w for w in text.split() if rng.random() > 0.02]
    words = ["qqq" if rng.random() < 0.02 else w for w in words]  # <unk>
    if rng.random() < 0.3:
        words = [w for w in words if w not in ("large", "small")]
    return " ".join(words)


def noise_levels(count: int, shift: float, generator: torch.Generator) -> Tensor:
    """(count,) levels in [0, 1], stratified: half uniform, half shifted logit-normal."""
    u = (torch.arange(count) + torch.rand(1, generator=generator)) / count
    u = (u[torch.randperm(count, generator=generator)] * 2) % 2
    normal = torch.erfinv((2 * (u - 1) - 1).clamp(-0.999, 0.999)) * 2**0.5
    sigma = torch.sigmoid(0.5 + normal)
    sigma = shift * sigma / (1 + (shift - 1) * sigma)
    return torch.where(u < 1, u, sigma)


def flow_loss(
    flow: nn.ModuleDict,
    tokenizer,
    x0: Tensor,
    texts: list[str],
    sigma: Tensor,
    eps: Tensor,
    half: bool,
) -> Tensor:
    """Squared velocity error, plus its part that is coarse and odd in time (`coarse_reversal`)."""
    s = sigma.view(-1, 1, 1, 1, 1)
    with torch.autocast(x0.device.type, torch.bfloat16, enabled=half):
        text = embed(flow["text_encoder"], tokenizer, texts, x0.device)
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

    Scaled to equal the plain mean square for white noise. Only these few values distinguish left from
    right; they are a fortieth of the plain loss at sigma 0.9. The minimum does not move.
    """
    side = min(error.shape[-2:]) // 2
    coarse = F.avg_pool3d(error, (1, side, side))
    return 2 * side**2 * ((coarse - coarse.flip(2)) / 2).square().mean()


def stretch_positions(rope: nn.Module, height: float, width: float) -> None:
    """Fill the tables of `WanRotaryPosEmbed` with positions times a factor, for height and width."""
    parts = []
    for dim, factor in ((rope.t_dim, 1.0), (rope.h_dim, height), (rope.w_dim, width)):
        rates = 10_000.0 ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
        angle = torch.outer(torch.arange(rope.max_seq_len, dtype=torch.float64) * factor, rates)
        parts.append(angle.repeat_interleave(2, dim=1))
    angles = torch.cat(parts, 1)
    rope.freqs_cos.copy_(angles.cos())
    rope.freqs_sin.copy_(angles.sin())


def optimisers(flow: nn.ModuleDict, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the transformer's blocks, AdamW for the rest."""
    named = flow["transformer"].named_parameters()
    matrices = [p for name, p in named if p.ndim == 2 and name.startswith("blocks.")]
    chosen = {id(p) for p in matrices}
    rest = [p for p in flow.parameters() if id(p) not in chosen]
    muon = torch.optim.Muon(matrices, lr=lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    return [muon, torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.98), weight_decay=0.01)]


def latent_scale(vae: PatchVAE, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and deviation of raw latents; the flow sees (raw - mean) / std."""
    scale = vae.config.latents_mean, vae.config.latents_std
    mean, std = (torch.tensor(v, device=device).view(1, -1, 1, 1, 1) for v in scale)
    return mean, std


def normalised_latent(vae: PatchVAE, x: Tensor) -> Tensor:
    """Latent of x (B, 3, T, H, W) in the scale that the flow sees."""
    mean, std = latent_scale(vae, x.device)
    return (vae.encode(x).latent_dist.mode() - mean) / std


@dataclass
class Training:
    """State of a training run: networks, their average, optimisers, and the history of runs."""

    size: Size
    flow: nn.ModuleDict
    average: dict[str, Tensor]
    optimisers: list[torch.optim.Optimizer]
    runs: list[dict] = field(default_factory=list)  # that made the weights; the last is this one
    step: int = 0

    @classmethod
    def start(cls, name: str, init: Path | None, command: str, device: str) -> "Training":
        """Start from scratch, or from an exported folder."""
        size, earlier_runs, rate = SIZES[name], [], 1.0
        torch.manual_seed(0)
        flow = build_flow(size)
        if init is not None:
            earlier_runs, rate = load_weights(init, flow), INIT_RATE
        flow.to(device)
        average = {k: v.clone() for k, v in flow.state_dict().items()}
        run = {"command": command, "init": None if init is None else earlier_runs[-1]["weights"]}
        run |= {"rate": size.lr * rate, "steps": 0, "clips": 0, "stills": 0, "minutes": 0.0}
        return cls(size, flow, average, optimisers(flow, size.lr * rate), [*earlier_runs, run])

    def save(self, path: Path) -> None:
        """Write the state to a temporary name, then rename it."""
        state = {"flow": self.flow.state_dict(), "average": self.average, "step": self.step}
        state |= {"optimisers": [o.state_dict() for o in self.optimisers], "runs": self.runs}
        torch.save(state, path.with_suffix(".tmp"))
        path.with_suffix(".tmp").replace(path)

    def load(self, path: Path) -> None:
        """Read the state written by `save`."""
        device = next(self.flow.parameters()).device
        state = torch.load(path, weights_only=True, map_location=device)
        self.flow.load_state_dict(state["flow"])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.average, self.step, self.runs = state["average"], state["step"], state["runs"]

    def take_step(self, steps: int, vae: PatchVAE, tokenizer, half: bool) -> tuple[str, Tensor]:
        """Take step number `step` of `steps`; returns the kind of its view and its loss."""
        run, progress = self.runs[-1], self.step / steps
        from_scratch = run["init"] is None
        rng, generator = random.Random(f"{self.step}"), torch.Generator().manual_seed(self.step)
        device = next(self.flow.parameters()).device
        view = View.draw(rng, LAST_SHARES if progress > 0.75 else SHARES)
        stills = view.shape == LR and (rng.random() < 0.3 or from_scratch and progress < 0.15)
        count = max(1, round(self.size.batch / math.prod(view.shape)))
        if stills:
            count *= STILLS_PER_CLIP
            times = torch.rand(3, generator=generator).sort().values
            x, texts = clips(self.size, view, count, rng, times, device)
            chosen = torch.randint(0, 3, (count,), generator=generator)
            x = x[torch.arange(count), :, chosen].unsqueeze(2)
        else:
            lopsided = from_scratch and progress < 0.4
            x, texts = clips(self.size, view, count, rng, None, device, lopsided)
        texts = [drop_words(text, rng) for text in texts]
        with torch.no_grad():
            x0 = normalised_latent(vae, x)
        sigma = noise_levels(count, self.size.shift, generator).to(device)
        eps = torch.randn(x0.shape, generator=generator).to(device)
        jitter = rng.random() < (0.25 if view.kind == "plain" else 0.5)
        reach = MAX_LOG_STRETCH
        factors = [math.exp(rng.uniform(-reach, reach)) if jitter else 1.0 for _ in "hw"]
        stretch_positions(self.flow["transformer"].rope, *factors)
        rate = run["rate"] * min(1.0, (self.step + 1) / 100) * min(1.0, (1 - progress) / 0.45)
        for optimiser in self.optimisers:
            optimiser.zero_grad()
            for group in optimiser.param_groups:
                group["lr"] = rate
        loss = flow_loss(self.flow, tokenizer, x0, texts, sigma, eps, half)
        loss.backward()
        nn.utils.clip_grad_norm_(self.flow.parameters(), 1.0)
        for optimiser in self.optimisers:
            optimiser.step()
        with torch.no_grad():
            decay = min(EMA_DECAY, 1 - 1 / (self.step / 10 + 1)) if from_scratch else EMA_DECAY
            for k, v in self.flow.state_dict().items():
                self.average[k].lerp_(v, 1 - decay) if v.is_floating_point() else None
        self.step += 1
        run["steps"] += 1
        run["stills" if stills else "clips"] += count
        return view.kind + (" stills" if stills else ""), loss.detach()


def load_weights(folder: Path, flow: nn.ModuleDict) -> list[dict]:
    """Load exported weights into networks of the same size or larger; returns the card's runs.

    Words added to the vocabulary keep their random embeddings; blocks added to the transformer start
    as the identity.
    """
    pipeline = WanPipeline.from_pretrained(folder, dtype=torch.float32)
    for name, network in flow.items():
        old, new = getattr(pipeline, name).state_dict(), network.state_dict()
        for key, value in old.items():
            if value.shape != new[key].shape and value.ndim == 2:  # the word embeddings
                value = torch.cat([value, new[key][len(value) :]])
            new[key] = value
        last = (".attn1.to_out.0.", ".attn2.to_out.0.", ".ffn.net.2.")  # of a block's branches
        for key in new.keys() - old.keys():
            if any(layer in key for layer in last):
                new[key] = torch.zeros_like(new[key])
        network.load_state_dict(new)
    return json.loads((folder / "card.json").read_text())["runs"]


def train(args: argparse.Namespace) -> None:
    """Train for `--steps`; on SIGTERM the state is saved and the run ends."""
    args.state.mkdir(parents=True, exist_ok=True)
    path, log = args.state / "flow.pt", args.state / "log.jsonl"
    training = Training.start(args.size, args.init, args.command, args.device)
    if path.exists():
        training.load(path)
        training.runs[-1]["command"] = args.command
    vae = PatchVAE.from_pretrained(args.vae / "vae").float().requires_grad_(False).to(args.device)
    if args.compile:
        torch._dynamo.config.recompile_limit = 32
        training.flow["transformer"].compile(dynamic=False)
    kernel = SDPBackend.MATH if args.device == "cpu" else SDPBackend.FLASH_ATTENTION
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
    tokenizer, losses, run = build_tokenizer(), {}, training.runs[-1]
    last_save = last_sheet = time.time()
    with caught(working=True), sdpa_kernel([kernel, SDPBackend.MATH]):
        print(f"training from step {training.step} to {args.steps}", flush=True)
        while training.step < args.steps and not asked():
            step_start = time.time()
            kind, loss = training.take_step(args.steps, vae, tokenizer, args.bf16)
            losses.setdefault(kind, []).append(loss)
            run["minutes"] += (time.time() - step_start) / 60
            if training.step % 100 == 0:
                row = {k: run[k] for k in ("steps", "clips", "stills")}
                row["minutes"] = round(run["minutes"], 1)
                means = {k: torch.stack(v).mean().item() for k, v in losses.items()}
                row["loss"] = {k: round(mean, 4) for k, mean in means.items()}
                losses = {}
                print(json.dumps(row), flush=True)
                with open(log, "a") as file:
                    file.write(json.dumps(row) + "\n")
            if time.time() - last_save > 180:
                training.save(path)
                last_save = time.time()
            if args.sheet_minutes and time.time() - last_sheet > 60 * args.sheet_minutes:
                export(args, training)
                draw(args.size, args.state / "weights", args.state / "sheets", training.step)
                last_sheet = time.time()
    training.save(path)
    export(args, training)
    print(f"step {training.step} of {args.steps}; state and weights are in {args.state}")


def export(args: argparse.Namespace, training: Training) -> None:
    """Averaged weights in float16 as a complete `WanPipeline` folder, with `card.json`."""
    target, flow = args.state / "weights", build_flow(training.size)
    flow.load_state_dict(training.average)
    pipeline = WanPipeline(
        tokenizer=build_tokenizer(),
        text_encoder=flow["text_encoder"].half(),
        vae=PatchVAE.from_pretrained(args.vae / "vae").half(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=training.size.shift),
        transformer=flow["transformer"].half(),
    )
    pipeline.save_pretrained(target)
    index, config = (target / name for name in ("model_index.json", "vae/config.json"))
    parts = {"tokenizer": ["transformers", "PreTrainedTokenizerFast"]}
    parts |= {"vae": ["s2flow.embedded.vae", "PatchVAE"]}
    _write(index, json.loads(index.read_text()) | parts)
    own = json.loads(config.read_text())
    own.pop("_name_or_path", None)  # names a folder of this machine
    _write(config, own)
    weights = (target / "transformer" / "diffusion_pytorch_model.safetensors").read_bytes()
    last = training.runs[-1] | {"minutes": round(training.runs[-1]["minutes"], 1)}
    last["weights"] = hashlib.sha256(weights).hexdigest()[:12]
    card = {"size": args.size, **asdict(training.size), "runs": [*training.runs[:-1], last]}
    _write(target / "card.json", card)


def _write(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
