"""synthesize as a container component."""

from kfp import dsl

from ..image import launch


@dsl.container_component
def synthesize(
    images: dsl.Output[dsl.Dataset],
    num_scenes: int = 16,
    height: int = 128,
    width: int = 160,
    max_disparity: int = 48,
    seed: int = 1234,
    style: str = "rich",
    appearance: float = 0.0,
):
    """Write a small data set of synthetic stereo scenes with exact sub-pixel disparity and exact occlusion.

    Args:
        num_scenes: Number of stereo pairs.
        height: Image height in px.
        width: Image width in px.
        max_disparity: Largest disparity in px.
        seed: Seed of the scenes; the same seed gives the same files.
        style: rich (rooms, roads and walls with many objects) or planes (a few simple shapes).
        appearance: How much the two cameras differ, 0 to 1. Above 0 the warped right image no longer equals the left.

    Returns:
        images: The folder of left and right images, disparities, occlusion masks and calibration.
    """
    return launch("synthesize")
