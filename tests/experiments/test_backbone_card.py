"""The figures of the embedded backbone's card: every row and size, beside renders, with intervals."""

import json

import backbone_card


def test_the_card_has_every_row_beside_renders(tmp_path, monkeypatch, capsys):
    words = f"card --prompts 2 --seeds 1 --out {tmp_path} steps=2 t_i=1 frames=4".split()
    monkeypatch.setattr("sys.argv", words)
    backbone_card.main()
    card = json.loads((tmp_path / "micro_card.json").read_text())
    rows = [f"2x {row}" for row in (*backbone_card.ROWS, "render")]
    rows += [f"{k}x {row}" for k in ("1.5", "3") for row in (*backbone_card.ELSEWHERE, "render")]
    assert set(card["means"]) == {"LR", *rows}
    for row, means in card["means"].items():
        for name in ("world_agreement", "repetition", "whole", "debris", "detail", "grid"):
            mean, low, high = means[name]
            assert low <= mean <= high, (row, name)
    for factor in ("1.5", "2", "3"):
        assert card["means"][f"{factor}x render"]["whole"][0] > 0.8
        assert card["means"][f"{factor}x render"]["world_agreement"][0] == 1
    assert set(card["minus_cascade"]["2x s2flow s=.5"]) >= {"world_agreement", "whole"}
    assert "wrote" in capsys.readouterr().out
    assert (tmp_path / "micro_sheet.png").exists() and (tmp_path / "micro_gallery.png").exists()
