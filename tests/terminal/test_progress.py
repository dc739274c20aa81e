"""Live lines on a terminal, one plain line per clip elsewhere, nothing at all if so asked."""

import io
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from finished import fresh_flows
from rich.console import Console
from test_cli import run_here

from s2flow.errors import UserError
from s2flow.process import loading
from s2flow.terminal import progress
from s2flow.terminal.progress import Progress, duration

ROOT = Path(__file__).parents[2]
SMALL = ("steps=3", "t_i=2", "frames=2", "device=cpu", "scorer=[builtin]", "prompts.count=2")


def of_clip(prompt="a cat"):
    return {"prompt": prompt, "seconds": {"hr": 1.0}}


@pytest.fixture
def live(recipe, monkeypatch):
    """Live progress of 3 clips with a clock that tests set: (progress, clock, lines on the screen)."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    shown, clock = Progress(recipe(), 3, 3), [0.0]
    shown.bars.get_time = lambda: clock[0]
    for task in shown.bars.tasks:
        task._get_time = shown.bars.get_time
    shown.bars.reset(shown.rows["clips"])

    def lines():
        screen = Console(width=100, record=True, quiet=False, file=io.StringIO())
        for column in shown.bars.columns:
            column._renderable_cache.clear()
        screen.print(shown.bars.get_renderable())
        text = re.sub(r"[━╸╺]+", "", screen.export_text())
        return [" ".join(line.split()) for line in text.splitlines()]

    return shown, clock, lines


def test_a_line_per_stage_with_what_is_left(live):
    shown, clock, lines = live
    shown.stage("text", None)
    clock[0] = 2.0
    shown.stage("text", 2.0)
    shown.stage("lr", None)
    clock[0] = 12.0
    shown.step("lr", 5, 20)  # 2 s each
    assert lines() == ["text 2.0 s", "LR flow 5/20 0:30 left", "clips 0/3 0:12 so far"]
    clock[0] = 15.0
    assert lines()[1] == "LR flow 5/20 0:27 left"  # it counts down between steps
    clock[0] = 42.0
    shown.step("lr", 20, 20)
    shown.stage("lr", 40.0)
    shown.stage("plan", None)
    assert lines()[1:3] == ["LR flow 20/20 40.0 s", "plan 0:00 so far"]
    clock[0] = 60.0
    shown.stage("plan", 18.0)
    shown.clip_done(of_clip())
    assert lines()[-1] == "clips 1/3 2:00 left"
    shown.batch()
    shown.stage("plan", None)
    clock[0] = 62.0
    assert lines() == ["plan 0:16 left", "clips 1/3 1:58 left"]  # as it took the last time


def test_stages_that_nobody_named_are_not_shown(live):
    shown, _, lines = live
    shown.stage("diagnostics", None)
    shown.stage("diagnostics", 1.0)
    assert lines() == ["clips 0/3 0:00 so far"]


def test_durations():
    assert [duration(s) for s in (0, 7.4, 750, 11_100)] == ["0:00", "0:07", "12:30", "3:05:00"]


@pytest.mark.parametrize("mode", ["auto", "plain", "off"])
def test_not_on_a_terminal_a_line_per_clip_at_most(mode, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(loading, "low_flows", fresh_flows())
    assert run_here(monkeypatch, tmp_path, "method=bicubic", f"progress={mode}", *SMALL) == 0
    said = capsys.readouterr()
    begun, *clips = said.err.splitlines() or [""]
    assert "\x1b" not in said.err
    if mode == "off":
        assert said.err == ""
    else:
        assert "2 clip(s) to make" in begun
        assert [line.split()[0] for line in clips] == ["1/2", "2/2"]
    table, runs = said.out.rindex("2/2"), said.out.rindex("runs    ")
    assert table < runs and f"python -m s2flow.report {tmp_path}/runs" in said.out[runs:]


def test_unknown_modes_are_refused(recipe, monkeypatch):
    with pytest.raises(UserError, match=r"progress=loud is unknown; type one of progress=auto\|"):
        Progress(recipe(), 1, 1, "loud")


def test_where_others_write_too_lines_are_plain_and_say_whose(recipe, monkeypatch, capsys):
    monkeypatch.setattr(progress, "among_others", lambda: True)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    recipe = recipe()
    with Progress(recipe, 1, 1) as shown:
        shown.stage("lr", None)
        shown.clip_done(of_clip())
    assert shown.bars.disable
    assert capsys.readouterr().err.splitlines()[1].split()[:2] == [recipe.run_id, "1/1"]


def test_on_a_real_terminal_stages_come_and_go(tmp_path):
    """Through a pseudo-terminal: every stage was drawn, and only lines of clips are left."""
    words = ["method=s2flow", *SMALL, f"runs_dir={tmp_path}/runs", f"hydra.run.dir={tmp_path}/d"]
    ours, theirs = pty.openpty()
    env = os.environ | {"TERM": "xterm-256color", "COLUMNS": "100", "LINES": "40"}
    run = subprocess.Popen(
        [sys.executable, ROOT / "run.py", *words],
        stdout=subprocess.DEVNULL, stderr=theirs, cwd=tmp_path, env=env,
    )  # fmt: skip
    os.close(theirs)
    said = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # Linux's word for the end of a terminal
            break
        if not part:
            break
        said += part
    os.close(ours)
    assert run.wait() == 0
    text = said.decode()
    for stage in ("text", "LR flow", "plan", "hand-off", "HR flow", "decode", "write", "score"):
        assert re.search(rf"{stage}\x1b|{stage} ", text), stage
    assert re.search(r"plan [^\n]*\d\.\d s", text)  # what it took
    assert " left" in text and "clips" in text
    end = text[text.rindex("2/2 ") :]  # the last clip's line stands, what was live is erased
    assert "\x1b[2K" in end
