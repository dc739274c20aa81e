"""A picture of the report page as a browser shows it: the README's.

    python experiments/screenshot.py runs/ [--keep native cascade 8acde59716 ...] [--output FILE]

Builds the page of a folder of runs (`s2flow.report`), opens it in a headless Chromium (Debian's
`chromium` package), keeps the clips of the methods and runs named, waits until those in view play in
step, and writes experiments/results/gallery_page.png. Half a minute for 1,300 clips.
"""

import argparse
import contextlib
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image
from script import RESULTS

from s2flow.errors import UserError
from s2flow.report import write_report
from s2flow.store import written_whole
from s2flow.terminal.cli import one_line

# as root, in a small container
FLAGS = ("--no-sandbox", "--disable-dev-shm-usage", "--autoplay-policy=no-user-gesture-required")
COLOURS = 256  # of the picture: a third of the size, no visible loss


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """A headless browser by Playwright. Raises UserError with what to install where there is none."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        raise UserError("there is no chromium; type apt-get install chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        raise UserError("playwright is missing; type pip install -e '.[test]'") from None
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(FLAGS))
        yield browser
        browser.close()


def main(argv: list[str] | None = None) -> int:
    """Build, open, wait, take the picture; 2 and one line if that cannot be done."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", type=Path)
    parser.add_argument("--keep", nargs="+", metavar="NAME")
    parser.add_argument("--size", type=int, default=216, help="pixels that a clip is wide")
    parser.add_argument("--output", type=Path, default=RESULTS / "gallery_page.png")
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--height", type=int, default=800)
    parser.add_argument("--dark", action="store_true")
    args = parser.parse_args(argv)
    try:
        with TemporaryDirectory() as folder, chromium() as browser:
            write_report(args.runs, Path(folder) / "report.html")
            scheme = "dark" if args.dark else "light"
            size = {"width": args.width, "height": args.height}
            page = browser.new_page(viewport=size, color_scheme=scheme)
            page.goto((Path(folder) / "report.html").as_uri())
            _keep(page, args.keep)
            page.locator("#size").fill(str(args.size))
            page.locator(".screen.ready").first.wait_for()
            page.wait_for_timeout(1500)  # all in view are loaded and in step
            page.screenshot(path=Path(folder) / "page.png")
            with written_whole(args.output) as temporary:
                image = Image.open(Path(folder) / "page.png").convert("RGB")
                image = image.quantize(COLOURS, dither=Image.Dither.NONE)
                image.save(temporary, "PNG", optimize=True)
    except (UserError, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    print(args.output)
    return 0


def _keep(page: Any, words: list[str] | None) -> None:
    """Untick all other runs, as a reader does."""
    if not words:
        return
    runs = json.loads(page.locator("#data").text_content())["runs"]
    known = list(dict.fromkeys([run["method"] for run in runs] + [run["id"] for run in runs]))
    if absent := [word for word in words if word not in known]:
        absent, known = " ".join(absent), ", ".join(known)
        raise UserError(f"--keep {absent}: no such method or run; there are {known}")
    page.locator("#filters summary").click()
    for run, box in zip(runs, page.locator("#knobs .runs input").all(), strict=True):
        box.set_checked(run["id"] in words or run["method"] in words)
    page.locator("#filters summary").click()


if __name__ == "__main__":
    sys.exit(main())
