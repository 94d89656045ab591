"""What holds for every content: what is written is read back, sums do not depend on how a list is cut, geometry stays,
a run's experiment.yaml is its spec."""

from __future__ import annotations

import math

import numpy as np
import pytest
import yaml
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from pydantic import ValidationError

from stereo_core.data import shards
from stereo_core.data.annotations import read_annotations, write_annotations
from stereo_core.data.augmentation import Pair, cut, flip_horizontally, flip_vertically, resize, shift
from stereo_core.data.codecs import read_disparity, write_disparity_png16, write_disparity_rgb, write_pfm
from stereo_core.data.depth import write_depth_png
from stereo_core.data.images import decode, read_image, write_png
from stereo_core.data.statistics import PairStatistics, Statistics
from stereo_core.metrics import METRICS, StereoMetrics, disparity_metrics
from stereo_core.orchestration.record import Made, Record, TaskRun, read_record
from stereo_core.run.perform import public
from stereo_core.spec.loading import build
from stereo_core.spec.schema import json_schema
from stereo_core.spec.text import parse

SIZES = array_shapes(min_dims=2, max_dims=2, max_side=12)
SEEDS = st.integers(0, 2**32 - 1)

# -- files ------------------------------------------------------------------------------------------------------------


@given(arrays(np.float32, SIZES, elements=st.floats(width=32, allow_nan=False)))
def test_a_pfm_is_read_as_it_was_written(tmp_path_factory, px):
    write_pfm(path := tmp_path_factory.getbasetemp() / "p.pfm", px)
    disparity, valid = read_disparity(path)
    assert np.array_equal(valid, np.isfinite(px) & (px > 0))
    assert np.array_equal(disparity, np.where(valid, px, 0))


@given(arrays(np.float64, SIZES, elements=st.floats(-5, 20_000)), st.sampled_from((256, 32, 1000)))
def test_a_png_is_read_as_it_was_written_but_for_its_rounding(tmp_path_factory, px, scale):
    path = tmp_path_factory.getbasetemp() / "p.png"
    if scale == 1000:
        write_disparity_rgb(path, px)
        largest, name = 16646.399, "FSD"
    else:
        beyond = write_disparity_png16(path, px, scale=scale)
        largest, name = 65535 / scale, "Kitti" if scale == 256 else "Crestereo"
        assert beyond == np.count_nonzero(np.rint(px * scale) > 65535)
    assume(scale != 1000 or not (decode(path) == decode(path)[..., :1]).all())  # it may be grey: refused
    disparity, valid = read_disparity(path, dataset_name=name)
    assert np.array_equal(valid, px > 0)
    expected = np.clip(px, 1 / scale, largest)[valid]
    assert np.allclose(disparity[valid], expected, rtol=1e-6, atol=0.5001 / scale)


@given(
    st.one_of(
        arrays(np.uint8, SIZES),
        arrays(np.uint16, SIZES),
        arrays(np.uint8, st.tuples(*[st.integers(1, 9)] * 2, st.just(3))),
    )
)
def test_a_picture_is_read_as_it_was_written(tmp_path_factory, image):
    write_png(path := tmp_path_factory.getbasetemp() / "i.png", image)
    assert np.array_equal(decode(path), image.reshape(*image.shape[:2], -1))
    if image.dtype == np.uint8:
        assert np.array_equal(
            read_image(path), np.broadcast_to(image.reshape(*image.shape[:2], -1), (*image.shape[:2], 3))
        )


@given(arrays(np.float32, SIZES, elements=st.floats(0, 100, width=32)))
def test_a_depth_map_is_read_in_millimetres(tmp_path_factory, depth):
    lost = write_depth_png(path := tmp_path_factory.getbasetemp() / "z.png", depth)
    stored = decode(path)[..., 0].astype(np.float64) / 1000
    kept = stored > 0
    assert np.allclose(stored[kept], depth[kept], atol=0.00051)
    assert lost == np.count_nonzero((depth > 0) & ~kept)
    assert not kept[depth > 65.536].any() and kept[(depth > 0.00051) & (depth < 65.535)].all()


NAMES = st.text(
    st.characters(exclude_characters="\0\r\n", exclude_categories=["Cs", "Zl", "Zp", "Cc"]), min_size=1
).filter(lambda name: "://" not in name and not name.startswith("/"))


@given(st.lists(st.lists(NAMES, min_size=2, max_size=4), min_size=1, max_size=5))
def test_a_list_of_any_names_is_read_as_it_was_written(tmp_path_factory, rows):
    write_annotations(path := tmp_path_factory.getbasetemp() / "l.txt", rows)
    found = [[one for one in (s.left, s.right, s.disparity, s.mask) if one] for s in read_annotations(path, "/data")]
    assert found == [[f"/data/{name}" for name in row] for row in rows]


@given(
    st.dictionaries(
        st.from_regex(r"[a-z ]{1,3}(/[a-z0-9]{1,3}){0,2}", fullmatch=True),
        st.binary(max_size=700),
        min_size=1,
        max_size=6,
    ),
    st.integers(1, 2000),
)
def test_packed_files_are_read_as_they_were(tmp_path_factory, contents, limit):
    folder = tmp_path_factory.getbasetemp() / "packed"
    shards.pack({name: len(data) for name, data in contents.items()}, contents.get, folder, limit)
    shards._parsed.cache_clear()  # it knows an index by its time, and examples are quicker than that
    found = shards.packed(str(folder))
    assert {name: shards.read(*shards.parts(path)) for name, path in found.items()} == contents


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=3))


@given(
    st.dictionaries(
        st.text(min_size=1), st.tuples(st.sampled_from(("waiting", "succeeded", "failed")), st.text(), JSON)
    )
)
def test_a_record_is_read_as_it_was_written(tmp_path_factory, tasks):
    folder = tmp_path_factory.getbasetemp().resolve() / "run"
    folder.mkdir(exist_ok=True)
    made = {"out": Made({"schemaTitle": "system.Dataset"}, "a/b", "0" * 64, 7)}
    runs = {
        name: TaskRun(s, message=text, parameters={"x": value}, artifacts=made)
        for name, (s, text, value) in tasks.items()
    }
    record = Record(folder, "p", runs, state="succeeded")
    record.write()
    assert read_record(folder) == record


# -- sums -------------------------------------------------------------------------------------------------------------


def image_rows(seed: int, count: int) -> list[dict]:
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        gt = rng.uniform(-5, 60, (4, 5))
        rows.append(disparity_metrics(gt + rng.normal(0, 3, gt.shape), gt, rng.random(gt.shape) < rng.random(), 50))
    return rows


def cuts_of(count: int) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(0, count), max_size=4).map(sorted)


@given(SEEDS, st.integers(1, 9), st.integers(1, 4), st.randoms(use_true_random=False), st.data())
def test_no_order_no_batches_and_no_ranks_change_the_metrics(seed, count, ranks, order, data):
    rows = image_rows(seed, count)
    whole, parts = StereoMetrics(), StereoMetrics()
    whole.update(rows)
    of_ranks = [rows[rank::ranks] for rank in range(ranks)]
    order.shuffle(of_ranks)
    gathered = [row for rank in of_ranks for row in rank]
    cuts = data.draw(cuts_of(count))
    for begin, end in zip([0, *cuts], [*cuts, count], strict=True):
        parts.update(gathered[begin:end])
    assert parts.compute() == pytest.approx(whole.compute(), rel=1e-12, nan_ok=True)
    assert parts.compute()["images"] + parts.compute()["empty"] == count


@given(SEEDS, st.floats(1, 60))
def test_each_metric_is_its_definition(seed, limit):
    rng = np.random.default_rng(seed)
    gt = rng.integers(-2, 64, (5, 6)).astype(np.float64)
    prediction, valid = gt + rng.integers(-8, 9, gt.shape) / 2, rng.random(gt.shape) < 0.8
    row = disparity_metrics(prediction, gt, valid, limit)
    error = [abs(p - g) for p, g, v in zip(prediction.flat, gt.flat, valid.flat, strict=True) if v and 0 < g < limit]
    assert row["pixels"] == len(error)
    if error:
        assert row["epe"] == pytest.approx(math.fsum(error) / len(error))
        assert [row[f"bp{n}"] for n in (1, 2, 3)] == pytest.approx(
            [sum(e > n for e in error) / len(error) for n in (1, 2, 3)]
        )
        assert row["rmse"] == pytest.approx(math.sqrt(math.fsum(e * e for e in error) / len(error)))
    else:
        assert all(math.isnan(row[name]) for name in METRICS)


def look(rng: np.random.Generator) -> PairStatistics:
    bins = np.unique(rng.integers(200_000, 250_000, 5))
    counts = rng.integers(1, 9, bins.size)
    size = (int(rng.integers(1, 4)), int(rng.integers(1, 4)))
    return PairStatistics(
        size, bool(rng.integers(2)), bool(rng.integers(2)), bins, counts, tuple(sorted(rng.uniform(1, 50, 2)))
    )


@given(SEEDS, st.integers(0, 8), st.data())
def test_any_split_of_a_list_has_the_same_statistics(seed, count, data):
    rng = np.random.default_rng(seed)
    looks = [look(rng) for _ in range(count)]
    whole, together = Statistics(), Statistics()
    for one in looks:
        whole.add(one)
    cuts = data.draw(cuts_of(count))
    for begin, end in zip([0, *cuts], [*cuts, count], strict=True):
        part = Statistics()
        for one in looks[begin:end]:
            part.add(one)
        together += part
    assert np.array_equal(together._counts, whole._counts)
    assert vars(together) | {"_counts": 0} == vars(whole) | {"_counts": 0}


# -- geometry ---------------------------------------------------------------------------------------------------------


@st.composite
def pairs(draw) -> Pair:
    """left(x) = right(x - d) wherever d is known: whole disparities, each to the end of its run in a row."""
    rng = np.random.default_rng(draw(SEEDS))
    height, width = draw(st.integers(2, 9)), draw(st.integers(16, 40))
    right = rng.integers(0, 256, (height, width, 3), np.uint8)
    runs = rng.integers(1, 9, (height, width // 4 + 1)).repeat(4, axis=1)[:, :width]
    columns = np.arange(width) - runs
    known = columns >= 0
    left = np.where(known[..., None], np.take_along_axis(right, np.maximum(columns, 0)[..., None], axis=1), 7)
    return Pair(left.astype(np.uint8), right, np.where(known, runs, 0).astype(np.float32))


def differences(pair: Pair) -> np.ndarray:
    """|left(x) - right(x - d)| of the known pixels; their disparities are whole and lead into the image."""
    rows, columns = np.nonzero(pair.valid)
    seen = columns - pair.disparity[rows, columns]
    assert np.array_equal(seen, np.rint(seen)) and (seen >= 0).all()
    found = pair.left[rows, columns].astype(int) - pair.right[rows, seen.astype(int)]
    return np.abs(found)


@given(pairs(), st.data())
def test_flips_and_crops_keep_the_equation(pair, data):
    assert not differences(pair).any()
    assert not differences(flip_vertically(pair)).any()
    flipped = flip_horizontally(pair)
    assert not differences(flipped).any() and flipped.valid.any() == pair.valid.any()
    height, width = pair.disparity.shape
    top, start = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    window = cut(pair, top, start, (height - top, width - start))
    inside = window.disparity <= np.arange(window.disparity.shape[1])
    assert not differences(Pair(window.left, window.right, np.where(inside, window.disparity, 0))).any()


@given(pairs(), st.integers(-4, 4))
def test_a_shift_adds_to_all_disparities(pair, by):
    moved = shift(pair, by)
    inside = moved.disparity <= np.arange(moved.disparity.shape[1])
    assert not differences(Pair(moved.left, moved.right, np.where(inside, moved.disparity, 0))).any()
    assert np.array_equal(moved.disparity, np.where(pair.disparity + by > 0, pair.disparity + by, 0) * pair.valid)


@given(SEEDS, st.integers(1, 6), st.sampled_from((2, 3)))
def test_a_scale_goes_over_to_the_disparities(seed, by, factor):
    """One whole disparity, which every interpolation keeps, apart from the borders."""
    right = np.random.default_rng(seed).integers(0, 256, (4, 32, 3), np.uint8)
    left = np.roll(right, by, axis=1)
    disparity = np.full((4, 32), np.float32(by))
    disparity[:, : by + 2] = disparity[:, -2:] = 0
    scaled = resize(Pair(left, right, disparity), (4 * factor, 32 * factor))
    known = scaled.disparity[:, (by + 3) * factor : -3 * factor]
    assert (known == by * factor).all() and known.size
    inner = np.zeros_like(scaled.disparity)
    inner[:, (by + 3) * factor : -3 * factor] = known
    assert differences(Pair(scaled.left, scaled.right, inner)).max() <= 1
    back = resize(scaled, (4, 32))
    assert (back.disparity[:, by + 4 : -4] == by).all()


# -- specs ------------------------------------------------------------------------------------------------------------

ODD_TEXTS = (
    "",
    "on",
    "null",
    "1e3",
    "007",
    "12:30",
    "a: b",
    "# x",
    "'",
    "ä\n",
    " x ",
    "[",
    "2024-01-01",
    "=",
    "<<",
    "!x",
)
TEXTS = st.one_of(
    st.sampled_from(ODD_TEXTS), st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=5)
).filter(lambda text: "${" not in text and text != "???" and not text.startswith("~/"))


def values(node: dict) -> st.SearchStrategy:
    """Values that a key's JSON Schema allows."""
    if "anyOf" in node:
        return st.one_of(*map(values, node["anyOf"]))
    if "enum" in node or "const" in node:
        return st.sampled_from(node.get("enum") or [node["const"]])
    if "properties" in node:
        return st.fixed_dictionaries({}, optional={name: values(item) for name, item in node["properties"].items()})
    least, most = node.get("minimum", node.get("exclusiveMinimum")), node.get("maximum", node.get("exclusiveMaximum"))
    match node.get("type"):
        case "boolean":
            return st.booleans()
        case "integer":
            return st.integers(int(least or 0), int(least or 0) + 64 if most is None else int(most))
        case "number":
            return st.floats(least or 0, 1e6 if most is None else most)
        case "string":
            return TEXTS
        case "array":
            return st.lists(
                values(node.get("items", {})), min_size=node.get("minItems", 0), max_size=node.get("maxItems", 2)
            )
        case "null":
            return st.none()
    return st.dictionaries(TEXTS, TEXTS, max_size=2)


SPECS = {verb: values(json_schema(verb)) for verb in ("train", "evaluate", "export")}
SECRETS = {"encryption_key": ""}


@pytest.mark.parametrize("verb", SPECS)
def test_experiment_yaml_is_the_spec(verb):
    @given(SPECS[verb])
    def attempt(tree: dict) -> None:
        try:
            spec = build(verb, tree | SECRETS)
        except ValidationError:
            assume(False)
        text = yaml.safe_dump(public(spec, verb), sort_keys=False, allow_unicode=True)
        assert build(verb, parse(text, "experiment.yaml")) == spec

    attempt()
