"""Workarounds that let VBench 0.1.5 run beside current packages; used by this backend only.

Only the standard library and torch, in Python 3.8, and imports inside the functions: the worker of
twin.py runs this file in its own environment. Each first checks whether it is needed.

Motion smoothness gets the device as `torch.device`, so that it never rescales the frames by the GPU's
memory, as it would for the string "cuda".
"""

import contextlib
import hashlib
import importlib.util
import io
import logging
import os
import shutil
import sys
import types
import warnings
from unittest import mock

BPE = "ViCLIP/bpe_simple_vocab_16e6.txt.gz"
BPE_SHA256 = "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"

_kept = []  # torch forgets the operators of a Library that is collected


@contextlib.contextmanager
def imports(cache):
    """A context in which VBench's modules can be imported; cache: the folder of its weights.

    VBench reads VBENCH_CACHE_DIR once, when imported, and sets the root logger to INFO for everybody.
    """
    os.environ["VBENCH_CACHE_DIR"] = str(cache)
    torchvision_operators()
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    with _pkg_resources(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import vbench.utils

        vbench.utils.CACHE_DIR = str(cache)
        root.handlers[:], root.level = handlers, level
        _amt_first(os.path.dirname(vbench.utils.__file__))
        yield


def torchvision_operators():
    """Import torchvision; True if its operators do not fit this torch and were only declared.

    A CUDA wheel beside a CPU torch fails where it describes nms and qnms, which no dimension calls.
    """
    import torch

    if _kept:
        return True
    try:
        import torchvision  # noqa: F401
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        for name in [m for m in sys.modules if m.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _kept.append(library)
        import torchvision  # noqa: F401
    return bool(_kept)


def bpe(cache):
    """Put openai-clip's vocabulary where VBench looks for it, which would start wget without it.

    Raises OSError, and ValueError if it is another vocabulary.
    """
    path = os.path.join(str(cache), BPE)
    if not os.path.exists(path):
        source = shipped("clip", os.path.basename(BPE))
        if source is None:
            raise FileNotFoundError("openai-clip is not installed, whose vocabulary is needed")
        os.makedirs(os.path.dirname(path), exist_ok=True)
        temporary = f"{path}.tmp-{os.getpid()}"
        shutil.copyfile(source, temporary)
        os.replace(temporary, path)
    with open(path, "rb") as file:
        if hashlib.sha256(file.read()).hexdigest() != BPE_SHA256:
            raise ValueError(f"{path} is not CLIP's vocabulary; remove it")


def shipped(package, name):
    """The path of a file inside an installed package, which is not imported; None without it."""
    spec = importlib.util.find_spec(package)
    folders = (spec and spec.submodule_search_locations) or ()
    paths = [os.path.join(folder, name) for folder in folders]
    return next(filter(os.path.exists, paths), None)


@contextlib.contextmanager
def guarded(trusted):
    """A context in which pickles are loaded as tensors only, unless their path is in `trusted`.

    trusted: real paths of files whose full sha256 was checked. TorchScript archives, which hold
    code, are refused unless they are trusted. (VBench states no weights_only, pyiqa states False.)
    """
    import torch

    load, jit_load = torch.load, torch.jit.load

    def is_trusted(file):
        return os.path.realpath(str(getattr(file, "name", file))) in trusted

    def guarded_load(f, *args, **kwargs):
        return load(f, *args, **dict(kwargs, weights_only=not is_trusted(f)))

    def guarded_jit_load(f, *args, **kwargs):
        if not is_trusted(f):  # clip.load then tries torch.load
            raise RuntimeError("an untrusted TorchScript archive is not opened")
        return jit_load(f, *args, **kwargs)

    with mock.patch("torch.load", guarded_load), mock.patch("torch.jit.load", guarded_jit_load):
        yield


@contextlib.contextmanager
def quiet():
    """A context that suppresses VBench's output."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _pkg_resources():
    """A stand-in while setuptools has none: openai-clip and ViCLIP take `packaging` from it."""
    before, stand_in = sys.modules.get("pkg_resources"), types.ModuleType("pkg_resources")
    try:
        from pkg_resources import packaging  # noqa: F401
    except ImportError:
        import packaging.version

        stand_in.packaging = packaging
        sys.modules["pkg_resources"] = stand_in
    try:
        yield
    finally:  # other packages check whether it can be imported
        if sys.modules.get("pkg_resources") is stand_in:
            sys.modules["pkg_resources"] = before
            if before is None:
                del sys.modules["pkg_resources"]


def _amt_first(vbench_folder):
    """Import AMT's `networks`, which VBench would look for at the end of sys.path."""
    if "networks" not in sys.modules:
        sys.path.insert(0, os.path.join(vbench_folder, "third_party", "amt"))
        with contextlib.suppress(ImportError):
            importlib.import_module("networks")
        del sys.path[0]
