"""Which layers are quantised: a rule that fits too much or too little costs accuracy, or buys nothing."""

from __future__ import annotations

import logging

import pytest

from stereo_core.errors import SpecError
from stereo_core.quantization.rules import Formats, Layer, choose, one_format, summarise
from stereo_core.spec.quantize import LayerRule, TensorRule
from stereo_core.spec.schema import default_specs

LAYERS = [
    Layer("feature.stem.0", "Conv2d", 100, "feature", True),
    Layer("feature.fc", "Linear", 300, "feature", True),
    Layer("update_block.fc", "Linear", 600, "update_block", False),
]
INT8, FP8 = Formats("int8", "int8"), Formats("fp8", "fp8")


def rule(name: str, dtype: str, activations: str | None = None) -> LayerRule:
    return LayerRule(
        module_name=name,
        weights={"dtype": dtype},
        activations={"dtype": dtype if activations is None else activations},
    )


@pytest.mark.parametrize(
    ("rules", "skip", "expected"),
    [
        ([], [], {"feature.stem.0": INT8, "feature.fc": INT8}),
        ([rule("", "fp8_e4m3fn")], [], {"feature.stem.0": FP8, "feature.fc": FP8}),
        ([rule("Linear", "int8")], [], {"feature.fc": INT8, "update_block.fc": INT8}),
        ([rule("linear", "int8"), rule("feature.stem.?", "int8")], [], {"feature.stem.0": INT8}),
        ([rule("*", "int8"), rule("feature.*", "native")], [], {"update_block.fc": INT8}),
        ([rule("feature.*", "native"), rule("feature.fc", "int8")], [], {"feature.fc": INT8}),
        ([rule("*", "int8"), rule("*.fc", "native")], ["feature.st*"], SpecError),
        ([rule("*", "int8")], ["Linear"], {"feature.stem.0": INT8}),
        ([rule("feature.fc", "int8", "native")], [], {"feature.fc": Formats("int8", None)}),
        ([rule("feature.fc", "int8"), rule("feature.fc", "", "native")], [], {"feature.fc": Formats("int8", None)}),
        ([rule("feature.fc", "int8", "fp8_e4m3fn")], [], SpecError),
        ([rule("feature.fc", "", "int8")], [], SpecError),
    ],
)
def test_later_rules_override_and_skip_names_come_last(rules, skip, expected):
    if expected is SpecError:
        with pytest.raises(SpecError, match=r"quantize\.layers"):
            choose(LAYERS, rules, skip, static=True)
    else:
        assert choose(LAYERS, rules, skip, static=True) == expected


def test_without_calibration_activations_stay_in_float():
    assert set(choose(LAYERS, [], [], static=False).values()) == {Formats("int8", None)}


def test_what_has_no_effect_is_named(caplog):
    with caplog.at_level(logging.WARNING):
        choose(LAYERS, [rule("Linear", "fp8_e5m2"), rule("depth_anything.*", "native")], ["cnet"], static=True)
    text = caplog.text
    assert "fp8_e5m2 is not supported; using fp8_e4m3fn instead" in text
    assert "quantize.layers[1]: 'depth_anything.*' matches no layer that can be quantised" in text
    assert "quantize.skip_names: 'cnet' matches no layer that can be quantised" in text


def test_one_file_has_one_format():
    chosen = choose(LAYERS, [rule("Linear", "int8"), rule("Conv2d", "fp8_e4m3fn")], [], static=True)
    with pytest.raises(SpecError, match=r"the rules use fp8 and int8, but modelopt\.onnx supports one format"):
        one_format(chosen, "modelopt.onnx")


def test_the_summary_counts_layers_and_weights():
    summary = summarise(LAYERS, choose(LAYERS, [], [], static=True))
    assert summary.kpi == {"quantized_layers": 2, "quantizable_layers": 3, "quantized_weight_share": 0.4}
    assert summary.text == (
        "2 of 3 layers with 40.0% of their weights quantised (int8 weights and activations 2); "
        "left in float: update_block 1"
    )
    assert summary.rows[2] == ("update_block.fc", "Linear", 600, "fp32", "fp32")


def test_the_printed_defaults_say_what_a_rule_may_hold():
    text = default_specs("quantize")
    for part in ("weights", "activations"):
        assert (
            f"- {part}.dtype: Number format; fp8 means fp8_e4m3fn; native: do not quantise (one of '', int8, " in text
        )


@pytest.mark.parametrize("word", ["fp8", "fp8_e4m3fn"])
def test_fp8_is_a_word_for_its_usual_format(word):
    assert TensorRule(dtype=word).dtype == "fp8_e4m3fn"
    with pytest.raises(ValueError, match="dtype"):
        TensorRule(dtype="fp9")
