"""The report page in a real browser: loads, plays in step, filters, compares, votes; hostile texts."""

import contextlib
import importlib.util
import io
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from finished import encoded, record_clip
from PIL import Image

from s2flow import report
from s2flow.errors import UserError
from s2flow.report import preferences
from s2flow.store import write_json
from s2flow.video import write_video

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "experiments"))  # as for a script there
spec = importlib.util.spec_from_file_location("s2flow_shot", ROOT / "experiments/screenshot.py")
screenshot = importlib.util.module_from_spec(spec)
spec.loader.exec_module(screenshot)

EVIL = "<script>document.title='evil'</script><img src=x onerror=\"document.title='evil'\">"
EVIL += " \"q\" 's' &amp; </script>"
LONG = ("incomprehensibilities" * 20)[:400]  # no place to break a line at
PROMPTS = ["a cat on a mat", "a dog in fog", EVIL, LONG]
RUNS = {"aaaaaaaaa1": ("native", None), "aaaaaaaaa2": ("s2flow", 12), "aaaaaaaaa3": ("s2flow", 8)}
FPS = 16


@pytest.fixture(scope="module")
def browser():
    try:
        with screenshot.chromium() as found:
            yield found
    except UserError as error:
        pytest.skip(str(error))


def long_clip(folder, shade):
    """5 s at 16 a second: longer than the test looks at it."""
    frames = torch.linspace(0, 1, 5 * FPS)[:, None, None, None] * torch.ones(32, 48, 3) * shade
    write_video(folder / "long.mp4", frames, FPS)
    return (folder / "long.mp4").read_bytes()


def make_runs(folder, prompts=PROMPTS, data=None, runs=RUNS, fps=8, frames=3):
    for i, (run_id, (method, t_i)) in enumerate(runs.items()):
        recipe = {"backbone": "micro", "method": method, "high": [32, 48], "frames": frames}
        recipe |= {"t_i": t_i} if t_i else {}
        (folder / run_id / "clips").mkdir(parents=True)
        write_json(folder / run_id / "recipe.json", {"version": 1, **recipe})
        for j, prompt in enumerate(prompts):
            own = (8 + 4).to_bytes(4, "big") + b"free" + (100 * i + j).to_bytes(4, "big")
            bytes_ = (data[i] if data else encoded(frames, 32, 48, (i + j) % 4)) + own
            record = record_clip(folder / run_id, recipe, prompt, 0, bytes_)
            record |= {"fps": fps, "prompt_index": [j], "scores": {EVIL: 0.5, "good": i + j / 8}}
            record |= {"device": "cpu", "density": {"1": 1 / t_i} if t_i else {}}
            write_json(folder / run_id / "records" / f"{Path(record['video']).stem}.json", record)
    return folder


@pytest.fixture(scope="module")
def gallery(tmp_path_factory):
    """A folder with `runs` and their `page`, only to be read."""
    folder = tmp_path_factory.mktemp("gallery")
    make_runs(folder / "runs")
    report.write_report(folder / "runs", folder / "page")
    return folder


@pytest.fixture
def opened(browser, gallery):
    """opened(url, width=..., ...) -> a page, which must neither complain nor ask of a network."""
    contexts, wrong = [], []
    index = (gallery / "page/index.html").as_uri()

    def page_of(url=index, width=1280, height=900, lost=False, **how):
        def complain(text):  # that a file is lost is what some tests do
            if "ERR_FILE_NOT_FOUND" not in text or not lost:
                wrong.append(text)

        context = browser.new_context(viewport={"width": width, "height": height}, **how)
        page = context.new_page()
        contexts.append(context)
        page.on("console", lambda m: complain(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda e: wrong.append(str(e)))
        away = ("file:", "data:", "blob:")
        page.on("request", lambda r: None if r.url.startswith(away) else wrong.append(r.url))
        page.goto(url)
        until(page, "document.querySelectorAll('.screen.ready').length > 0")
        return page

    yield page_of
    for context in contexts:
        context.close()
    assert not wrong


def until(page, expression, seconds=10):
    """Wait for it. Playwright's own waiting evaluates strings, which the page's policy forbids."""
    for _ in range(20 * seconds):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"never: {expression}")


def shot(locator):
    return Image.open(io.BytesIO(locator.screenshot())).convert("RGB")


def texts(locator):
    return [" ".join(text.split()) for text in locator.all_inner_texts()]


def test_it_loads_and_the_clips_in_view_play(opened):
    page = opened()
    assert page.locator("article").count() == 4
    assert page.locator("article").first.locator("figure").count() == 3
    until(
        page, "[...document.querySelectorAll('video')].every(v => !v.paused && v.currentTime > 0)"
    )
    assert page.evaluate("document.querySelector('video').videoWidth") == 48  # H.264 was decoded
    first = texts(page.locator("article").first.locator("figcaption"))
    assert first[1].startswith("s2flow, t_i=8 aaaaaaaaa3") and "good 2" in first[1]


PAIR = """() => [...document.querySelectorAll('#stage video')].map(v => v.currentTime)"""


def test_two_clips_are_less_than_a_frame_apart_after_three_seconds(opened, tmp_path):
    data = [long_clip(tmp_path, shade) for shade in (0.5, 1.0)]
    runs = dict(list(RUNS.items())[:2])
    make_runs(tmp_path / "runs", ["a"], data, runs, FPS, 5 * FPS)
    report.write_report(tmp_path / "runs")
    page = opened((tmp_path / "runs/report.html").as_uri())
    page.get_by_role("button", name="Compare row").click()
    until(page, "document.querySelectorAll('#stage .screen.ready').length == 2")
    page.evaluate("document.querySelector('#stage video').currentTime = 2")  # one runs ahead
    page.keyboard.press("Home")
    page.keyboard.press("Space")
    page.wait_for_timeout(500)
    page.evaluate("document.querySelector('#stage video').currentTime += .2")  # and again
    page.wait_for_timeout(2500)
    a, b = page.evaluate(PAIR)
    assert min(a, b) > 2 and abs(a - b) < 1 / FPS
    page.keyboard.press("Space")
    page.keyboard.press("ArrowRight")  # paused: the very same frame, its middle
    until(page, "[...document.querySelectorAll('#stage video')].every(v => !v.seeking)")
    a, b = page.evaluate(PAIR)
    assert a == b and (a * FPS) % 1 == pytest.approx(0.5, abs=0.01)
    page.keyboard.press("ArrowRight")
    assert page.evaluate(PAIR)[0] == pytest.approx(a + 1 / FPS, abs=1e-4)
    page.locator("#scrub").fill("2.03")
    assert page.evaluate(PAIR) == [pytest.approx(2 + 0.5 / FPS, abs=1e-4)] * 2


def test_one_that_fell_behind_catches_up_while_playing(opened):
    page = opened()
    page.wait_for_timeout(300)
    page.evaluate("v = document.querySelector('video'); v.pause()")
    gap = "(() => {const t = [...document.querySelectorAll('video')].map(v => v.currentTime);"
    gap += "const d = Math.abs(t[0] - t[1]); return Math.min(d, 3 / 8 - d);})() < 1 / 8"
    until(page, "!document.querySelector('video').paused")
    until(page, gap)


def test_filters_by_prompt_method_and_knob(opened):
    page = opened()
    page.keyboard.press("/")
    page.keyboard.type("FOG dog")
    visible = page.locator("article:visible")
    assert texts(visible.locator("h2 span")) == ["a dog in fog"]
    page.locator("#search").fill("")
    page.locator("#filters summary").click()
    labels = lambda: [t.split(" aaa")[0] for t in texts(visible.first.locator("figcaption"))]  # noqa: E731
    assert labels() == ["native", "s2flow, t_i=8", "s2flow, t_i=12"]
    page.locator("#knobs").get_by_label("native", exact=True).uncheck()
    assert labels() == ["s2flow, t_i=8", "s2flow, t_i=12"]
    page.locator("#knobs").get_by_label("8", exact=True).uncheck()
    assert labels() == ["s2flow, t_i=12"]
    page.keyboard.press("t")
    assert page.locator("#table tbody tr").count() == 1
    page.keyboard.press("g")
    page.get_by_role("button", name="Show all").click()
    assert len(labels()) == 3


def test_hostile_texts_are_shown_as_text(opened):
    page = opened()
    assert texts(page.locator("h2 span"))[2:] == [EVIL, LONG]
    page.locator("article").nth(2).get_by_role("button", name="Details").first.click()
    assert EVIL in page.locator("#details").inner_text()
    page.keyboard.press("Escape")
    page.locator("article").nth(2).get_by_role("button", name="Compare row").click()
    assert EVIL in page.locator("#stage h2").inner_text()
    page.keyboard.press("t")
    assert page.locator("#table th", has_text="onerror").count() == 1
    assert page.title() == "runs · S²Flow" and page.locator("main img[src=x]").count() == 0


def test_the_difference_of_a_clip_with_itself_is_black_and_with_another_is_not(opened):
    page = opened(height=1500)  # nothing lies over the canvas
    page.get_by_role("button", name="Compare row").first.click()
    page.keyboard.press("Home")
    page.keyboard.press("d")
    page.locator("#gain").fill("16")
    canvas = page.locator("#subtracted")
    brightest = lambda: np.asarray(shot(canvas))[8:-8, 8:-8].max()  # noqa: E731
    until(page, "document.querySelectorAll('#stage .screen.ready').length == 3")
    page.wait_for_timeout(500)
    assert brightest() > 100
    page.locator("#second").select_option(index=0)
    page.wait_for_timeout(300)
    assert brightest() == 0


def test_the_loupe_shows_one_pixel_as_so_many(opened):
    page = opened(device_scale_factor=1)
    page.get_by_role("button", name="Compare row").first.click()
    page.keyboard.press("Home")
    page.keyboard.press("l")
    for zoom in (4, 8):
        page.locator("#zoom").select_option(str(zoom))
        until(page, "document.querySelectorAll('.lens:not([hidden])').length == 3")
        page.wait_for_timeout(400)
        lens = np.asarray(shot(page.locator(".lens").first))
        blocks = [
            lens[y : y + 64, x : x + 64].reshape(64 // zoom, zoom, 64 // zoom, zoom, 3)
            for y in range(54, 54 + zoom)
            for x in range(54, 54 + zoom)
        ]
        alike = [np.ptp(b, axis=(1, 3)).max() == 0 for b in blocks]
        assert sum(alike) == 1  # on one grid every block is of one colour, on no other


def test_ten_votes_are_kept_over_a_reload_undone_saved_and_read_back(opened, tmp_path):
    page = opened(accept_downloads=True)
    page.keyboard.press("b")
    page.locator("#pairs").fill("12")
    page.locator("#voter").fill("A. B.")
    page.get_by_role("button", name="Start").click()
    text = page.locator("#vote").inner_text()
    assert "native" not in text and "s2flow" not in text and "aaaaaaaaa" not in text
    keys, done = "1201102210", page.locator("#progress")
    for i, key in enumerate(keys):
        until(page, "document.querySelectorAll('#vote .screen.ready').length == 2")
        page.keyboard.press(key)
        assert done.inner_text() == f"{i + 1} of 12"
    page.keyboard.press("u")
    assert done.inner_text() == "9 of 12"
    until(page, "document.querySelectorAll('#vote .screen.ready').length == 2")
    page.keyboard.press("1")
    page.reload()
    assert done.inner_text() == "10 of 12"
    with page.expect_download() as download:
        page.get_by_role("button", name="Save votes").click()
    assert re.fullmatch(
        r"votes_A-B-_\d{4}-\d\d-\d\d_[0-9a-f]{6}\.json", download.value.suggested_filename
    )
    path = tmp_path / "votes.json"
    download.value.save_as(path)
    votes = preferences.read_votes(path)
    sides = {"1": "left", "2": "right", "0": "tie"}
    assert list(votes["choice"]) == [sides[key] for key in keys[:9] + "1"]
    assert set(votes["voter"]) == {"A. B."} and set(votes["prompt"]) <= set(PROMPTS)
    assert (votes["left_run"] != votes["right_run"]).all()
    assert not votes.duplicated(["prompt", "seed", "left_run", "right_run"]).any()
    met = votes.apply(lambda v: frozenset((v["left_run"], v["right_run"])), axis=1).value_counts()
    assert met.max() - met.min() <= 1  # every two runs equally often
    assert set(json.loads(path.read_text())["runs"]) == set(RUNS)


def test_the_sides_are_random(opened):
    page = opened()
    page.keyboard.press("b")
    lefts = set()
    for _ in range(5):
        page.get_by_role("button", name="Start", exact=True).click()
        stored = page.evaluate("JSON.parse(Object.values(localStorage)[0]).pairs")
        lefts |= {(pair["left"], pair["right"]) for pair in stored}
        page.get_by_role("button", name="Start over").click()
    assert len(lefts) == 6  # each of the three pairs both ways round


def test_two_hundred_clips_have_videos_only_where_one_looks(opened, tmp_path, monkeypatch):
    monkeypatch.setattr("os.fsync", lambda file: None)  # hundreds of them take long
    runs = {f"{i:010d}": ("s2flow", i + 1) for i in range(4)}
    make_runs(tmp_path / "runs", [f"prompt {i}" for i in range(50)], runs=runs)
    report.write_report(tmp_path / "runs")
    page = opened((tmp_path / "runs/report.html").as_uri())
    count = "document.querySelectorAll('video').length"
    filled = "document.querySelectorAll('figure').length"
    assert 0 < page.evaluate(count) < 40 and page.evaluate(filled) < 100
    page.evaluate("scrollBy(0, 700)")  # a row or two leave the view, but stay near it
    boxes = "[...document.querySelectorAll('video')].map(v => v.getBoundingClientRect())"
    until(page, f"{boxes}.every(b => b.bottom > -130 && b.top < innerHeight + 130)")
    assert page.evaluate("document.querySelector('figure').getBoundingClientRect().bottom") < -130
    page.locator("article").nth(45).scroll_into_view_if_needed()
    until(page, "document.querySelectorAll('article')[45].querySelector('.ready')")
    assert 0 < page.evaluate(count) < 40 and page.evaluate(filled) < 100
    assert page.locator("article").first.locator("video, figure").count() == 0
    page.keyboard.press("t")
    until(page, f"{count} == 0")


def test_a_video_that_went_missing_says_so_and_is_left_out_of_the_vote(opened, tmp_path):
    make_runs(tmp_path / "runs", PROMPTS[:2], runs=dict(list(RUNS.items())[:2]))
    report.write_report(tmp_path / "runs", tmp_path / "page")
    next((tmp_path / "page/clips/aaaaaaaaa2").iterdir()).unlink()
    page = opened((tmp_path / "page/index.html").as_uri(), lost=True)
    until(page, "document.querySelectorAll('.screen.broken').length == 1")
    page.keyboard.press("b")
    page.get_by_role("button", name="Start").click()
    for _ in range(2):
        both = "document.querySelectorAll('#vote .screen.ready').length == 2"
        until(page, f"{both} || document.querySelector('#vote td')")
        page.keyboard.press("1")
    assert page.locator("#progress").inner_text() == "1 of 1"
    assert "1 pair(s) could not be shown" in page.locator("#vote").inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1280])
def test_nothing_is_wider_than_the_window_and_texts_stand_out(opened, width, scheme):
    page = opened(width=width, color_scheme=scheme)
    for key in "gcbt":
        page.keyboard.press(key)
        page.wait_for_timeout(50)
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= width, key
    ink, back = page.evaluate(
        "(() => { const s = getComputedStyle(document.body); return [s.color, s.backgroundColor]"
        ".map(c => c.match(/\\d+/g).map(Number).reduce((a, b) => a + b)); })()"
    )
    assert (ink < 120 and back > 700) if scheme == "light" else (ink > 650 and back < 120)


def test_it_is_usable_by_keyboard_alone(opened):
    page = opened()
    for _ in range(40):  # to the first clip's button
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.className") == "pick":
            break
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert page.evaluate(outline) == "solid"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    assert page.locator(".pick[aria-pressed=true]").count() == 2
    page.keyboard.press("c")
    until(page, "document.querySelectorAll('#stage .screen').length >= 2")
    page.keyboard.press("?")
    assert page.locator("#keys").is_visible()


def test_one_page_that_holds_its_videos_plays(opened, gallery, tmp_path):
    report.write_report(gallery / "runs", tmp_path / "mail.html", embed=True)
    page = opened((tmp_path / "mail.html").as_uri())
    until(page, "document.querySelector('video').currentTime > 0")


def test_the_readme_s_picture_is_made_by_its_command(
    browser, gallery, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(screenshot, "chromium", lambda: contextlib.nullcontext(browser))
    runs = gallery / "runs"
    words = [str(runs), "--output", str(tmp_path / "page.png"), "--keep"]
    assert screenshot.main([*words, "native", "aaaaaaaaa3"]) == 0
    assert Image.open(tmp_path / "page.png").size == (1280, 800)
    capsys.readouterr()
    assert screenshot.main([*words, "nothing"]) == 2
    out, err = capsys.readouterr()
    assert not out and err == (
        "error: --keep nothing: no such method or run; there are native, s2flow, "
        "aaaaaaaaa1, aaaaaaaaa3, aaaaaaaaa2\n"
    )
