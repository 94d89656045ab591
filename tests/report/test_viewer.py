"""The page of pairs: what is in it; how it looks is looked at."""

from __future__ import annotations

import base64
import re
import shutil
import subprocess

import cv2
import numpy as np
import pytest
from needs import lacking

from stereo_core.data.calibration import Calibration
from stereo_core.report.pictures import colour_disparity, with_colour_bar
from stereo_core.report.viewer import STEPS, view, viewer_page

CAMERA = Calibration(100.0, 0.5, doffs=10.0)


@pytest.fixture
def disparity():
    values = np.linspace(1, 40, 60 * 80, dtype=np.float32).reshape(60, 80)
    values[0, 0] = np.inf
    return values


def made(disparity, camera=None, name="a<b"):
    left = np.zeros((*disparity.shape, 3), np.uint8)
    return view(name, left, disparity, 40.0, camera, facts="facts", warnings=["swapped?"], files={"PFM": "a.pfm"})


def picture(data):
    return cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)[..., ::-1].astype(int)


def test_values_on_hover_are_the_disparity(disparity):
    values = picture(made(disparity).values)
    read = (256 * values[..., 0] + values[..., 1]) / STEPS
    np.testing.assert_allclose(read.ravel()[1:], disparity.ravel()[1:], atol=0.5 / STEPS)
    assert read[0, 0] == 0


def test_the_scale_has_metres_with_a_camera(disparity):
    assert made(disparity).ticks[-1] == ("40", "")
    assert made(disparity, CAMERA).ticks[-1] == ("40", "1 m")  # 100 px * 0.5 m / (40 + 10) px
    assert made(disparity, CAMERA).ticks[0] == ("0", "5 m")  # by doffs alone
    assert made(disparity, Calibration(100.0, 0.5)).ticks[0] == ("0", "∞")
    assert made(disparity, CAMERA).camera == (50.0, 10.0)


def test_large_pairs_are_reduced_and_keep_their_px():
    large = np.full((1500, 2000), 321.5, np.float32)
    shown = made(large)
    assert (shown.width, shown.height) == (1024, 768)
    values = picture(shown.values)
    assert ((256 * values[..., 0] + values[..., 1]) / STEPS == 321.5).all()


def test_a_page_escapes_names_and_loads_nothing(disparity):
    page = viewer_page("T", [made(disparity)], {"device": "cpu"}, note="n")
    assert "a&lt;b" in page and "swapped?" in page and "default-src 'none'" in page
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert sorted({source[:11] for source in sources}) == ["a.pfm", "data:image/"]


def test_a_colour_bar_stands_beside_every_pixel(disparity):
    picture = colour_disparity(disparity, 40.0)
    with_bar = with_colour_bar(picture, 40.0)
    np.testing.assert_array_equal(with_bar[:, :80], picture)
    assert with_bar.shape[0] == 60 and with_bar[:, 80:].std() > 0


POINTED = """<script>
addEventListener("load", () => setTimeout(() => {
  const both = document.querySelector(".both"), slider = both.querySelector("input");
  const box = both.getBoundingClientRect();
  const at = {bubbles: true, clientX: box.left + 0.25 * box.width, clientY: box.top + 0.5 * box.height};
  slider.dispatchEvent(new PointerEvent("pointermove", at));
  slider.value = 20;
  slider.dispatchEvent(new Event("input"));
}, 500));
</script></body>"""


def test_a_browser_shows_values_and_moves_the_slider(disparity, tmp_path):
    browser = shutil.which("chromium") or lacking("chromium", "there is no chromium")
    page = viewer_page("T", [made(disparity, CAMERA)], {})
    (tmp_path / "page.html").write_text(page.replace("</body>", POINTED), encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=3000", "--dump-dom"]
    command = [browser, *options, f"--user-data-dir={tmp_path / 'profile'}", f"file://{tmp_path / 'page.html'}"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    px, metres = map(float, re.search(r"<output>([\d.]+) px, ([\d.]+) m</output>", shown).groups())
    assert px == pytest.approx(disparity[30, 20], abs=0.06)
    assert metres == pytest.approx(50 / (disparity[30, 20] + 10), abs=0.006)
    assert "--cut: 20%" in shown
