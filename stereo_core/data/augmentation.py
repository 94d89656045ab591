"""Augmentation of training pairs. The steps run in this order, each with its own probability:

1. flips (with `do_flip`): horizontal with a swap of the views, vertical;
2. shift of the right view along its rows, which changes all disparities by the same amount;
3. scale, stretch and crop, for images and disparities alike: only the window that becomes the crop is resampled;
4. vertical jitter: the right view moves by up to 2 rows, breaking the rectification as real cameras do;
5. colour jitter and gamma, equal or different for the two views;
6. eraser: rectangles of the right view are filled, as if something stood in front of that camera;
7. padding to a multiple of 32; padded pixels have no ground truth.

Apart from the vertical jitter, steps 1 to 4 keep left(x) = right(x - disparity). Colour jitter and eraser work on the
crop, not on the whole image. All randomness comes from one generator, so equal generators give equal pairs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np

MULTIPLE = 32  # the network's training sizes
MAX_SHIFT = 10  # px of the file: small compared with common disparities, so few become 0 or negative
MAX_JITTER = 2.0  # rows of the crop
TRIALS = 100  # positions tried for a crop with enough ground truth
ERASED_SIDES = (50, 99)  # px, both included
SMOOTH = 1.0  # px: disparities of neighbours that differ by more belong to two surfaces
CACHED_ROWS = 64  # rows processed at a time: they fit into the processor's cache, which is 2.5 times faster

_GREY = np.array([0.299, 0.587, 0.114])  # weights of R, G and B in the brightness
_LEVELS = np.arange(256.0)


@dataclass(frozen=True)
class Pair:
    """A stereo pair: left, right uint8 (H, W, 3), RGB; disparity float32 (H, W), px of the left view, 0: unknown."""

    left: np.ndarray
    right: np.ndarray
    disparity: np.ndarray

    @property
    def valid(self) -> np.ndarray:
        """bool (H, W): the disparity is known."""
        return self.disparity > 0


def augment(pair: Pair, settings: Any, max_disparity: float, rng: np.random.Generator) -> Pair:
    """One random training crop of `settings.crop_size`, padded below and on the right to multiples of 32.

    Args:
        settings: `dataset.train_dataset.augmentation` of a spec.
        max_disparity: px of the crop, exclusive; larger disparities do not count for `crop_min_valid_disp_ratio`.
        rng: the source of all randomness.
    """
    crop = tuple(settings.crop_size)
    if settings.do_flip and rng.random() < settings.h_flip_prob:
        pair = flip_horizontally(pair)
    if settings.do_flip and rng.random() < settings.v_flip_prob:
        pair = flip_vertically(pair)
    if rng.random() < settings.hshift_prob:
        pair = shift(pair, int(rng.integers(-MAX_SHIFT, MAX_SHIFT + 1)))
    size = window_size(pair.disparity.shape, crop, settings, rng)
    scale_y, scale_x = crop[0] / size[0], crop[1] / size[1]
    counts = pair.valid & (pair.disparity * np.float32(scale_x) < max_disparity)
    top, start = window_place(counts, size, settings.crop_min_valid_disp_ratio, rng)
    if rng.random() < settings.yjitter_prob:
        reach = int(MAX_JITTER / scale_y)
        pair = replace(pair, right=moved(pair.right, int(rng.integers(-reach, reach + 1)), 0))
    pair = resize(cut(pair, top, start, size), crop)
    pair = jitter_colours(pair, settings, rng)
    if rng.random() < settings.eraser_aug_prob:
        pair = erase(pair, rng)
    return pad(pair, (crop[0] + -crop[0] % MULTIPLE, crop[1] + -crop[1] % MULTIPLE))


# -- flips and shifts -------------------------------------------------------------------------------------------------


def flip_horizontally(pair: Pair) -> Pair:
    """Mirror the pair and swap its views: without the swap all disparities would become negative.

    The ground truth becomes that of the former right view, see `seen_from_right`.
    """
    return Pair(*(cv2.flip(view, 1) for view in (pair.right, pair.left, seen_from_right(pair.disparity))))


def flip_vertically(pair: Pair) -> Pair:
    return Pair(*(cv2.flip(view, 0) for view in (pair.left, pair.right, pair.disparity)))


def shift(pair: Pair, by: int) -> Pair:
    """Add `by` px to all disparities by moving the right view; disparities at or below 0 become unknown."""
    disparity = np.where(pair.valid, np.maximum(pair.disparity + np.float32(by), 0), np.float32(0))
    return Pair(pair.left, moved(pair.right, 0, by), disparity)


def moved(image: np.ndarray, down: int, along: int) -> np.ndarray:
    """An image of the same size whose pixel (y, x) is (y + down, x + along) of the given one, edges repeated."""
    matrix = np.array([[1.0, 0.0, along], [0.0, 1.0, down]])
    flags = cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(image, matrix, image.shape[1::-1], flags=flags, borderMode=cv2.BORDER_REPLICATE)


def seen_from_right(disparity: np.ndarray) -> np.ndarray:
    """The disparity map (H, W) of the right view, made from that of the left one; 0 where nothing is known.

    A left pixel x appears at x - d. Between neighbours of one surface the values are interpolated to whole pixels; a
    pixel without such a neighbour (sparse ground truth) goes to the nearest pixel. Where surfaces overlap, the one
    nearest to the cameras wins. Pixels that only the right camera sees stay unknown, and so do those beside them.
    """
    blocks = [disparity[top : top + CACHED_ROWS] for top in range(0, len(disparity), CACHED_ROWS)]
    return np.concatenate([_rows_seen_from_right(block) for block in blocks])


def _rows_seen_from_right(disparity: np.ndarray) -> np.ndarray:
    width = disparity.shape[1]
    known = disparity > 0
    step = np.diff(disparity, axis=1, append=np.float32(0))
    joined = known & (np.abs(step) < SMOOTH)  # with the neighbour on the right
    joined[:, :-1] &= known[:, 1:]
    joined[:, -1] = False
    alone = known & ~joined
    alone[:, 1:] &= ~joined[:, :-1]

    # where a pixel appears; its neighbour appears `reach` further on
    begin = np.arange(width, dtype=np.float32) - disparity
    reach = np.where(joined, 1 - step, np.float32(1))
    slope = np.where(joined, step / reach, np.float32(0))
    first = np.where(alone, np.rint(begin), np.ceil(begin))
    warped = np.zeros(disparity.size, np.float32)
    for seen in (first, first + 1):  # fewer than two px lie between neighbours of one surface
        offset = seen - begin
        counts = np.flatnonzero(((joined & (offset <= reach)) | (alone & (seen is first))) & (seen >= 0))
        values = (disparity + slope * offset).ravel()[counts]
        places = counts - counts % width + seen.ravel()[counts].astype(np.int64)
        # of several pixels of a row that map to one place, the last is the nearest to the cameras and overwrites the
        # others
        nearer = values > warped[places]
        warped[places[nearer]] = values[nearer]
    return warped.reshape(disparity.shape)


# -- scale, stretch and crop ------------------------------------------------------------------------------------------


def window_size(
    image: tuple[int, int], crop: tuple[int, int], settings: Any, rng: np.random.Generator
) -> tuple[int, int]:
    """Height and width (px of the image) of the window that becomes the crop: they decide scale and stretch.

    Without scaling, the window has the size of the crop, which may exceed the image. With scaling, an image that is
    too small is enlarged further, with the same stretch, until it holds the crop.
    """
    if rng.random() >= settings.spatial_aug_prob:
        return crop
    scale = 2 ** rng.uniform(settings.min_scale, settings.max_scale)
    stretch = np.ones(2)
    if rng.random() < settings.stretch_prob:
        stretch = 2 ** rng.uniform(-settings.max_stretch, settings.max_stretch, 2)
    size = np.array(crop) / (scale * stretch)
    size /= max(1.0, *(size / image))
    height, width = np.clip(np.rint(size).astype(int), 1, image).tolist()
    return height, width


def window_place(
    counts: np.ndarray, size: tuple[int, int], min_share: float, rng: np.random.Generator
) -> tuple[int, int]:
    """Top and left of the window: the first tried position with enough ground truth, else the best one tried.

    Args:
        counts: bool (H, W): True where the ground truth counts.
        size: height and width of the window, px; along a side where the image is smaller, the position is 0.
        min_share: 0..1, of the window's pixels.
    """
    height, width = counts.shape
    room = max(height - size[0], 0), max(width - size[1], 0)
    places = np.stack([rng.integers(side + 1, size=TRIALS if min_share > 0 else 1) for side in room])
    if min_share == 0:
        return int(places[0, 0]), int(places[1, 0])
    sums = cv2.integral(counts.astype(np.uint8))
    top, left = places
    bottom, right = np.minimum(top + size[0], height), np.minimum(left + size[1], width)
    share = (sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]) / (size[0] * size[1])
    enough = np.flatnonzero(share >= min_share)
    best = enough[0] if enough.size else share.argmax()
    return int(top[best]), int(left[best])


def cut(pair: Pair, top: int, start: int, size: tuple[int, int]) -> Pair:
    """A window of the pair; beyond the pair's lower and right border it is padded, see `pad`."""
    window = slice(top, top + size[0]), slice(start, start + size[1])
    return pad(Pair(pair.left[window], pair.right[window], pair.disparity[window]), size)


def pad(pair: Pair, size: tuple[int, int]) -> Pair:
    """Pad below and on the right by repeating the last row and column; padded pixels have no ground truth."""
    below, beside = size[0] - pair.disparity.shape[0], size[1] - pair.disparity.shape[1]
    if not below and not beside:
        return pair
    left, right = (np.pad(image, ((0, below), (0, beside), (0, 0)), mode="edge") for image in (pair.left, pair.right))
    return Pair(left, right, np.pad(pair.disparity, ((0, below), (0, beside))))


def resize(pair: Pair, size: tuple[int, int]) -> Pair:
    """The pair at another height and width, px; disparities are px of the new width."""
    height, width = pair.disparity.shape
    if (height, width) == size:
        return pair
    shrinks = size[0] <= height and size[1] <= width
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    left, right = (cv2.resize(image, size[::-1], interpolation=how) for image in (pair.left, pair.right))
    return Pair(left, right, _resized(pair.disparity, size) * np.float32(size[1] / width))


def _resized(disparity: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Interpolate within a surface, else take the nearest value: never mix two surfaces, or known and unknown
    pixels."""
    around = np.ones((3, 3), np.uint8)
    lowest, highest = cv2.erode(disparity, around), cv2.dilate(disparity, around)
    surface = ((lowest > 0) & (highest - lowest <= SMOOTH)).astype(np.uint8)
    nearest, on_surface = (
        cv2.resize(values, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT) for values in (disparity, surface)
    )
    return np.where(on_surface > 0, cv2.resize(disparity, size[::-1], interpolation=cv2.INTER_LINEAR), nearest)


# -- colours ----------------------------------------------------------------------------------------------------------


def jitter_colours(pair: Pair, settings: Any, rng: np.random.Generator) -> Pair:
    """Change the colours: of each view separately with probability `color_aug_prob`, otherwise of both alike."""
    if rng.random() < settings.color_aug_prob:
        return replace(pair, left=recoloured(pair.left, settings, rng), right=recoloured(pair.right, settings, rng))
    left, right = np.split(recoloured(np.concatenate([pair.left, pair.right]), settings, rng), 2)
    return replace(pair, left=left, right=right)


def recoloured(image: np.ndarray, settings: Any, rng: np.random.Generator) -> np.ndarray:
    """Brightness, contrast, saturation and hue in random order, then gamma.

    The factors are drawn as in torchvision's ColorJitter: brightness and contrast from max(0, 1 - strength) to
    1 + strength, saturation and hue (in turns) from their ranges.
    """
    brightness, contrast = (
        rng.uniform(max(0.0, 1 - strength), 1 + strength)
        for strength in (settings.color_aug_brightness, settings.color_aug_contrast)
    )
    changes = (
        (change_brightness, brightness),
        (change_contrast, contrast),
        (change_saturation, rng.uniform(*settings.color_aug_saturation)),
        (change_hue, rng.uniform(*settings.color_aug_hue_range)),
    )
    for index in rng.permutation(len(changes)):
        change, amount = changes[index]
        image = change(image, amount)
    lowest, highest, lowest_gain, highest_gain = settings.gamma
    return change_gamma(image, rng.uniform(lowest, highest), rng.uniform(lowest_gain, highest_gain))


def change_brightness(image: np.ndarray, factor: float) -> np.ndarray:
    """Multiply all levels by the factor."""
    return _mapped(image, _LEVELS * factor)


def change_contrast(image: np.ndarray, factor: float) -> np.ndarray:
    """Multiply the distance of all levels from the mean brightness by the factor."""
    mean = float(_GREY @ cv2.mean(image)[:3])
    return _mapped(image, mean + factor * (_LEVELS - mean))


def change_saturation(image: np.ndarray, factor: float) -> np.ndarray:
    """Multiply the distance of every pixel from its own grey by the factor."""
    return cv2.transform(image, factor * np.eye(3) + (1 - factor) * np.tile(_GREY, (3, 1)))


def change_hue(image: np.ndarray, turns: float) -> np.ndarray:
    """Move every pixel around the hue circle of HSV."""
    if turns == 0:
        return image
    # OpenCV's stubs know no scalars where an array may stand.
    shares: np.ndarray = cv2.multiply(image, 1 / 255, dtype=cv2.CV_32F)  # type: ignore[call-overload]
    hsv = cv2.cvtColor(shares, cv2.COLOR_RGB2HSV)
    # cvtColor takes 0..720 degrees, but none below 0
    turned: np.ndarray = cv2.add(hsv, (360 * (turns % 1), 0, 0, 0))  # type: ignore[call-overload]
    return cv2.convertScaleAbs(cv2.cvtColor(turned, cv2.COLOR_HSV2RGB), alpha=255)


def change_gamma(image: np.ndarray, gamma: float, gain: float) -> np.ndarray:
    """gain * level ** gamma, levels taken as 0..1."""
    return _mapped(image, 255 * gain * (_LEVELS / 255) ** gamma)


def _mapped(image: np.ndarray, levels: np.ndarray) -> np.ndarray:
    return cv2.LUT(image, np.rint(np.clip(levels, 0, 255)).astype(np.uint8))


def erase(pair: Pair, rng: np.random.Generator) -> Pair:
    """Fill one or two rectangles of the right view with its mean colour; the ground truth stays."""
    right = pair.right.copy()
    colour = np.rint(cv2.mean(right)[:3]).astype(np.uint8)
    for _ in range(rng.integers(1, 3)):
        top, start = rng.integers(right.shape[0]), rng.integers(right.shape[1])
        height, width = rng.integers(ERASED_SIDES[0], ERASED_SIDES[1] + 1, size=2)
        right[top : top + height, start : start + width] = colour
    return replace(pair, right=right)
