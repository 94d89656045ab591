"""Draws pair.jpg: a synthetic left image, the starter's disparity of the pair, and its point cloud from predict's page.

    python docs/pictures/pair.py

Needs chromium, and playwright of the extra `dev`.
"""

from __future__ import annotations

import base64
import shutil
import subprocess
import tempfile
from pathlib import Path

import cv2
import numpy as np
from playwright.sync_api import sync_playwright

OUT = Path(__file__).with_name("pair.jpg")
SEED, SCENE = 3, 4
WIDTH, HEIGHT = 480, 360  # of each of the three pictures, px
DRAWN_WITHOUT_A_GPU = ("--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist")
TURNED = """Plotly.relayout(document.querySelector(".cloud"), {"scene.camera.eye": {x: 0.25, y: -1.3, z: 0.0}})"""


def main() -> None:
    """Run the product, and put its three pictures side by side."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scenes = ["synthesize", f"results_dir={folder}", f"num_scenes={SCENE + 1}", f"seed={SEED}"]
        subprocess.run(["depth_net", *scenes, "height=480", "width=640", "max_disparity=80"], check=True)
        data = folder / f"scene_{SCENE:04d}" / "dataset" / "data"
        left, right = (data / side / "rgb" / "0000.png" for side in ("left", "right"))
        camera = ["--calibration", str(data / "K.txt"), "--output", str(folder / "out")]
        subprocess.run(["depth_net", "predict", str(left), str(right), *camera], check=True)
        pictures = [cv2.imread(str(left)), *disparity_and_cloud(folder / "out" / "index.html")]
    sized = [cv2.resize(picture, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA) for picture in pictures]
    gap = np.full((HEIGHT, 8, 3), 255, np.uint8)
    cv2.imwrite(str(OUT), np.hstack([sized[0], gap, sized[1], gap, sized[2]]), [cv2.IMWRITE_JPEG_QUALITY, 85])


def disparity_and_cloud(page: Path) -> tuple[np.ndarray, np.ndarray]:
    """Both as the browser draws them: (H, W, 3) BGR."""
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", *DRAWN_WITHOUT_A_GPU]
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=arguments)
        tab = browser.new_page(viewport={"width": 800, "height": 1000})
        tab.goto(page.as_uri())
        tab.wait_for_selector("body:not(:has(.group:not([data-ready])))")
        drawn = tab.locator("canvas[data-layer]").first.evaluate("canvas => canvas.toDataURL('image/png')")
        tab.click("button.turn")
        tab.wait_for_selector(".cloud canvas")
        tab.evaluate(TURNED)
        tab.mouse.move(1, 1)  # away from the tools that show above the cloud
        tab.wait_for_timeout(3000)  # ms; until the last frame is drawn
        cloud = tab.locator(".cloud").screenshot()
        browser.close()
    shot = decoded(cloud)
    height = shot.shape[1] * HEIGHT // WIDTH
    top = max(0, (shot.shape[0] - height) // 2)
    return decoded(base64.b64decode(drawn.partition(",")[2])), shot[top : top + height]


def decoded(png: bytes) -> np.ndarray:
    """A PNG file's pixels."""
    return cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)


if __name__ == "__main__":
    main()
