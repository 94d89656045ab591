"""key=value: what arrives."""

from __future__ import annotations

import pytest

from stereo_core.errors import SpecError
from stereo_core.spec import load_spec
from stereo_core.spec.overrides import apply_override, parse_override, whole


@pytest.mark.parametrize(
    ("token", "value"),
    [
        ("a.b=3", 3),
        ("a.b=-1", -1),
        ("a.b=0.5", 0.5),
        ("a.b=true", True),
        ("a.b=null", None),
        ("a.b=", ""),
        ("a.b=my run #3: best", "my run #3: best"),
        ("a.b='quoted text'", "quoted text"),
        ('a.b="say \\"hi\\""', 'say "hi"'),
        ("a.b='a' and 'b'", "'a' and 'b'"),
        ("a.b=it's", "it's"),
        ("a.b=x=y", "x=y"),
        ("a.b=C:\\data\\x", "C:\\data\\x"),
        ("a.b=Zürich/日本", "Zürich/日本"),
        ("a.b='17'", "17"),
        ("a.b=[320,736]", [320, 736]),
        ("a.b=[im0, 'a b', ü]", ["im0", "a b", "ü"]),
        ("a.b={x: 1, y: [2]}", {"x": 1, "y": [2]}),
        ("a.b=[{dataset_name:Kitti,data_file:/d/t.txt}]", [{"dataset_name": "Kitti", "data_file": "/d/t.txt"}]),
        ("a.b=on", "on"),
        ("a.b=12:30", "12:30"),
        ("a.b= padded ", "padded"),
    ],
)
def test_values_survive(token, value):
    path, found = parse_override(token)
    assert path == ("a", "b") and found == value and type(found) is type(value)


@pytest.mark.parametrize("part", ["9" * 5000, "²"])
def test_a_part_of_a_key_that_python_reads_as_no_number_is_a_name(part):
    assert parse_override(f"a.{part}.b=3") == (("a", part, "b"), 3)


@pytest.mark.parametrize(
    ("token", "message"),
    [
        ("+a.b=1", "+a.b=1: keys cannot be added; write a.b=1"),
        ("++a.b=1", "++a.b=1: keys cannot be added; write a.b=1"),
        ("~a.b", "~a.b: keys cannot be deleted; set a.b to another value instead"),
        ("train", "train: not of the form key=value"),
        ("train.yaml", "train.yaml: not of the form key=value; a spec file is given with -e train.yaml"),
        ("=3", "=3: not of the form key=value"),
        ("a..b=3", "a..b=3: not of the form key=value"),
        ("a b=3", "a b=3: not of the form key=value"),
    ],
)
def test_other_forms_are_refused(token, message):
    with pytest.raises(SpecError) as error:
        parse_override(token)
    assert str(error.value) == message


def test_no_override_is_too_much_for_python():
    with pytest.raises(SpecError, match=r"^a\.a\..*: unknown key"):
        parse_override(".".join("a" * 3000) + "=1")
    with pytest.raises(SpecError, match=r"^train\.seed: a number of 5000 digits is too long$"):
        parse_override(f"train.seed={'9' * 5000}")


def test_an_open_bracket_says_what_to_do():
    with pytest.raises(SpecError, match=r"^a\.b: value:1: not valid YAML: .*; put a text that starts with a bracket"):
        parse_override("a.b=[1,2")


def applied(tree: dict, *tokens: str) -> dict:
    for token in tokens:
        apply_override(tree, *parse_override(token))
    return tree


def test_both_spellings_of_an_index():
    assert applied({"a": [{"x": 1}]}, "a[0].x=2", "a.0.y=3") == {"a": [{"x": 2, "y": 3}]}


def test_one_past_the_end_is_a_new_entry_and_further_is_an_error():
    tree = applied({}, "a.b[0].c=x", "a.b[1].c=y")
    assert tree == {"a": {"b": [{"c": "x"}, {"c": "y"}]}}
    with pytest.raises(SpecError, match=r"a\.b\[3\]: a\.b has only 2 entries"):
        applied(tree, "a.b[3].c=z")
    with pytest.raises(SpecError, match=r"a\.b\[1\]: a\.b is an empty list; set a\.b\[0\] first$"):
        applied({}, "a.b[1].c=z")


def test_dicts_merge_and_lists_are_replaced():
    tree = {"a": {"x": 1, "y": {"p": 1, "q": 2}, "z": [1, 2]}}
    assert applied(tree, "a={y: {q: 3}, z: [4]}") == {"a": {"x": 1, "y": {"p": 1, "q": 3}, "z": [4]}}


def test_a_path_through_a_value_is_an_error():
    with pytest.raises(SpecError, match=r"a\.b: a is a single value, not a group of keys"):
        applied({"a": 3}, "a.b=4")
    with pytest.raises(SpecError, match=r"a\[0\]: a is not a list"):
        applied({"a": {"b": 3}}, "a[0]=4")


def test_unset_and_null_sections_are_filled():
    assert applied({"a": None, "b": "???"}, "a.x=1", "b.y=2") == {"a": {"x": 1}, "b": {"y": 2}}


@pytest.mark.parametrize(
    ("tokens", "quoted"),
    [
        (["train.gpu_ids=[0,", "1]"], "'train.gpu_ids=[0, 1]'"),
        (["results_dir=my", "results"], "'results_dir=my results'"),
        (["train.num_epochs", "=", "3"], "train.num_epochs=3"),
        (["train.num_epochs=", "3"], "train.num_epochs=3"),
        (["train.num_epochs", "=3"], "train.num_epochs=3"),
        (["wandb.tags=[a,", "b", "c,", "d=e]"], "'wandb.tags=[a, b c, d=e]'"),
        (["dataset={max_disparity:", "64}"], "'dataset={max_disparity: 64}'"),
    ],
)
def test_an_override_that_the_shell_has_split_is_recognised(tokens, quoted):
    with pytest.raises(SpecError) as error:
        load_spec("train", None, ["train.seed=1", *tokens, "train.num_nodes=1"])
    (line,) = [line for line in str(error.value).splitlines() if "split" in line]
    assert line.startswith("command line: ") and line.endswith(f"quote the whole argument: {quoted}")


def test_braces_that_the_shell_spread_are_recognised():
    spread = [
        "dataset.train_dataset.data_sources=[dataset_name:Kitti]",
        "dataset.train_dataset.data_sources=[data_file:x]",
    ]
    with pytest.raises(SpecError, match="data_sources: is set twice"):
        load_spec("train", None, spread)


def test_whole_overrides_stay_apart():
    tokens = ["a=1", "b=[1,2]", "train.yaml", "c=x=y", "+d=1", "e=", "f=2"]
    assert list(whole(tokens)) == [(token,) for token in tokens]
