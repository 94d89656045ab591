"""Synthetic stereo scenes with exact sub-pixel disparity and exact occlusion.

`planes` draws a few slanted planes with NumPy. Rich scenes use `layout` (the surfaces), `render` (both views, with
torch), `appearance` (differences between the cameras) and `stream` (the sequence).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from stereo_core.data.synthetic.planes import make_scene


def scene_maker(
    style: str, height: int, width: int, disparity: tuple[float, float], seed: int, appearance: float = 0.0
) -> Callable[[int], dict[str, np.ndarray]]:
    """The function from a number to its scene in a style, rich or planes; see `Stream` for the arguments.

    Returns:
        A function that gives the dict of `Stream.scene`; equal arguments and numbers give equal scenes.
    """
    if style == "rich":
        from stereo_core.data.synthetic.stream import Stream  # needs torch; plane scenes do not

        return Stream(height, width, disparity, seed, appearance).scene

    def planes(number: int) -> dict[str, np.ndarray]:
        scene_seed = int(np.random.SeedSequence((seed, number)).generate_state(1)[0])
        return make_scene(height, width, disparity[1], scene_seed)

    return planes
