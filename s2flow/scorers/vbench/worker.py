"""VBench's six dimensions, each loaded once and applied to one clip at a time.

`load` is used in the process of s2flow, and in the process that this file becomes when it is started
in an environment of VBench's own (`twin.py`). So it uses only the standard library and vbench, imported
inside the functions, in Python 3.8. As a process it reads JSON lines,

    {"files": {...}, "device": "cpu", "cache": "...", ...}         what `load` takes; answered by
    {"versions": {...}, "full_info": "..."}
    {"dimension": "...", "video": "....mp4", "prompt": "..."}      then any number, each answered by
    {"score": 0.97}, {"score": null} or {"error": "..."}

and ends with its input. What VBench prints goes to standard error.
"""

import contextlib
import importlib
import json
import os
import pickle
import sys
from importlib import metadata

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
        if dimension == "overall_consistency":
            compat.bpe(cache)
        module = importlib.import_module("vbench." + dimension)
        module.tqdm = lambda items, **_: items  # no bar
        try:
            of_list = LOADERS[dimension](module, files, torch.device(device), cache)
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


def _temporal_flickering(module, files, device, cache):
    return lambda path, _: module.temporal_flickering([path])


def _background_consistency(module, files, device, cache):
    import clip

    model, preprocess = clip.load(files["clip_b32"], device=device)
    return lambda path, _: module.background_consistency(model, preprocess, [path], device, False)


def _aesthetic_quality(module, files, device, cache):
    import clip

    head = module.get_aesthetic_model(os.path.dirname(files["laion_head"])).to(device)
    model, _ = clip.load(files["clip_l14"], device=device)
    return lambda path, _: module.laion_aesthetic(head, model, [path], device)


def _imaging_quality(module, files, device, cache):
    with compat.quiet():
        model = module.MUSIQ(pretrained_model_path=files["musiq_spaq"])
    model.to(device)
    model.training = False  # VBench does no more, and MUSIQ's dropout rates are 0

    def of_list(path, _):
        (result,) = module.technical_quality(model, [path], device)[1]
        return None, [{"video_results": result["video_results"] / 100}]  # 0-100 per video

    return of_list


def _motion_smoothness(module, files, device, cache):
    here = os.path.dirname(module.__file__)
    config = os.path.join(here, "third_party", "amt", "cfgs", "AMT-S.yaml")
    with compat.quiet():  # a torch.device, never a string: see compat
        motion = module.MotionSmoothness(config, files["amt_s"], device)
    return lambda path, _: module.motion_smoothness(motion, [path])


def _overall_consistency(module, files, device, cache):
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
    return compat.shipped("vbench", "VBench_full_info.json")


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
