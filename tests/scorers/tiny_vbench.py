"""Random weights of VBench's own classes, as small as these allow: plumbing, never scores."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch

from s2flow.scorers.vbench import compat, weights


def shrink() -> None:
    """From here on ViCLIP's towers and MUSIQ have a narrow layer, not 430 and 27 million parameters."""
    import vbench.imaging_quality as imaging
    import vbench.third_party.ViCLIP.viclip as viclip
    from pyiqa.archs.musiq_arch import MUSIQ
    from vbench.third_party.ViCLIP.viclip_text import CLIP_TEXT
    from vbench.third_party.ViCLIP.viclip_vision import VisionTransformer

    def vision(**_):
        return VisionTransformer(224, 56, 64, 1, 2, output_dim=32).eval()

    def text(context_length, vocab_size, **_):
        return CLIP_TEXT(32, context_length, vocab_size, 64, 2, 1, 0).eval()

    viclip.clip_joint_l14, viclip.clip_text_l14 = vision, text
    imaging.MUSIQ = partial(MUSIQ, hidden_size=24, mlp_dim=24, num_layers=1)


def make_cache(cache: Path) -> Mapping[str, str]:
    """Write all files of the table below `cache`; returns {key: sha256} to vouch for them."""
    with compat.imports(cache), compat.quiet():
        compat.bpe(cache)
        import clip.model
        import vbench.imaging_quality as imaging
        import vbench.motion_smoothness as motion
        from vbench.third_party.amt.utils.build_utils import build_from_cfg
        from vbench.third_party.ViCLIP.viclip import ViCLIP

        torch.manual_seed(0)
        shrink()
        network = motion.OmegaConf.load(
            Path(motion.__file__).parent / "third_party/amt/cfgs/AMT-S.yaml"
        ).network
        viclip = ViCLIP(pretrain=None)
        for p in viclip.parameters():  # some are left as memory was
            torch.nn.init.normal_(p, std=0.1)
        clips = {
            "clip_b32": clip.model.CLIP(64, 224, 2, 64, 32, 8, 100, 64, 1, 1),
            "clip_l14": clip.model.CLIP(768, 224, 1, 64, 56, 8, 100, 64, 1, 1),
        }
        states = {
            "laion_head": torch.nn.Linear(768, 1).state_dict(),
            "musiq_spaq": imaging.MUSIQ(pretrained=False).state_dict(),
            "amt_s": {"state_dict": build_from_cfg(network).state_dict()},
            "viclip": {"model": viclip.state_dict()},
        }
    for weight in weights.TABLE:
        path = cache / weight.file
        path.parent.mkdir(parents=True, exist_ok=True)
        if weight.key in states:
            torch.save(states[weight.key], path)
        if weight.key in clips:  # OpenAI's are archives of TorchScript
            example = (torch.rand(1, 3, 224, 224), torch.arange(8)[None])
            with compat.quiet():
                torch.jit.trace(clips[weight.key], example, check_trace=False).save(path)
    return {w.key: weights.sha256_of(cache / w.file) for w in weights.TABLE}
