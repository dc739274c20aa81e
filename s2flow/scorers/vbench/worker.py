"""VBench's six dimensions, each loaded once and applied to one clip at a time.

`load` is used in two places: in the process of s2flow, and in the process that this file becomes when
it is started by itself in an environment of VBench's own (`twin.py`). So it uses only the standard
library and vbench, in Python 3.8. torch and VBench are imported inside the functions, since they are
optional here and the process answers with its versions first. As a process it reads JSON lines,

    {"files": {...}, "device": "cpu", "cache": "...", ...}         what `load` takes; answered by
    {"versions": {...}, "full_info": "..."}
    {"dimension": "...", "video": "....mp4", "prompt": "..."}      then any number, each answered by
    {"score": 0.97}, {"score": null} or {"error": "..."}

and ends with its input. Answers go to a copy of standard output, and standard output itself is
redirected to standard error, because VBench and its dependencies print.
"""

import contextlib
import json
import os
import pickle
import sys
from importlib import metadata
from importlib.util import find_spec

if __package__:
    from s2flow.scorers.vbench import compat
else:  # a script: its folder is no place to import anything else from
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    import compat

    del sys.path[0]

PACKAGES = ("vbench", "torch", "torchvision", "transformers", "timm", "pyiqa", "openai-clip")
PACKAGES += ("decord", "opencv-python-headless", "opencv-python", "numpy")


class NotBareWeights(Exception):
    """An untrusted file that could be read only as a pickle that may run code."""


def load(dimension, files, device, cache, trusted, threads):
    """Load what a dimension needs; returns (path, prompt) -> VBench's score, 0-1, of one clip.

    files: {key in the table of weights: path}; trusted: see `compat.guarded`. The score is None where
    VBench cannot read the clip.
    """
    import torch

    torch.set_num_threads(threads)
    with compat.imports(cache), compat.guarded(trusted):
        try:
            of_list = LOADERS[dimension](files, torch.device(device), cache)
        except pickle.UnpicklingError:
            raise NotBareWeights(
                f"the weights of {dimension} hold more than tensors, or are no weights at all "
                f"({', '.join(files.values())}); if you trust them state their hash: "
                f"sha256.{next(iter(files), '')}=..."
            ) from None

    def score(path, prompt):
        with compat.quiet(), torch.no_grad():  # background consistency would keep its graph
            results = of_list(path, prompt)[1]
        return float(results[0]["video_results"]) if results else None

    return score


def _temporal_flickering(files, device, cache):
    import vbench.temporal_flickering as module

    module.tqdm = compat.no_bar
    return lambda path, prompt: module.temporal_flickering([path])


def _background_consistency(files, device, cache):
    import clip
    import vbench.background_consistency as module

    module.tqdm = compat.no_bar
    model, preprocess = clip.load(files["clip_b32"], device=device)
    return lambda path, _: module.background_consistency(model, preprocess, [path], device, False)


def _aesthetic_quality(files, device, cache):
    import clip
    import vbench.aesthetic_quality as module

    module.tqdm = compat.no_bar
    head = module.get_aesthetic_model(os.path.dirname(files["laion_head"])).to(device)
    model, _ = clip.load(files["clip_l14"], device=device)
    return lambda path, prompt: module.laion_aesthetic(head, model, [path], device)


def _imaging_quality(files, device, cache):
    import vbench.imaging_quality as module

    module.tqdm = compat.no_bar
    with compat.quiet():
        model = module.MUSIQ(pretrained_model_path=files["musiq_spaq"])
    model.to(device)
    model.training = False  # VBench does no more, and MUSIQ's dropout rates are 0

    def of_list(path, prompt):
        (result,) = module.technical_quality(model, [path], device)[1]
        return None, [{"video_results": result["video_results"] / 100}]  # 0-100 per video

    return of_list


def _motion_smoothness(files, device, cache):
    import vbench.motion_smoothness as module

    module.tqdm = compat.no_bar
    here = os.path.dirname(module.__file__)
    config = os.path.join(here, "third_party", "amt", "cfgs", "AMT-S.yaml")
    with compat.quiet():  # a torch.device, never a string: see compat
        motion = module.MotionSmoothness(config, files["amt_s"], device)
    return lambda path, prompt: module.motion_smoothness(motion, [path])


def _overall_consistency(files, device, cache):
    compat.bpe(cache)
    import vbench.overall_consistency as module

    module.tqdm = compat.no_bar
    module.get_text_features.__defaults__[-1].clear()  # by text alone, whatever the model
    tokenizer = module.SimpleTokenizer(os.path.join(cache, compat.BPE))
    model = module.ViCLIP(tokenizer=tokenizer, pretrain=files["viclip"]).to(device)

    def of_list(path, prompt):
        listed = [{"prompt": prompt, "video_list": [path]}]
        return module.overall_consistency(model, listed, tokenizer, device)

    return of_list


LOADERS = {
    "temporal_flickering": _temporal_flickering,
    "motion_smoothness": _motion_smoothness,
    "background_consistency": _background_consistency,
    "overall_consistency": _overall_consistency,
    "aesthetic_quality": _aesthetic_quality,
    "imaging_quality": _imaging_quality,
}


def versions():
    """{package: version} of what is installed here, without importing it."""
    versions = {"python": sys.version.split()[0]}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def full_info():
    """VBench's list of prompts inside the installed package, not imported; None without it."""
    spec = find_spec("vbench")
    for folder in (spec and spec.submodule_search_locations) or ():
        path = os.path.join(folder, "VBench_full_info.json")
        if os.path.exists(path):
            return path
    return None


def main():
    """Answer until the input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.stdout = sys.stderr

    def answer(what):
        answers.write(json.dumps(what) + "\n")
        answers.flush()

    setup, loaded = json.loads(sys.stdin.readline()), {}
    answer({"versions": versions(), "full_info": full_info()})
    for line in sys.stdin:
        request = json.loads(line)
        dimension = request["dimension"]
        try:
            if dimension not in loaded:
                loaded[dimension] = load(dimension, **setup)
            answer({"score": loaded[dimension](request["video"], request["prompt"])})
        except Exception as error:
            answer({"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    main()
