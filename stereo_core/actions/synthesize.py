"""synthesize: write a small data set of exact synthetic stereo scenes, in the folder layout of FSD.

<results_dir>/scene_0000/dataset/data/{left,right}/rgb/0000.png, left/disparity/0000.png (RGB-coded, radix 255),
left/nocc/0000.png (255 = visible to both cameras) and K.txt. `convert` lists it with image_dir_pattern [left/rgb],
right_dir_pattern [right/rgb], depth_dir_pattern [left/disparity], nocc_dir_pattern [left/nocc], extensions .png.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from stereo_core.data.codecs import write_disparity_rgb
from stereo_core.data.images import write_png
from stereo_core.data.synthetic import scene_maker
from stereo_core.files import atomic_path
from stereo_core.progress import bars
from stereo_core.run.outcome import Outcome
from stereo_core.spec import results_dir
from stereo_core.values import counted, size_text

BASELINE = 0.1  # m
SMALLEST_SHARE = 0.1  # share of max_disparity; minimum of a rich scene's largest disparity


def run(spec: Any, status: Any) -> Outcome:
    """Write `num_scenes` scenes of `width` x `height` px with disparities in (0, `max_disparity`), from `seed`."""
    folder = results_dir(spec, "synthesize")
    nearest = spec.max_disparity * SMALLEST_SHARE, spec.max_disparity
    scene = scene_maker(spec.style, spec.height, spec.width, nearest, spec.seed, spec.appearance)
    with bars() as progress:
        for number in progress.track(range(spec.num_scenes), description="scenes"):
            write_scene(folder / f"scene_{number:04d}" / "dataset" / "data", scene(number))
    scenes = counted(spec.num_scenes, "scene")
    size = size_text((spec.height, spec.width))
    message = f"{scenes} of {size} px in {folder}, disparity below {spec.max_disparity} px"
    return Outcome(message, artifacts={"images": folder})


def write_scene(folder: Path, scene: dict[str, np.ndarray]) -> None:
    """Write one scene of `scene_maker` below `folder`."""
    write_png(folder / "left" / "rgb" / "0000.png", scene["left"])
    write_png(folder / "right" / "rgb" / "0000.png", scene["right"])
    write_disparity_rgb(folder / "left" / "disparity" / "0000.png", scene["disparity"])
    write_png(folder / "left" / "nocc" / "0000.png", scene["visible"].astype(np.uint8) * 255)
    height, width = scene["disparity"].shape
    focal = float(width)
    with atomic_path(folder / "K.txt") as temporary:
        temporary.write_text(
            f"{focal} 0.0 {(width - 1) / 2} 0.0 {focal} {(height - 1) / 2} 0.0 0.0 1.0\n{BASELINE}\n", encoding="utf-8"
        )
