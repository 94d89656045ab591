"""Values of tasks as Argo's texts, references and expressions, without a cluster or a simulator."""

from pathlib import Path

import pytest
import yaml
from small_ir import sums

from stereo_core.orchestration.argo.values import Values, text_of
from stereo_core.orchestration.dag import (
    Argument,
    Collected,
    Comparison,
    Constant,
    Filled,
    FinalStatus,
    GraphError,
    OneOf,
    Output,
)
from stereo_core.orchestration.graph import read_pipeline
from stereo_core.orchestration.yaml_text import yaml_text

SUM, OUT = Output("make", "sum"), "{{tasks.make.outputs.parameters.sum}}"
X = "{{$.inputs.parameters['x']}}"


@pytest.fixture(scope="module")
def values() -> Values:
    """Of `sums`, which has a pipeline parameter n and an output make.sum, both integers; and one more of each type."""
    spec = sums()
    more = {"rows": "LIST", "tree": "STRUCT", "yes": "BOOLEAN", "x": "NUMBER_DOUBLE", "s": "STRING"}
    spec["root"]["inputDefinitions"]["parameters"] |= {name: {"parameterType": kind} for name, kind in more.items()}
    return Values(read_pipeline(yaml.safe_dump(spec), Path("sums.yaml")))


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (Constant("it's"), "it's"),
        (Constant([1, {"a": None}]), '[1, {"a": null}]'),
        (Argument("n"), "{{workflow.parameters.n}}"),
        (SUM, OUT),
        (Collected((SUM, Constant("b"))), f'[{OUT}, "b"]'),
        (Filled(f"it's {X}!", {"x": SUM}), f"it's {OUT}!"),
        (Filled([X, "b", 1], {"x": SUM}), f'[{OUT}, "b", 1]'),
        (Filled({"k": {"a": X}}, {"x": SUM}), f'{{ "k": {{ "a": {OUT} }} }}'),
        (Filled({"k": X}, {"x": Argument("s")}), "{ \"k\": {{=toJson(workflow.parameters['s'])}} }"),
        (
            Filled([f"is {X}"], {"x": SUM}),
            "[{{=toJson(\"is \" + tasks['make'].outputs.parameters['sum'])}}]",
        ),
        (
            OneOf((SUM, Output("use", "sum"))),
            "{{=tasks['make'].status == 'Succeeded' ? tasks['make'].outputs.parameters['sum'] : "
            "tasks['use'].outputs.parameters['sum']}}",
        ),
    ],
)
def test_a_value_as_text(values, source, text):
    assert values.text(source, "here") == text


def test_a_final_status_holds_the_groups_name(values):
    text = values.text(FinalStatus("exit-handler-1", ("make",)), "here")
    assert '"pipelineTaskName": "exit-handler-1", "error": {"message": {{=toJson(workflow.failures)}} } }' in text
    assert text.startswith('{"state": "{{=workflow.status') and '"pipelineJobResourceName": "{{workflow.name}}"' in text


def test_texts_are_quoted_and_numbers_are_not(values):
    assert values.json(Constant('a "b"'), "here") == '"a \\"b\\""'
    assert values.json(Argument("n"), "here") == "{{workflow.parameters.n}}"


def test_the_types_are_those_of_the_ir(values):
    sources = (Argument("yes"), SUM, OneOf((SUM,)), Constant(1), Filled(X, {"x": SUM}), Collected((SUM,)))
    assert [values.type_of(source) for source in sources] == [
        *("BOOLEAN", "NUMBER_INTEGER", "NUMBER_INTEGER", "STRING", "STRING", "LIST"),
    ]


def test_a_condition_compares_values_of_their_type(values):
    n = "asInt(workflow.parameters['n'])"
    tests = (Comparison(Argument("n"), "<", Constant(3)), Comparison(Argument("n"), "==", SUM, negated=True))
    both = f"{{{{=({n} < 3) && !({n} == asInt(tasks['make'].outputs.parameters['sum']))}}}}"
    assert values.condition(tests, "here") == both
    assert values.condition((), "here") is None
    assert values.condition((Comparison(Constant("ä"), "!=", Constant(True)),), "here") == '{{=("ä" != true)}}'


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("yes", "(workflow.parameters['yes'] == 'true')"),
        ("x", "asFloat(workflow.parameters['x'])"),
        ("s", "workflow.parameters['s']"),
    ],
)
def test_a_parameter_in_a_condition_has_its_type(values, name, said):
    assert values.condition((Comparison(Argument(name), "==", Constant(1)),), "here") == f"{{{{=({said} == 1)}}}}"


@pytest.mark.parametrize("name", ["rows", "tree"])
def test_a_condition_on_a_list_or_a_mapping_is_refused(values, name):
    with pytest.raises(GraphError, match="here: Argo does not support a condition on a list or a mapping"):
        values.condition((Comparison(Argument(name), "==", Constant(1)),), "here")


@pytest.mark.parametrize("text", ["{{x", "a {{workflow.name}}"])
def test_a_text_that_argo_would_read_is_refused(values, text):
    for refused in (
        lambda: text_of(text, "here"),
        lambda: values.json(Constant(text), "here"),
        lambda: values.text(Collected((SUM, Constant(text))), "here"),
    ):
        with pytest.raises(GraphError, match="here: Argo would read"):
            refused()
    with pytest.raises(GraphError, match="here: Argo would read }}"):
        values.text(Filled([f"a}}}} {X}"], {"x": SUM}), "here")


def test_what_an_expression_can_not_say_is_refused(values):
    filled = Filled(f"{X}", {"x": SUM})
    for source, words in (
        (Collected((SUM,)), "dsl.Collected"),
        (FinalStatus("g", ()), "dsl.PipelineTaskFinalStatus"),
        (filled, "a value that contains other values"),
    ):
        with pytest.raises(GraphError, match=f"here: .*{words}.* cannot be part of an Argo expression"):
            values.expression(source, "here")
    with pytest.raises(GraphError, match="here: Argo would read }}"):
        values.expression(Constant("a}}"), "here")


@pytest.mark.parametrize("text", ["y", "N", "1e3", "5e-05", "1.5e3", ".5e1", "09", "-1e3", "0o17"])
def test_a_text_that_go_reads_as_another_value_is_quoted(text):
    """kubectl made true of `title: y` and 1000 of a tag 1e3; PyYAML by itself writes them without quotes."""
    assert yaml_text({"value": text}) == f"value: '{text}'\n"


def test_texts_that_are_texts_anyway_and_numbers_have_no_quotes():
    plain = {"a": "yard", "b": "12e", "c": "v1.2", "d": "sha256:12", "e": 1e-05, "f": 5}
    assert "'" not in yaml_text(plain) and yaml.safe_load(yaml_text(plain)) == plain
