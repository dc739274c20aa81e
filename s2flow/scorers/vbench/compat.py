"""Workarounds that let VBench 0.1.5 run beside current packages; used by this backend only.

Only the standard library and torch, in Python 3.8: the worker of twin.py runs this file in its own
environment. torch, VBench and its dependencies are imported inside the functions, since they are
optional there. Every workaround first checks whether it is needed.

    what                      why                                                 seen with
    pkg_resources             openai-clip and VBench's ViCLIP take `packaging`    setuptools 70 moved
                              from it; a stand-in is there for their import       it, 82 dropped it
    operators of torchvision  its CUDA wheel does not load beside a CPU torch,    torchvision 0.28.0,
                              and its import fails where it describes nms and     torch 2.13.0+cpu
                              qnms; declared here, called by no dimension
    BPE vocabulary            `overall_consistency` starts wget when imported     vbench 0.1.5
                              without it; openai-clip ships the same file
    VBENCH_CACHE_DIR          read once, when vbench is imported                  vbench 0.1.5
    torch.load                see `guarded`: VBench states no weights_only,       torch 2.6 made it
                              pyiqa states False                                  True by default
    folder of AMT             VBench imports it as `networks`, from the end of    vbench 0.1.5
                              sys.path: a folder `networks` elsewhere would win
    the root logger           set to INFO for everybody when vbench is imported   vbench 0.1.5
    progress bars, prints     a bar and some lines per clip and dimension         vbench 0.1.5

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

BPE = "ViCLIP/bpe_simple_vocab_16e6.txt.gz"
BPE_SHA256 = "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"

_kept = []  # torch forgets the operators of a Library that is collected


@contextlib.contextmanager
def imports(cache):
    """A context in which VBench's modules can be imported; cache: the folder of its weights."""
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
    """Import torchvision; True if its operators do not fit this torch and were only declared."""
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
    """Put openai-clip's vocabulary where VBench looks for it. Raises OSError, or if it differs."""
    path = os.path.join(str(cache), BPE)
    if not os.path.exists(path):
        source = bundled_bpe()
        if source is None:
            raise FileNotFoundError("openai-clip is not installed, whose vocabulary is needed")
        os.makedirs(os.path.dirname(path), exist_ok=True)
        temporary = f"{path}.tmp-{os.getpid()}"
        shutil.copyfile(source, temporary)
        os.replace(temporary, path)
    with open(path, "rb") as file:
        digest = hashlib.sha256(file.read()).hexdigest()
    if digest != BPE_SHA256:
        raise ValueError(f"{path} is not CLIP's vocabulary; remove it")


def bundled_bpe():
    """The vocabulary inside the installed openai-clip, or None."""
    spec = importlib.util.find_spec("clip")
    folders = (spec and spec.submodule_search_locations) or ()
    paths = [os.path.join(folder, os.path.basename(BPE)) for folder in folders]
    return next((path for path in paths if os.path.exists(path)), None)


@contextlib.contextmanager
def guarded(trusted):
    """A context in which pickles are loaded as tensors only, unless their path is in `trusted`.

    trusted: real paths of files whose full sha256 was checked. TorchScript archives, which hold
    code, are refused unless they are trusted.
    """
    import torch

    load, jit_load = torch.load, torch.jit.load

    def is_trusted(file):
        return os.path.realpath(str(getattr(file, "name", file))) in trusted

    def guarded_load(f, *args, **kwargs):
        kwargs["weights_only"] = not is_trusted(f)
        return load(f, *args, **kwargs)

    def guarded_jit_load(f, *args, **kwargs):
        if not is_trusted(f):  # clip.load then tries torch.load
            raise RuntimeError("an untrusted TorchScript archive is not opened")
        return jit_load(f, *args, **kwargs)

    torch.load, torch.jit.load = guarded_load, guarded_jit_load
    try:
        yield
    finally:
        torch.load, torch.jit.load = load, jit_load


@contextlib.contextmanager
def quiet():
    """A context that suppresses VBench's output."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def no_bar(items, **_):
    """A replacement for tqdm."""
    return items


@contextlib.contextmanager
def _pkg_resources():
    before = sys.modules.get("pkg_resources")
    try:
        from pkg_resources import packaging  # noqa: F401

        needed = False
    except ImportError:
        needed = True
    if needed:
        import packaging
        import packaging.version

        sys.modules["pkg_resources"] = types.ModuleType("pkg_resources")
        sys.modules["pkg_resources"].packaging = packaging
    try:
        yield
    finally:
        if needed:  # other packages check whether it can be imported
            del sys.modules["pkg_resources"]
        if needed and before is not None:
            sys.modules["pkg_resources"] = before


def _amt_first(vbench_folder):
    """Import AMT's `networks`, unless another one is imported already."""
    if "networks" not in sys.modules:
        sys.path.insert(0, os.path.join(vbench_folder, "third_party", "amt"))
        try:
            importlib.import_module("networks")
        except ImportError:
            pass
        finally:
            del sys.path[0]
