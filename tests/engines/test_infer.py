"""What comes out of `Engine.infer` is in the pixels of the image that went in."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from stereo_core.engines import BuildSettings, build_engine, load_engine
from stereo_core.engines.fit import fit
from stereo_core.errors import UserError
from stereo_core.step import launch as launcher

SETTINGS = BuildSettings(backend="onnxruntime", verify=False)


def engine_of(onnx, settings=SETTINGS):
    out = onnx.with_suffix(".ort.onnx")
    build_engine(onnx, out, settings)
    return load_engine(out, "cpu")


def images(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def expected(left, right):
    return left[..., 0].astype(np.float64) + 3.0 * right[..., 1]


@pytest.mark.parametrize("size", [(64, 96), (50, 81), (63, 96), (1, 1)])
def test_padding_is_added_and_removed_without_moving_a_pixel(colour_onnx, size):
    left, right = images(*size, 3), images(*size, 3, seed=1)
    disparity = engine_of(colour_onnx()).infer(left, right)
    assert disparity.shape == size and disparity.dtype == np.float32
    np.testing.assert_allclose(disparity, expected(left, right), atol=2e-3)


def test_padding_replicates_the_border_and_puts_the_odd_pixel_below_and_right():
    image = np.arange(5 * 3, dtype=np.float32).reshape(1, 5, 3, 1).repeat(3, axis=3)
    framed = fit((5, 3), (8, 8), "pad").place(image)[0, ..., 0]
    assert framed.shape == (8, 8)
    np.testing.assert_array_equal(framed[1:6, 2:5], image[0, ..., 0])
    np.testing.assert_array_equal(framed[0], framed[1])
    np.testing.assert_array_equal(framed[7], framed[5])
    np.testing.assert_array_equal(framed[:, 0], framed[:, 2])
    np.testing.assert_array_equal(framed[:, 7], framed[:, 4])


@pytest.mark.parametrize("size", [(64, 192), (32, 48), (100, 150), (64, 1001)])
def test_stretch_rescales_disparity_by_the_width_ratio(colour_onnx, size):
    """The frame is 64 x 96; every red pixel says 10, so 10 px of the frame are 10 * W / 96 px of the image."""
    left = np.zeros((*size, 3), np.uint8)
    left[..., 0] = 10
    disparity = engine_of(colour_onnx()).infer(left, np.zeros_like(left), resize="stretch")
    np.testing.assert_allclose(disparity, 10 * size[1] / 96, rtol=1e-4)


def test_stretch_keeps_places(colour_onnx):
    """A colour ramp over the columns comes back at the same columns: no shift by half a pixel, no lost last column."""
    left = np.zeros((50, 144, 3), np.float32)
    left[..., 0] = np.arange(144) + 0.5
    disparity = engine_of(colour_onnx()).infer(left, np.zeros_like(left), resize="stretch")
    np.testing.assert_allclose(disparity[:, 2:-2], left[:, 2:-2, 0] * 144 / 96, rtol=1e-3)


def test_pad_scales_larger_images_down_with_their_aspect_ratio():
    place = fit((375, 1242), (320, 736), "pad")
    assert place.scaled == (222, 736) and place.offset == (49, 0)
    place = fit((200, 100), (64, 96), "pad")
    assert place.scaled == (64, 32) and place.offset == (0, 32)


def test_pad_of_a_larger_image_rescales_disparity(colour_onnx):
    left = np.zeros((128, 96, 3), np.uint8)
    left[..., 0] = 10
    disparity = engine_of(colour_onnx()).infer(left, np.zeros_like(left))
    assert disparity.shape == (128, 96)
    np.testing.assert_allclose(disparity, 20, rtol=1e-4)


def test_resize_none_insists_on_the_engine_size(colour_onnx):
    engine = engine_of(colour_onnx())
    same = images(64, 96, 3)
    np.testing.assert_allclose(engine.infer(same, same, resize="none"), expected(same, same), atol=2e-3)
    with pytest.raises(UserError, match=r"evaluate\.resize is none.*96 x 50 px and the engine needs 96 x 64"):
        engine.infer(same[:50], same[:50], resize="none")
    with pytest.raises(UserError, match="squeeze"):
        engine.infer(same, same, resize="squeeze")


@pytest.mark.parametrize(("batch", "count", "calls"), [(2, 5, 3), (1, 3, 3), (4, 3, 1), (None, 5, 2), (None, 4, 1)])
def test_batches_are_split_and_the_last_short_one_is_complete(colour_onnx, batch, count, calls):
    """A static batch is filled up, a dynamic one (profile 1..4) is not; every image comes back once, in order."""
    left, right = images(count, 40, 90, 3), images(count, 40, 90, 3, seed=1)
    engine = engine_of(colour_onnx(batch=batch), SETTINGS if batch else replace(SETTINGS, max_batch=4))
    disparity = engine.infer(left, right)
    assert disparity.shape == (count, 40, 90)
    np.testing.assert_allclose(disparity, expected(left, right), atol=2e-3)
    assert len(engine.latencies_ms) == calls


def test_warm_up_is_not_recorded_and_latency_is_of_the_calls(colour_onnx):
    engine = engine_of(colour_onnx())
    assert engine.latency()["latency_median_ms"] is None
    pair = images(64, 96, 3)
    for _ in range(5):
        engine.infer(pair, pair)
    assert len(engine.latencies_ms) == 5
    engine.latencies_ms[:] = [1.0, 2.0, 3.0, 4.0, 100.0]
    assert engine.latency() == {
        "latency_median_ms": 3.0,
        "latency_p95_ms": pytest.approx(80.8),
        "latency_batch": 1,
        "images_per_second": pytest.approx(5 / 0.110),
    }


def test_torch_in_torch_out(colour_onnx):
    torch = pytest.importorskip("torch")
    left, right = images(3, 50, 81, 3), images(3, 50, 81, 3, seed=1)
    engine = engine_of(colour_onnx(batch=2))
    tensors = [torch.from_numpy(x).permute(0, 3, 1, 2).float().requires_grad_() for x in (left, right)]
    nearly_black = [x / 255 for x in tensors]  # such as a dark tile after scaling
    assert engine.infer(*nearly_black).shape == (3, 50, 81)
    with pytest.raises(ValueError, match="left is a torch tensor and right is ndarray"):
        engine.infer(tensors[0], right)
    disparity = engine.infer(*tensors)
    assert isinstance(disparity, torch.Tensor) and disparity.shape == (3, 50, 81) and disparity.dtype == torch.float32
    np.testing.assert_allclose(disparity.numpy(), engine.infer(left, right), rtol=1e-5)
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\)"):
        engine.infer(tensors[0][0], tensors[1][0])


@pytest.mark.parametrize("resize", ["pad", "stretch"])
@pytest.mark.parametrize("size", [(64, 96), (50, 81), (128, 96), (101, 333), (200, 30), (1, 1)])
def test_tensors_and_arrays_give_the_same(colour_onnx, size, resize):
    """Padding, averaging, enlarging and the way back are other code on tensors; the values are the same."""
    torch = pytest.importorskip("torch")
    left, right = images(3, *size, 3), images(3, *size, 3, seed=1)
    engine = engine_of(colour_onnx(batch=2))
    tensors = [torch.from_numpy(x).permute(0, 3, 1, 2) for x in (left, right)]
    found = engine.infer(*tensors, resize=resize).numpy()
    np.testing.assert_allclose(found, engine.infer(left, right, resize=resize), rtol=1e-5, atol=2e-3)


OPEN = BuildSettings(verify=False, max_batch=4, heights=(64, 96, 160), widths=(64, 128, 256))


@pytest.mark.parametrize(
    ("size", "frame"),
    [
        ((64, 64), (64, 64)),
        ((65, 100), (96, 128)),
        ((10, 10), (64, 64)),
        ((160, 256), (160, 256)),
        ((320, 512), (160, 256)),
        ((100, 512), (64, 256)),
    ],
)
def test_open_sizes_take_the_next_multiple_of_32_in_the_range(colour_onnx, size, frame):
    """Larger images are scaled down with their aspect ratio, and only then rounded up."""
    engine = engine_of(colour_onnx(batch=None, height="height", width="width"), OPEN)
    seen, run = [], engine.run
    engine.run = lambda left, right: seen.append(left.shape) or run(left, right)
    left = np.zeros((*size, 3), np.uint8)
    left[..., 0] = 10
    found = engine.infer(left, np.zeros_like(left))
    assert set(seen) == {(1, 3, *frame)} and found.shape == size
    np.testing.assert_allclose(found, 10 * max(1, size[0] / 160, size[1] / 256), rtol=1e-4)


def test_open_sizes_are_run_one_after_the_other(colour_onnx):
    """Memory is kept for each shape; none sees another's pixels."""
    engine = engine_of(colour_onnx(batch=None, height="height", width="width"), OPEN)
    for seed, size in enumerate([(64, 64), (90, 200), (64, 64), (65, 100)]):
        left, right = images(2, *size, 3, seed=seed), images(2, *size, 3, seed=seed + 10)
        np.testing.assert_allclose(engine.infer(left, right), expected(left, right), atol=2e-3)


def counted_runs(engine) -> list[tuple[int, ...]]:
    """The shapes that the engine is given to run, as they come."""
    seen, run = [], engine.run
    engine.run = lambda left, right: seen.append(left.shape) or run(left, right)
    return seen


def test_an_engine_of_one_size_runs_its_first_call_twice_and_times_the_second(colour_onnx):
    engine = engine_of(colour_onnx())
    seen = counted_runs(engine)
    for _ in range(2):
        engine.infer(images(64, 96, 3), images(64, 96, 3))
    assert len(seen) == 3 and len(engine.latencies_ms) == 2


def test_an_engine_of_open_size_runs_nothing_twice_and_times_no_first_call_of_a_shape(colour_onnx):
    """A data set of many sizes would take twice as long."""
    engine = engine_of(colour_onnx(batch=None, height="height", width="width"), OPEN)
    seen = counted_runs(engine)
    for size in [(64, 64), (96, 128), (64, 64), (160, 256), (64, 64)]:
        engine.infer(images(*size, 3), images(*size, 3))
    assert len(seen) == 5 and len(engine.latencies_ms) == 2
    assert engine.latency()["images_per_second"] == pytest.approx(2000 / sum(engine.latencies_ms))


def test_tiles_are_timed_as_one_call_or_not_at_all(colour_onnx):
    engine = engine_of(colour_onnx(batch=None, height="height", width="width"), OPEN)
    small, large = images(64, 64, 3), images(96, 128, 3)
    engine.infer(small, small)
    with engine.as_one_call(images=1):
        engine.infer(small, small)
        engine.infer(large, large)  # the first of its shape
    assert engine.latency()["latency_batch"] is None and engine.latencies_ms == []
    with engine.as_one_call(images=1):
        engine.infer(small, small)
        engine.infer(large, large)
    assert len(engine.latencies_ms) == 1
    assert engine.latency()["images_per_second"] == pytest.approx(1000 / engine.latencies_ms[0])


def test_one_note_for_each_size_that_is_padded(colour_onnx, caplog):
    engine = engine_of(colour_onnx())
    with caplog.at_level("INFO", logger="stereo_core.engines.base"):
        for size in ((64, 96), (50, 81), (50, 81), (128, 96)):
            engine.infer(images(*size, 3), images(*size, 3))
    assert [record.getMessage() for record in caplog.records] == [
        "images of 81 x 50 px are padded to 96 x 64 px for the engine",
        "images of 96 x 128 px are scaled to 48 x 64 and padded to 96 x 64 px for the engine",
    ]


def test_uint8_and_float_agree(colour_onnx):
    engine = engine_of(colour_onnx())
    left, right = images(30, 40, 3), images(30, 40, 3, seed=1)
    np.testing.assert_array_equal(engine.infer(left, right), engine.infer(left.astype(np.float32), right))


def test_grey_is_equal_channels(colour_onnx):
    engine = engine_of(colour_onnx())
    left, right = images(30, 40), images(30, 40, seed=1)
    rgb = engine.infer(*(np.repeat(image[..., None], 3, axis=-1) for image in (left, right)))
    np.testing.assert_array_equal(engine.infer(left, right), rgb)


@pytest.mark.parametrize(
    ("left", "right", "message"),
    [
        (images(30, 40, 3), images(30, 41, 3), r"left is \(30, 40, 3\), right is \(30, 41, 3\); both .* the same size"),
        ("left.png", "right.png", r"left is text; images must be arrays, such as cv2.imread\(path\)"),
        (images(30, 40, 3), images(30, 40, 3) / 255, "largest value of right is 1, but .* 0..255; multiply by 255"),
        (images(30, 40, 2), images(30, 40, 2), r"\(H, W, 3\)"),
        (images(3, 30, 40), images(3, 30, 40), r"\(H, W, 3\)"),
        (images(30, 40, 3).astype(np.int64), images(30, 40, 3).astype(np.int64), "int64"),
    ],
)
def test_wrong_images_are_refused(colour_onnx, left, right, message):
    with pytest.raises(ValueError, match=message):
        engine_of(colour_onnx()).infer(left, right)


def test_sizes_that_the_onnx_file_lacks_end_the_step_at_once(colour_onnx, tmp_path, capsys):
    def port(path):
        return {"artifacts": [{"name": path.stem, "uri": str(path), "metadata": {}}]}

    given = {
        "inputs": {
            "parameterValues": {"backend": "onnxruntime", "spec": {"gen_trt_engine": {"opt_height": 128}}},
            "artifacts": {"onnx": port(colour_onnx())},
        },
        "outputs": {"artifacts": {"engine": port(tmp_path / "engine")}, "outputFile": str(tmp_path / "out.json")},
    }
    assert launcher.main(["gen_trt_engine", json.dumps(given)]) == 2
    error = capsys.readouterr().err
    assert "gen_trt_engine: opt_height=128 cannot hold 64 px, the only height of the ONNX file" in error
    assert not (tmp_path / "engine").exists() and not list((tmp_path / "results").glob("model*"))
