"""Pages in a real Chromium, without a display: what moves does, nothing is said on the console, no host is asked."""

from __future__ import annotations

import importlib.util
import re
import shutil

import numpy as np
import pytest
from needs import lacking

from stereo_core.data.calibration import Calibration
from stereo_core.report.html import Link, Table, page
from stereo_core.report.pictures import UNKNOWN, colour_disparity, error_map
from stereo_core.report.viewer import view
from stereo_core.report.views import side_by_side

pytestmark = pytest.mark.browser

HEIGHT, WIDTH, END = 60, 80, 40.0
CAMERA = Calibration(100.0, 0.5, doffs=10.0).of_size(HEIGHT, WIDTH)
DRAWN_WITHOUT_A_GPU = ("--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist")


@pytest.fixture(scope="module")
def chromium():
    if importlib.util.find_spec("playwright") is None:
        lacking("browser", "playwright is not installed; it is in the extra dev")
    from playwright import sync_api

    path = shutil.which("chromium") or lacking("browser", "there is no chromium (Debian: apt-get install chromium)")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", *DRAWN_WITHOUT_A_GPU])
        yield browser
        browser.close()


@pytest.fixture
def opened(chromium, tmp_path):
    """HTML text -> the page in the browser, its pairs drawn. Nothing goes wrong there and no host is asked."""
    wrong, asked = [], []

    def show(text: str, **options):
        (tmp_path / "page.html").write_text(text, encoding="utf-8")
        tab = chromium.new_page(**options)
        tab.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        tab.on("pageerror", lambda error: wrong.append(str(error)))
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(f"file://{tmp_path / 'page.html'}")
        tab.wait_for_selector("body:not(:has(.group:not([data-ready])))")
        return tab

    yield show
    assert wrong == []
    elsewhere = [url for url in asked if not url.startswith(("data:", "blob:", f"file://{tmp_path}"))]
    assert elsewhere == [] and asked


@pytest.fixture
def disparity():
    return np.linspace(1, 39, HEIGHT * WIDTH, dtype=np.float32).reshape(HEIGHT, WIDTH)


@pytest.fixture
def truth(disparity):
    truth = disparity + 3
    truth[:, : WIDTH // 2] = 0
    return truth


def text_of(runs, **keys):
    return page("T", groups=side_by_side(runs), **keys)


def made(disparity, **keys):
    left = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    return view("pair", left, disparity, END, **keys)


def pixels(tab, layer):
    """A canvas's RGB, (HEIGHT, WIDTH, 3)."""
    data = tab.locator(f"canvas[data-layer={layer}]").first.evaluate(
        "c => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]"
    )
    return np.array(data).reshape(HEIGHT, WIDTH, 4)[..., :3]


def point(tab, share_x, share_y, figure=0):
    both = tab.locator(".both").nth(figure)
    box = both.bounding_box()
    both.hover(position={"x": share_x * box["width"], "y": share_y * box["height"]})


def test_colours_are_those_of_the_pictures_on_disk(opened, disparity, truth):
    tab = opened(text_of({"": [made(disparity, truth_HW=truth)]}))
    valid = truth > 0
    for layer, expected in (
        ("values", colour_disparity(disparity, END)),
        ("truth", colour_disparity(truth, END)),
        ("error", error_map(disparity, truth, valid)),
    ):
        assert np.abs(pixels(tab, layer) - expected.astype(int)).max() <= 12, layer  # a level of turbo, by rounding
    assert (pixels(tab, "error")[~valid] == UNKNOWN).all()


def test_the_end_of_the_colours_can_be_moved(opened, disparity):
    tab = opened(text_of({"": [made(disparity, camera=CAMERA)]}))
    ticks = tab.locator(".scale .ticks div")
    assert ticks.all_inner_texts() == ["0\n5 m", "10\n2.5 m", "20\n1.67 m", "30\n1.25 m", "40 px\n1 m"]
    tab.locator("input.end").fill("80")
    tab.locator("input.end").press("Enter")
    assert ticks.last.inner_text() == "80 px\n0.556 m"
    assert np.abs(pixels(tab, "values") - colour_disparity(disparity, 80.0).astype(int)).max() <= 12


def test_values_under_the_pointer(opened, disparity, truth):
    tab = opened(text_of({"": [made(disparity, truth_HW=truth, camera=CAMERA)]}))
    said = tab.locator("output")
    point(tab, 0.75, 30.5 / HEIGHT, figure=1)
    px, metres, gt, error = map(float, re.findall(r"[\d.]+", said.inner_text()))
    expected = disparity[HEIGHT // 2, 3 * WIDTH // 4]
    assert px == pytest.approx(expected, abs=0.1) and gt == pytest.approx(expected + 3, abs=0.1)
    assert metres == pytest.approx(50 / (expected + 10), abs=0.006) and error == pytest.approx(3, abs=0.05)
    point(tab, 0.25, 0.5)
    assert "no ground truth" in said.inner_text()
    tab.mouse.move(0, 0)
    assert said.inner_text().startswith("Point at")


def test_sliders_of_a_pair_move_together(opened, disparity, truth):
    one = made(disparity, truth_HW=truth)
    tab = opened(text_of({"a": [one], "b": [one]}))
    assert tab.locator("h3").all_inner_texts() == ["a", "b"]
    box = tab.locator(".both").nth(3).bounding_box()
    tab.mouse.click(box["x"] + 0.2 * box["width"], box["y"] + 5)
    (cut,) = {float(value) for value in tab.locator(".both input").evaluate_all("all => all.map(e => e.value)")}
    assert cut == pytest.approx(20, abs=4)
    for over in tab.locator(".both .over").all():
        clip = over.evaluate("element => getComputedStyle(element).clipPath")
        assert f"100% - {cut:g}%" in clip or f"{100 - cut:g}%" in clip
    point(tab, 0.75, 0.5)
    first, second = tab.locator("output").all_inner_texts()
    assert first == second and "error" in first


def test_tables_sort(opened):
    rows = [("b", 10.0), (Link("a", "#x"), 9.0), ("c", 1000.5), ("d", "")]
    tab = opened(page("T", [Table("Images", ("image", "epe"), rows)]))

    def first_column():
        return tab.locator("tbody tr td:first-child").all_inner_texts()

    tab.locator("th", has_text="epe").click()
    assert first_column() == ["c", "b", "a", "d"], "numbers, the largest first, what is missing last"
    tab.locator("th", has_text="epe").click()
    assert first_column() == ["a", "b", "c", "d"]
    tab.locator("th", has_text="image").press("Enter")
    assert first_column() == ["d", "c", "b", "a"]


def test_the_point_cloud_turns(opened, disparity):
    tab = opened(text_of({"": [made(disparity, camera=CAMERA)]}))
    tab.locator("button.turn").click()
    cloud = tab.locator(".cloud[data-points]")
    cloud.wait_for(timeout=120_000)
    assert int(cloud.get_attribute("data-points")) > 0.9 * (HEIGHT - 2) * (WIDTH - 2)
    before = cloud.screenshot()
    assert before != tab.locator(".scales").screenshot() and len(set(before)) > 100
    box = cloud.bounding_box()
    tab.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    tab.mouse.down()
    tab.mouse.move(box["x"] + box["width"] / 2 + 120, box["y"] + box["height"] / 2, steps=5)
    tab.mouse.up()
    assert cloud.screenshot() != before


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_fits_a_telephone(opened, disparity, truth, scheme):
    one = made(disparity, truth_HW=truth, facts="facts")
    tables = [Table("Images", ("image", *"abcdefgh"), [("a/rather/long/path/of/an/image.png", *range(1000, 1008))] * 3)]
    tab = opened(text_of({"a": [one], "b": [one]}, tables=tables), viewport={"width": 390, "height": 800},
                 color_scheme=scheme)  # fmt: skip
    assert tab.evaluate("() => document.documentElement.scrollWidth") <= 390
    back = tab.evaluate("() => getComputedStyle(document.body).backgroundColor")
    assert back == {"light": "rgb(255, 255, 255)", "dark": "rgb(21, 24, 28)"}[scheme]
