"""Train the embedded autoencoder: PCA, then encoder and decoder together, then the decoder alone.

    python -m s2flow.training autoencoder micro --out DIR [--encoder FOLDER --flow FOLDER]

The loss of a frame x and its reconstruction y, at LR and HR size,

    mean (y - x)^2 + 0.1 mean |y - x| + 0.5 mean |grad (y - x)|^2,

whose last term penalises errors at block borders. The decoder is trained on perturbed latents, since a
flow's are never exact: white noise of up to 0.2 in the flow's scale and, with `--flow`, an exported
flow's one-step prediction of a render's latent from a noise level of 0.05 to 0.35, which has the errors
of generated clips. `--encoder` keeps an exported folder's encoder and latent scale, so that flows
trained on its latents stay valid.
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
from s2flow.training.flow import latent_scale, load_weights, normalised_latent
from s2flow.training.views import LR, View, clips

MAX_NOISE = 0.2
FLOW_LEVELS = (0.05, 0.35)  # noise levels of the flow's predictions


def train(args: argparse.Namespace) -> None:
    """Train for `--steps`; the latent scale is set half-way. Write the folder."""
    size = SIZES[args.size]
    torch.manual_seed(0)
    if args.encoder is None:
        vae = PatchVAE().to(args.device)
        vae.fit_pca(batch(size, -1, 1, 192, args.device)[0])
    else:
        vae = with_encoder(args.encoder).to(args.device)
    predict = flow_prediction(size, args.flow, args.device) if args.flow else None
    trainable = [p for p in vae.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trainable, lr=2e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=args.steps)
    start = time.time()
    for step in range(args.steps):
        factor, count = ((1, 32), (2, 8))[step % 2]
        x, texts = batch(size, step, factor, count, args.device)
        with torch.set_grad_enabled(args.encoder is None):
            z = normalised_latent(vae, x)
        if predict is not None and step % 4 > 1:
            z = predict(z, texts, step)
        z = z + MAX_NOISE * torch.rand(len(z), 1, 1, 1, 1, device=z.device) * torch.randn_like(z)
        mean, std = latent_scale(vae, z.device)
        error = vae.decode(z * std + mean).sample - x
        loss = error.square().mean() + 0.1 * error.abs().mean()
        edges = error.diff(dim=-1).square().mean() + error.diff(dim=-2).square().mean()
        loss = loss + 0.5 * edges
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trainable, 0.1)
        optimiser.step()
        schedule.step()
        if args.encoder is None and step == args.steps // 2:  # latents are fixed from here on
            scale_latents(vae, size, args.device)
            vae.encoder.requires_grad_(False)
        if step % 100 < 2 or step > args.steps - 3:
            kind = " of flow" if predict is not None and step % 4 > 1 else ""
            db = (
                f"{10 * math.log10(4 / error.square().mean().item()):.1f} dB at {factor}x LR{kind}"
            )
            print(f"{step}/{args.steps} {time.time() - start:.0f} s  {db}", flush=True)
    vae.save_pretrained(args.out / "vae")


def batch(size: Size, seed: int, factor: int, count: int, device: str):
    """One frame each of `count` scenes in [-1, 1], (B, 3, 1, H, W), and their captions."""
    scaled = replace(size, height=size.height * factor, width=size.width * factor)
    time = torch.rand(1, generator=torch.Generator().manual_seed(seed + 2))
    return clips(scaled, View("plain", LR, 1.0), count, random.Random(seed), time, device)


def with_encoder(folder: Path) -> PatchVAE:
    """A new decoder with an exported, frozen encoder."""
    config = PatchVAE.load_config(folder / "vae")
    vae = PatchVAE(latents_mean=config["latents_mean"], latents_std=config["latents_std"])
    exported = load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")
    encoder_state = {k: v.float() for k, v in exported.items() if not k.startswith("decoder.")}
    vae.load_state_dict(vae.state_dict() | encoder_state)
    vae.encoder.requires_grad_(False)
    return vae


def flow_prediction(size: Size, folder: Path, device: str):
    """(z, texts, seed) -> the flow's x0 of z with noise of a random level, in one step."""
    flow, tokenizer = build_flow(size), build_tokenizer()
    load_weights(folder, flow)
    flow.to(device).requires_grad_(False)

    @torch.no_grad()
    def predict(z: Tensor, texts: list[str], seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        low, high = FLOW_LEVELS
        s = (low + (high - low) * torch.rand(len(z), generator=generator)).to(z.device)
        sigma = s.view(-1, 1, 1, 1, 1)
        noisy = (1 - sigma) * z + sigma * torch.randn(z.shape, generator=generator).to(z.device)
        text = embed(flow["text_encoder"], tokenizer, texts, z.device)
        v = flow["transformer"](noisy, 1000 * s, text, return_dict=False)[0]
        return noisy - sigma * v

    return predict


@torch.no_grad()
def scale_latents(vae: PatchVAE, size: Size, device: str) -> None:
    """Set the latent scale: channel k keeps std_k^0.5, see vae.py."""
    z = vae.encode(batch(size, -2, 1, 256, device)[0]).latent_dist.mode()
    std = z.std((0, 2, 3, 4))
    target = std.sqrt() / std.sqrt().square().mean().sqrt()
    vae.register_to_config(
        latents_mean=z.mean((0, 2, 3, 4)).tolist(), latents_std=(std / target).tolist()
    )
