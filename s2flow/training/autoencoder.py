"""Train the embedded autoencoder: PCA, then encoder and decoder together, then the decoder alone.

    python -m s2flow.training autoencoder micro --out DIR
    python -m s2flow.training autoencoder micro --out DIR --encoder FOLDER --flow FOLDER

The loss of a frame x and its reconstruction y, at LR and HR size,

    mean (y - x)^2 + 0.1 mean |y - x| + 0.5 mean |grad (y - x)|^2,

whose last term counts what breaks at the borders of blocks. The decoder sees perturbed latents, since
the flow's are never exact: white noise of up to 0.2 in the flow's scale and, with `--flow`, what an
exported flow makes of a render's latent in one step from a noise level of 0.05 to 0.35, which is how
its clips differ from renders. `--encoder` keeps an exported folder's encoder and latent scale, so
that flows trained on its latents stay valid.
"""

import argparse
import math
import random
import time
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from s2flow.embedded.model import SIZES, Size, build_flow, embed
from s2flow.embedded.text import build_tokenizer
from s2flow.embedded.vae import PatchVAE
from s2flow.training.flow import load_weights, normalised_latent
from s2flow.training.views import LR, View, clips

NOISE = 0.2
LEVELS = (0.05, 0.35)  # of the flow's predictions


def train(args: argparse.Namespace) -> None:
    """Until `--steps` are taken, then the latent scale is set and the folder written."""
    size = SIZES[args.size]
    torch.manual_seed(0)
    if args.encoder is None:
        vae = PatchVAE().to(args.device)
        vae.fit_pca(batch(size, -1, 1, 192, args.device)[0])
    else:
        vae = with_encoder(args.encoder).to(args.device)
    guess = flow_guess(size, args.flow, args.device) if args.flow else None
    learned = [p for p in vae.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(learned, lr=2e-3, weight_decay=1e-4)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=args.steps)
    start = time.time()
    for step in range(args.steps):
        factor, count = ((1, 32), (2, 8))[step % 2]
        x, texts = batch(size, step, factor, count, args.device)
        with torch.set_grad_enabled(args.encoder is None):
            z = normalised_latent(vae, x)
        if guess is not None and step % 4 > 1:
            z = guess(z, texts, step)
        z = z + NOISE * torch.rand(len(z), 1, 1, 1, 1, device=z.device) * torch.randn_like(z)
        error = decode(vae, z) - x
        loss = error.square().mean() + 0.1 * error.abs().mean()
        loss = loss + 0.5 * (
            error.diff(dim=-1).square().mean() + error.diff(dim=-2).square().mean()
        )
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(learned, 0.1)
        optimiser.step()
        cycle.step()
        if (
            args.encoder is None and step == args.steps // 2
        ):  # latents stay as they are from here on
            scale_latents(vae, size, args.device)
            vae.encoder.requires_grad_(False)
        if step % 100 < 2 or step > args.steps - 3:
            noisy = " of flow" if guess is not None and step % 4 > 1 else ""
            db = 10 * math.log10(4 / error.square().mean().item())
            print(
                f"{step}/{args.steps} {time.time() - start:.0f} s  {db:.1f} dB at {factor}x LR{noisy}",
                flush=True,
            )
    vae.save_pretrained(args.out / "vae")


def batch(size: Size, seed: int, factor: int, count: int, device: str):
    """One frame each of `count` scenes in [-1, 1], (B, 3, 1, H, W), and their captions."""
    drawn = replace(size, height=size.height * factor, width=size.width * factor)
    time = torch.rand(1, generator=torch.Generator().manual_seed(seed + 2))
    return clips(drawn, View("plain", LR, 1.0), count, random.Random(seed), time, device)


def with_encoder(folder: Path) -> PatchVAE:
    """A new decoder behind an exported encoder, which is frozen."""
    config = PatchVAE.load_config(folder / "vae")
    vae = PatchVAE(latents_mean=config["latents_mean"], latents_std=config["latents_std"])
    old = load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")
    kept = {k: v.float() for k, v in old.items() if not k.startswith("decoder.")}
    vae.load_state_dict(vae.state_dict() | kept)
    vae.encoder.requires_grad_(False)
    return vae


def flow_guess(size: Size, folder: Path, device: str):
    """(z, texts, seed) -> the flow's x0 of z with noise of a random level, in one step."""
    flow = build_flow(size)
    load_weights(folder, flow)
    flow.to(device).requires_grad_(False)
    tokenizer = build_tokenizer()

    @torch.no_grad()
    def guess(z: Tensor, texts: list[str], seed: int) -> Tensor:
        draw = torch.Generator().manual_seed(seed)
        low, high = LEVELS
        s = (low + (high - low) * torch.rand(len(z), generator=draw)).to(z.device)
        sigma = s.view(-1, 1, 1, 1, 1)
        noisy = (1 - sigma) * z + sigma * torch.randn(z.shape, generator=draw).to(z.device)
        text = embed(flow["text_encoder"], tokenizer, texts, z.device)
        v = flow["transformer"](noisy, 1000 * s, text, return_dict=False)[0]
        return noisy - sigma * v

    return guess


def decode(vae: PatchVAE, z: Tensor) -> Tensor:
    """Video in [-1, 1] of a latent in the flow's scale."""
    mean, std = (
        torch.tensor(v, device=z.device).view(1, -1, 1, 1, 1)
        for v in (vae.config.latents_mean, vae.config.latents_std)
    )
    return vae.decode(z * std + mean).sample


@torch.no_grad()
def scale_latents(vae: PatchVAE, size: Size, device: str) -> None:
    """Set the latent scale: channel k keeps std_k^0.5, see vae.py."""
    z = vae.encode(batch(size, -2, 1, 256, device)[0]).latent_dist.mode()
    std = z.std((0, 2, 3, 4))
    target = std.sqrt() / std.sqrt().square().mean().sqrt()
    vae.register_to_config(
        latents_mean=z.mean((0, 2, 3, 4)).tolist(), latents_std=(std / target).tolist()
    )
