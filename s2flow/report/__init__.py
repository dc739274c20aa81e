"""A folder of runs as one static page: clips side by side in step, scores, plots, and a blind vote.

    python -m s2flow.report runs/ -o page/       page/index.html with copies of clips and posters
    python -m s2flow.report runs/                runs/report.html, which links to the clips
    python -m s2flow.report runs/ --embed        the same with embedded videos: one file to mail

The page opens from disk and makes no network request. Its rows are prompts and seeds: the LR clip,
then the clip of each run, labelled by what differs between the runs. All visible clips play on one
clock. A clip that is missing, half-written, failed or has an invalid record is replaced by a note. The
votes that the page saves are read by `s2flow.report.preferences`.
"""

import base64
import hashlib
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from s2flow.errors import UserError
from s2flow.report.content import page_data
from s2flow.report.media import Media
from s2flow.report.reading import read_runs
from s2flow.store import written_whole

# made one module, because a browser may not import a second file from disk
SCRIPTS = ("dom", "clock", "gallery", "compare", "plots", "table", "vote", "main")
MARK = '<meta name="generator" content="s2flow.report">'  # marks a page as ours


def write_report(runs_dir: Path, output: Path | None = None, embed: bool = False) -> str:
    """Write the page atomically; returns a line for the user.

    output: a file *.html, or a folder, which then also holds copies of the videos and may be moved;
    by default runs_dir/report.html. embed: put the videos into the page.
    Raises UserError if runs_dir holds no finished clip or the page cannot be written.
    """
    output = output or runs_dir / "report.html"
    folder = output.suffix.lower() != ".html"
    page = output / "index.html" if folder else output
    runs = read_runs(runs_dir)
    if (page.parent / "records").is_dir():
        raise UserError(f"{output} is a run's folder; type --output with another one")
    try:
        if folder and page.is_file() and MARK not in page.read_text("utf-8", "replace"):
            raise UserError(
                f"{page} was not written by this command; type --output with another folder"
            )
        content = page_data(runs, Media(page.parent, "embed" if embed else "copy" * folder))
        with written_whole(page) as temporary:
            temporary.write_bytes(_render(content | {"title": runs_dir.resolve().name}))
    except UserError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a path without a name
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{page} cannot be written ({reason}); type --output PAGE") from None
    notes = sum(bool(c.get("note")) for row in content["rows"] for c in row["cells"])
    line = f"{page}: {len(content['runs'])} run(s), {len(content['rows'])} row(s)"
    return line + (f", {notes} clip(s) with a note of what is wrong" if notes else "")


def _render(content: dict[str, Any]) -> bytes:
    """The page. Texts are data that its scripts show as text; no other script may run."""
    names = ("page.html", "page.css", *(f"{name}.js" for name in SCRIPTS))
    frame, style, *scripts = ((Path(__file__).parent / n).read_text("utf-8") for n in names)
    parts = {"style": style, "script": "\n".join(scripts)}
    for name, text in list(parts.items()):
        digest = hashlib.sha256(text.encode()).digest()
        parts[f"{name}_hash"] = base64.b64encode(digest).decode()
    jinja = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    jinja.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    page = jinja.from_string(frame).render(
        mark=MARK, title=content["title"], data=content, **parts
    )
    return page.encode("utf-8", "replace")
