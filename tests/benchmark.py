"""Runs a script of experiments/ in this process: its words in, its JSON file out."""

import importlib
import json
import sys
from pathlib import Path

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
sys.path.append(str(EXPERIMENTS))
EVERYWHERE = {"command", "versions", "device", "commit", "threads", "load_average", "finished"}


def script(name: str):
    """The module of a script."""
    return importlib.import_module(name)


def benched(monkeypatch, folder, name: str, *words: str) -> dict:
    """What `python experiments/<name>.py words` writes; no picture is drawn."""
    monkeypatch.setitem(sys.modules, "bench_plots", None)  # as where matplotlib is missing
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *words, "--out", str(folder)])
    script(name).main()
    (file,) = folder.glob("*.json")
    return json.loads(file.read_text())


def refused(monkeypatch, folder, capsys, name: str, *words: str) -> str:
    """The one line on stderr of a script that will not run."""
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *words, "--out", str(folder)])
    try:
        script("script").run(script(name).main)
    except SystemExit as stop:
        return str(stop.code) if isinstance(stop.code, str) else capsys.readouterr().err
    raise AssertionError("it ran")
