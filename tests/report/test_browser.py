"""Pages in a real Chromium, without a display: what moves does, nothing is said on the console, no host is asked."""

from __future__ import annotations

import importlib.util
import re
import shutil
from dataclasses import replace

import cv2
import numpy as np
import pytest
from needs import lacking

from stereo_core.data.calibration import Calibration
from stereo_core.orchestration.page import graph
from stereo_core.orchestration.record import Record, TaskRun
from stereo_core.report.html import Link, Table, page
from stereo_core.report.pictures import UNKNOWN, Scale, colour_disparity, error_map
from stereo_core.report.viewer import view
from stereo_core.report.views import side_by_side

pytestmark = pytest.mark.browser

HEIGHT, WIDTH, END = 60, 80, 48.0  # END: of the colour scale
FRAME = 6  # px; a cloud's border and its round corners
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
    return view(keys.pop("name", "pair"), left, disparity, **keys)


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
        ("values", colour_disparity(disparity, Scale(END))),
        ("truth", colour_disparity(truth, Scale(END))),
        ("error", error_map(disparity, truth, valid)),
    ):
        assert np.abs(pixels(tab, layer) - expected.astype(int)).max() <= 12, layer  # a level of turbo, by rounding
    assert (pixels(tab, "error")[~valid] == UNKNOWN).all()


def test_both_ends_of_the_colours_can_be_moved(opened, disparity):
    tab = opened(text_of({"": [made(disparity, camera=CAMERA)]}))
    ticks = tab.locator(".scale .ticks div")
    assert ticks.all_inner_texts() == ["0\n5 m", "12\n2.27 m", "24\n1.47 m", "36\n1.09 m", "48 px\n0.862 m"]
    assert "doffs is 10 px" in tab.locator(".doffs").inner_text(), "why 0 px is not infinitely far"
    for name, px in (("end", "80"), ("start", "20")):
        tab.locator(f"input.{name}").fill(px)
        tab.locator(f"input.{name}").press("Enter")
    assert ticks.all_inner_texts()[::4] == ["20\n1.67 m", "80 px\n0.556 m"]
    assert np.abs(pixels(tab, "values") - colour_disparity(disparity, Scale(80, 20)).astype(int)).max() <= 12
    tab.locator("input.start").fill("90")  # beyond the end: nothing changes
    tab.locator("input.start").press("Enter")
    assert ticks.first.inner_text() == "20\n1.67 m"
    tab.locator("input.start").fill("0")
    tab.locator("input.end").fill("38")
    tab.locator("input.end").press("Enter")
    assert ticks.last.inner_text().startswith("≥ 38 px"), "there are 39 px"


def test_values_under_the_pointer(opened, disparity, truth):
    tab = opened(text_of({"": [made(disparity, truth_HW=truth, camera=CAMERA)]}))
    said = tab.locator("output")
    point(tab, 0.75, 30.5 / HEIGHT, figure=1)
    text = said.inner_text()
    px, metres, gt, error, x, y = map(float, re.findall(r"[\d.]+", text))
    assert text.startswith("disparity ") and "depth " in text and (x, y) == (3 * WIDTH // 4, HEIGHT // 2)
    expected = disparity[HEIGHT // 2, 3 * WIDTH // 4]
    assert px == pytest.approx(expected, abs=0.1) and gt == pytest.approx(expected + 3, abs=0.1)
    assert metres == pytest.approx(50 / (expected + 10), abs=0.006) and error == pytest.approx(3, abs=0.05)
    point(tab, 0.25, 0.5)
    assert "no ground truth" in said.inner_text()
    tab.mouse.move(0, 0)
    assert said.inner_text().startswith("Point at")


@pytest.mark.parametrize("size", [(1400, 900), (390, 800)])
def test_the_reading_is_in_the_window_while_one_points(opened, size):
    """A picture higher than the window, its top in view: what the pointer reads must not stand below the window."""
    width, height = size
    deep = np.linspace(1, 39, 1400 * 700, dtype=np.float32).reshape(1400, 700)
    one = view("pair", np.zeros((*deep.shape, 3), np.uint8), deep, truth_HW=deep)
    tab = opened(text_of({"": [one]}), viewport={"width": width, "height": height})
    box = tab.locator(".both").first.bounding_box()
    assert box["y"] + box["height"] > height or width < 400, "the picture reaches below the window"
    tab.mouse.move(box["x"] + box["width"] / 2, box["y"] + 5)
    said = tab.locator("output")
    assert said.inner_text().startswith("disparity ")
    place = said.bounding_box()
    assert place["y"] >= box["y"] + 5 and place["y"] + place["height"] <= height


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


def test_the_names_of_both_sides_stand_below_their_picture(opened, disparity, truth):
    """Whole and apart, also where pictures are narrow; no line runs through them."""
    one = made(disparity, truth_HW=truth)
    tab = opened(text_of({name: [one] for name in "abc"}), viewport={"width": 700, "height": 800})
    assert tab.locator(".sides span").all_inner_texts()[2:4] == ["◂ ground truth", "error ▸"]
    for figure in tab.locator(".figures figure").all():
        picture, left, right = (figure.locator(part).bounding_box() for part in
                                (".both", ".sides span >> nth=0", ".sides span >> nth=1"))  # fmt: skip
        bottom, end = picture["y"] + picture["height"], picture["x"] + picture["width"]
        assert min(left["y"], right["y"]) >= bottom - 1
        assert left["x"] + left["width"] < right["x"] or left["y"] + left["height"] <= right["y"] + 1
        for name in (left, right):
            assert picture["x"] - 1 <= name["x"] and name["x"] + name["width"] <= end + 1 and name["height"] < 30


def test_pairs_after_the_first_unfold_at_a_click_from_a_link_and_in_print(opened, disparity, truth):
    views = [made(disparity, truth_HW=truth, name=f"a/{n}", path=f"a/{n}.png") for n in range(7)]
    tab = opened(text_of({"": views}, tables=[Table("T", ("image",), [(Link("6.png", "#pair-7"),)])]))
    pictures = tab.locator(".group .both >> nth=0")
    assert tab.locator("summary h2").all_inner_texts() == [f"a/{n}" for n in range(7)]
    assert tab.locator("summary h2").first.get_attribute("title") == "a/0"

    def seen():
        return [group.locator(".both").first.is_visible() for group in tab.locator(".group").all()]

    assert pictures.is_visible() and seen() == [True] * 4 + [False] * 3
    tab.locator("summary").nth(4).click()
    tab.locator("a", has_text="6.png").click()
    assert seen() == [True] * 5 + [False, True]
    tab.emulate_media(media="print")
    assert seen() == [True] * 7


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


@pytest.mark.parametrize("width", [390, 1400])
def test_the_point_cloud_turns_and_fits_its_frame(opened, disparity, width):
    """Titles and ticks of the axes are whole: nothing is drawn at the frame's edge."""
    tab = opened(text_of({"": [made(disparity, camera=CAMERA)]}), viewport={"width": width, "height": 800})
    button = tab.locator("button.turn")
    assert button.inner_text() == "Show the point cloud"
    button.click()
    cloud = tab.locator(".cloud[data-points]")
    cloud.wait_for(timeout=120_000)
    assert int(cloud.get_attribute("data-points")) > 0.9 * (HEIGHT - 2) * (WIDTH - 2)
    tab.mouse.move(0, 0)
    before = cloud.screenshot()
    drawn = (cv2.imdecode(np.frombuffer(before, np.uint8), cv2.IMREAD_COLOR)[FRAME:-FRAME, FRAME:-FRAME] != 255).any(2)
    assert drawn.mean() > 0.02
    assert not any(edge.any() for edge in (drawn[:2], drawn[-2:], drawn[:, :2], drawn[:, -2:]))
    box = cloud.bounding_box()
    tab.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    tab.mouse.down()
    tab.mouse.move(box["x"] + box["width"] / 2 + 120, box["y"] + box["height"] / 2, steps=5)
    tab.mouse.up()
    assert cloud.screenshot() != before
    button.click()
    assert button.inner_text() == "Show the point cloud" and not cloud.is_visible()
    button.click()
    assert button.inner_text() == "Hide the point cloud" and cloud.is_visible()


def test_far_depths_are_not_given_to_the_centimetre_and_the_cloud_says_where_it_ends(opened, disparity):
    """A sky of 0.1 px would be at half a kilometre, or anywhere: an error of 1 px exceeds its disparity."""
    disparity[: HEIGHT // 2] = 0.125
    tab = opened(text_of({"": [made(disparity, camera=replace(CAMERA, doffs=0.0))]}))
    point(tab, 0.5, 0.25)
    assert "depth above 50 m" in tab.locator("output").inner_text()
    point(tab, 0.5, 0.75)
    assert re.search(r"depth \d\.\d\d m", tab.locator("output").inner_text())
    tab.locator("button.turn").click()
    tab.locator(".cloud[data-points]").wait_for(timeout=120_000)
    assert re.fullmatch(
        r"Points up to 2\.\d+ m. Left out: the farthest 2 %, edges, and what lies beyond 50 m, where the disparity is "
        "below 1 px.",
        tab.locator(".cloud + p").inner_text(),
    )
    tab.locator("button.turn").click()
    assert not tab.locator(".cloud + p").is_visible()


def test_a_cloud_without_points_says_why(opened, disparity):
    tab = opened(text_of({"": [made(np.full_like(disparity, 0.5), camera=replace(CAMERA, doffs=0.0))]}))
    tab.locator("button.turn").click()
    tab.locator(".cloud + p:not(:empty)").wait_for(timeout=120_000)
    assert tab.locator(".cloud + p").inner_text().startswith("There is no point to show")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_fits_a_telephone(opened, disparity, truth, scheme):
    one = made(disparity, truth_HW=truth, facts="facts")
    tables = [Table("Images", ("image", *"abcdefgh"), [("a/rather/long/path/of/an/image.png", *range(1000, 1008))] * 3)]
    tab = opened(text_of({"a": [one], "b": [one]}, tables=tables), viewport={"width": 390, "height": 800},
                 color_scheme=scheme)  # fmt: skip
    assert tab.evaluate("() => document.documentElement.scrollWidth") <= 390
    table = tab.locator(".scroll").first
    assert table.evaluate("e => { e.scrollLeft = e.scrollWidth; return e.scrollLeft }") > 0
    assert tab.locator("tbody td").first.bounding_box()["x"] >= 0, "a row's name stays in view while its figures scroll"
    back = tab.evaluate("() => getComputedStyle(document.body).backgroundColor")
    assert back == {"light": "rgb(255, 255, 255)", "dark": "rgb(21, 24, 28)"}[scheme]


@pytest.mark.parametrize(("scheme", "shown"), [("light", 255), ("dark", 28)])
def test_a_plot_has_the_background_of_the_page(opened, tmp_path, scheme, shown):
    cv2.imwrite(str(tmp_path / "plot.png"), np.full((40, 40, 3), 255, np.uint8))
    tab = opened(page("T", galleries=[("Curves", "", [tmp_path / "plot.png"])]), color_scheme=scheme)
    drawn = cv2.imdecode(np.frombuffer(tab.locator(".gallery img").screenshot(), np.uint8), cv2.IMREAD_COLOR)
    assert abs(int(drawn[20, 20, 0]) - shown) <= 2  # its blue


def test_on_a_telephone_words_are_whole_and_the_graph_is_legible(opened):
    row = ("a-step (with a title)", "annotations", "2031-02-03 04:05:06", "5.7 MB", "0123456789ab", "tasks/a/report")
    drawing = '<svg viewBox="0 0 1500 60" style="width:1500px;max-width:none"></svg>'
    tables = [Table("T", ("step", "artifact", "started", "size", "sha256", "path"), [row] * 3)]
    tab = opened(page("T", tables, drawing=drawing), viewport={"width": 390, "height": 800})
    assert tab.evaluate("() => document.documentElement.scrollWidth") <= 390
    graph = tab.locator(".drawing")
    assert graph.locator("svg").bounding_box()["width"] == 1500
    assert graph.evaluate("e => { e.scrollLeft = e.scrollWidth; return e.scrollLeft }") > 1000
    cells = tab.locator("tbody tr").first.locator("td").all()
    for cell in cells[1:]:
        lines = cell.evaluate("e => { const r = document.createRange(); r.selectNodeContents(e);"
                              " return new Set([...r.getClientRects()].map(b => b.top)).size }")  # fmt: skip
        assert lines == 1, cell.inner_text()


@pytest.mark.parametrize("width", [390, 1400])
def test_texts_of_drawings_and_pictures_are_legible_and_long_paths_break(opened, disparity, truth, tmp_path, width):
    """At least 12 px, whatever the window: the graph of a run, curves of errors, and curves of a training."""
    tasks = {
        f"step-{n}": TaskRun("succeeded", f"a title of step-{n}", [f"step-{n - 1}"] * (n > 0), seconds=1000)
        for n in range(7)
    }
    drawing = graph(Record(tmp_path, "p", tasks))
    picture = tmp_path / "curves.png"
    cv2.imwrite(str(picture), np.full((300, 1320, 3), 255, np.uint8))  # with letters of 15 px
    groups = side_by_side({"": [made(disparity, truth_HW=truth)]})
    path = "/".join(["a_folder"] * 8) + "/" + 60 * "x" + ".pth"
    text = page("T", galleries=[("Curves", "", [picture])], note=path, warnings=[path], drawing=drawing, groups=groups)
    tab = opened(text, viewport={"width": width, "height": 800})
    sizes = tab.locator("svg text").evaluate_all(
        "all => all.map(e => parseFloat(getComputedStyle(e).fontSize) * e.getScreenCTM().a)"
    )
    assert len(sizes) > 20 and min(sizes) >= 11.9
    assert tab.locator(".gallery img").bounding_box()["width"] >= 1320 * 11.5 / 15
    assert tab.evaluate("() => document.documentElement.scrollWidth") <= width
    boxes = tab.locator(".drawing rect").evaluate_all("all => all.map(e => e.getBoundingClientRect().right)")
    ends = tab.locator(".drawing text").evaluate_all("all => all.map(e => e.getBoundingClientRect().right)")
    assert all(end < boxes[n // (len(ends) // len(boxes))] for n, end in enumerate(ends)), "texts lie in their boxes"
