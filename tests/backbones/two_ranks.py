"""What test_parallel.py computes twice: in its own process, and by torchrun on two ranks.

torchrun --nproc_per_node=2 two_ranks.py OUT wan=FOLDER hunyuan=FOLDER ...
"""

import runpy
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir

import s2flow.recipe.resolve as config
from s2flow.backbones import hunyuan, hunyuan15, wan
from s2flow.backbones.base import Origin
from s2flow.backbones.compiled import compile_backbone
from s2flow.backbones.ulysses import Ulysses, share_videos
from s2flow.cascade import Cascade
from s2flow.methods import method
from s2flow.process import parallel

ROOT = Path(__file__).parents[2]
CONF = {"wan": "wan_1_3b"}
FAMILIES = {"wan": wan, "hunyuan": hunyuan, "wan_2_2_14b": wan, "hunyuan_1_5": hunyuan15}
PROMPTS = ["a large red star spins on sand slowly", "a blue cat"]
SIZES = ["low=[32,48]", "high=[64,96]", "frames=5", "steps=3", "t_i=2", "brick_low=[1,1,1]"]
SIZES += ["brick_high=[1,2,2]", "backbone.dtype=float32"]
WINDOWS = ["windows=coverage", "windows.target=0.7"]  # heads differ in volume


def recipe(name, *more, windows=WINDOWS):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("config", [f"backbone={CONF.get(name, name)}", *SIZES, *windows, *more])
    return config.resolve(cfg, weights="test", knobs=method(cfg.method.name).KNOBS)


def opened(name, folder, group):
    """A family's backbone, shared by the ranks of a group if there is one."""
    backbone = FAMILIES[name].from_origin(Origin(name, folder), "cpu")
    # HunyuanVideo-1.5: its padding takes seconds
    backbone.pipeline.tokenizer_max_length, backbone.pipeline.tokenizer_2_max_length = 12, 20
    if group is not None:
        share_videos(backbone, group)
    return backbone


def clip(name, folder, group=None):
    """A batch of two clips of the whole method, and a velocity of an odd number of tokens."""
    backbone = opened(name, folder, group)
    engine = Cascade(backbone, recipe(name), PROMPTS, [3, 4])
    low = engine.low_flow()
    made = method("s2flow").generate(engine)
    found = {"coverage": low.coverage, "boxes": engine.plan(low).boxes}
    found |= {"latent": made.latent, "video": made.video, "heads": []}
    odd = engine.noise(backbone.latent_shape(48, 48, 1), "low")
    with backbone.router.observing(lambda layer, q, k: found["heads"].append(q.shape[1:3])):
        found["odd"] = backbone.velocity(odd, 0.7, engine.condition)
    grid = backbone.token_grid(odd.shape[1:])
    with backbone.router.order.of(grid, (1, 2, 2), "cpu"):
        found["ordered"] = backbone.velocity(odd, 0.7, engine.condition)
    return found


def compiled(folder, group=None):
    """Velocities of Wan's two experts, compiled where they are shared: both are in one graph."""
    backbone = opened("wan_2_2_14b", folder, group)
    engine = Cascade(backbone, recipe("wan_2_2_14b"), PROMPTS[:1], [3])
    if group is not None:
        compile_backbone(backbone, "eager")
    z = engine.noise(engine.low_shape, "low")
    return torch.cat([backbone.velocity(z, sigma, engine.condition) for sigma in (0.95, 0.7)])


def online(folder, group=None):
    """Windows that are decided inside the forward, with joint text of two lengths."""
    backbone, found = opened("hunyuan", folder, group), {}
    for name in ("oracle", "svg", "moba"):
        own = recipe("hunyuan", "coverage_rows=32", windows=[f"windows={name}"])
        engine = Cascade(backbone, own, PROMPTS, [3, 4])
        found[name] = (method("s2flow").generate(engine).latent, engine.reports)
    return found


def exchange(group=None):
    """Six heads over seven tokens and three of text, dealt unevenly: attention and back."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 7 + 3, 6, 4, generator=generator) for _ in range(3))

    def attention(q, k, v):
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)

    if group is None:
        return attention(q, k, v)
    ranks = Ulysses(group)
    ranks.tokens = 7
    mine = [torch.cat([ranks.cut(x[:, :7]), x[:, 7:]], 1) for x in (q, k, v)]
    return ranks.attend(*mine, [[0, 3, 5], [1, 2, 4]], attention)


def failures(team):
    """What a leader's failure and a common one become on this rank."""
    try:
        with team.lead() as leads:
            if leads:
                raise OSError("disk")
    except Exception as error:
        found = repr(error)
        team.fail_together(error)  # both ranks are here: nothing is raised
    return found, team.agree(team.rank), team.share(["a", "b"]), team.total(2 + team.rank, 1)


def alone(team):
    """What becomes of an error on one rank only; the other goes on and would wait."""
    if team.rank == 1:
        return None
    try:
        team.fail_together(ValueError("only here"))
    except SystemExit as error:  # no `except Exception` on the way takes it for one job's failure
        return str(error)


def typed(folder, runs_dir):
    """Words of run.py for three clips of Wan."""
    which = ["backbone=wan_1_3b", f"backbone.source={folder}", *WINDOWS, *SIZES]
    return [*which, "prompts.count=3", "device=cpu", f"runs_dir={runs_dir}"]


def sweep(folder, out):
    """run.py as torchrun starts it: 3 prompts over both ranks, then each video over both."""
    words = ["-m", "context_parallel=1,2", *typed(folder, f"{out}/${{context_parallel}}")]
    words += [f"hydra.sweep.dir={out}/diary/${{oc.env:RANK}}", "hydra/job_logging=none"]
    words += ["hydra/hydra_logging=none", "--config-path", str(ROOT / "conf")]
    sys.argv = ["run.py", *words]
    runpy.run_path(str(ROOT / "run.py"), run_name="__main__")


if __name__ == "__main__":
    out, *words = sys.argv[1:]
    folders = dict(word.split("=") for word in words)
    torch.set_num_threads(1)
    team = parallel.join(2, "cpu")
    found = {name: clip(name, folders[name], team.tensors) for name in FAMILIES}
    found |= {"exchange": exchange(team.tensors), "failures": failures(team)}
    found["compiled"] = compiled(folders["wan_2_2_14b"], team.tensors)
    found["online"] = online(folders["hunyuan"], team.tensors)
    sweep(folders["wan"], out)
    parallel.FAILURE_TIMEOUT = timedelta(seconds=1)
    found["alone"] = alone(team)
    torch.save(found, f"{out}/{team.rank}.pt")
