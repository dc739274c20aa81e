"""Folders of Wan 2.2 and HunyuanVideo-1.5: what is missing, what does not belong, what names them."""

import shutil

import pytest
from safetensors.torch import load_file, save_file
from test_checkpoint import (  # noqa: F401  (fixtures)
    change,
    command,
    cut,
    folder,
    fresh,
    name_of,
    records,
    typed,
    weights,
)
from test_cli import refusal

pytestmark = pytest.mark.usefixtures("fresh")
experts = pytest.mark.parametrize("family", ["wan_2_2_14b"], indirect=True)
hunyuan15 = pytest.mark.parametrize("family", ["hunyuan_1_5"], indirect=True)


@pytest.fixture
def family(request):
    """Of `folder` and `typed`."""
    return request.param


def index(folder, **values):  # noqa: F811
    change(folder / "model_index.json", **values)


BROKEN = {  # what happened to the folder -> what the line must say
    "lost the second expert": (
        lambda f: index(f, transformer_2=[None, None]),
        "boundary_ratio=0.875 lacks the part transformer_2; fetch",
    ),
    "lost the second expert's folder": (
        lambda f: shutil.rmtree(f / "transformer_2"),
        "lacks the folder transformer_2; fetch",
    ),
    "has half of the second expert": (
        lambda f: cut(f, "transformer_2"),
        "transformer_2 truncated",
    ),
    "does not say when it runs": (
        lambda f: index(f, boundary_ratio=None),
        "transformer_2, and no boundary_ratio",
    ),
    "has a second expert of another class": (
        lambda f: index(f, transformer_2=["diffusers", "WanVACETransformer3DModel"]),
        "transformer_2 WanVACETransformer3DModel must be a WanTransformer3DModel",
    ),
}


@experts
@pytest.mark.parametrize("damage", BROKEN)
def test_two_experts_come_together_or_not_at_all(damage, folder, typed, capsys):  # noqa: F811
    spoil, said = BROKEN[damage]
    spoil(folder)
    line = refusal(typed(), capsys)
    for word in [*said.split(), str(folder)]:
        assert word in line, line


@experts
def test_a_folder_with_experts_and_a_yaml_without_and_the_reverse(
    folder,  # noqa: F811
    folders,
    typed,  # noqa: F811
    capsys,
):
    line = refusal(typed("backbone=wan_14b"), capsys)
    assert "backbone.boundary=null, but these weights have 0.875" in line
    line = refusal(typed(f"backbone.source={folders['wan']}"), capsys)
    assert "backbone.boundary=0.875, but these weights have null" in line
    assert "choose another backbone=" in line
    line = refusal(typed(f"backbone.source={folders['wan_2_2_5b']}"), capsys)
    assert "backbone.multiple=16, but these weights have 32" in line


TYPED = {  # what is typed beside the experts' folder -> what the line must say
    "backbone=wan_14b guidance_2=3": "guidance_2=3.0 wan_14b has one model; leave guidance_2 out",
    "guidance=1 guidance_2=3": "guidance_2=3.0 no effect with guidance=1, type guidance_2=1",
    "guidance_2=inf": "guidance_2=inf is not finite; type guidance_2=3.0",
}


@experts
@pytest.mark.parametrize("words", TYPED)
def test_a_second_guidance_needs_a_second_expert(words, typed, capsys):  # noqa: F811
    line = refusal(typed(*words.split()), capsys)
    for said in TYPED[words].split():
        assert said in line, line


@experts
def test_the_second_expert_and_the_boundary_name_the_weights(folder, family):  # noqa: F811
    names = {name_of(folder, family)}
    index(folder, boundary_ratio=0.9)
    names.add(name_of(folder, family))
    file = weights(folder, "transformer_2")
    save_file({k: w * 1.001 for k, w in load_file(file).items()}, file)
    names.add(name_of(folder, family))
    assert len(names) == 3


@pytest.mark.parametrize("family", ["wan", "wan_2_2_5b"], indirect=True)
def test_an_expert_that_is_null_does_not_name_them(folder, family):  # noqa: F811
    """As of folders that an older diffusers saved, which knew no second expert."""
    first = name_of(folder, family)
    old = (folder / "model_index.json").read_text()
    assert '"transformer_2"' in old and '"boundary_ratio": null' in old
    index(folder, transformer_2=None, boundary_ratio=None)
    assert name_of(folder, family) == first


@experts
def test_both_guidances_are_part_of_the_run(typed, tmp_path):  # noqa: F811
    for word in ("guidance_2=3", "guidance_2=3.0", "guidance_2=2"):
        assert typed(word, "prompts.count=1", "method=native") == 0
    found = {r["run_id"]: r["recipe"]["guidance_2"] for r in records(tmp_path)}
    assert sorted(found.values()) == [2.0, 3.0]


@hunyuan15
def test_the_two_hunyuan_videos_are_not_each_others(folder, folders, typed, capsys):  # noqa: F811
    line = refusal(typed("backbone=hunyuan"), capsys)
    assert "is a HunyuanVideo15Pipeline, and this backbone runs a HunyuanVideoPipeline" in line
    line = refusal(typed(f"backbone.source={folders['hunyuan']}"), capsys)
    assert "is a HunyuanVideoPipeline, and this backbone runs a HunyuanVideo15Pipeline" in line


@hunyuan15
def test_a_guider_is_a_setting_and_an_odd_one_is_refused(folder, family, typed, capsys):  # noqa: F811
    first = name_of(folder, family)
    guider = folder / "guider" / "guider_config.json"
    change(guider, guidance_scale=2.0)  # ours is in the recipe
    assert name_of(folder, family) == first
    change(guider, guidance_rescale=0.7)
    line = refusal(typed(), capsys)
    assert "guider has guidance_rescale=0.7" in line and str(folder) in line
