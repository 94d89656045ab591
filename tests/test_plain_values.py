import numpy as np
import pytest

from stereo_core.values import as_metadata, digits, from_json, json_ready, with_integers


def test_whole_numbers_are_integers_again_at_any_depth():
    value = with_integers({"a": 2.0, "b": [1.0, 1.5, True, "2.0"]})
    assert value == {"a": 2, "b": [1, 1.5, True, "2.0"]}
    assert type(value["a"]) is int and type(value["b"][0]) is int and value["b"][2] is True


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "", "nul", "9" * 5000, b"\xff"])
def test_a_text_that_is_no_json_is_a_value_error(text):
    assert from_json('{"a": [1]}') == {"a": [1]}
    with pytest.raises(ValueError):
        from_json(text)


def test_a_number_that_python_does_not_read_is_told_in_our_words():
    with pytest.raises(ValueError, match=r"^a number has too many digits$"):
        from_json('{"a": ' + "9" * 5000 + "}")


@pytest.mark.parametrize(("text", "number"), [("007", 7), ("", None), ("-1", None), ("²", None), ("٣", None)])
def test_only_a_short_row_of_digits_is_a_number(text, number):
    assert digits(text) == number
    assert digits("9" * 18) == 10**18 - 1 and digits("9" * 5000) is None


def test_plain_values_are_strict_json():
    value = {1: float("nan"), "size": np.float32(0.5), "shape": np.arange(2), "of": {"x"}, "none": None, "type": object}
    assert json_ready(value) == {
        "1": None,
        "size": 0.5,
        "shape": [0, 1],
        "of": ["x"],
        "none": None,
        "type": "<class 'object'>",
    }


def test_metadata_names_what_is_no_number_and_leaves_out_what_is_nothing():
    value = {"epe": float("nan"), "max": float("inf"), "none": None, "all": [{"none": None}, None]}
    assert as_metadata(value) == {"epe": "nan", "max": "inf", "all": [{}, None]}
