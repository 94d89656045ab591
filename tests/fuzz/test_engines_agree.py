"""A compiled pipeline makes the same calls, with the same values, on the local engine and on Argo."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import yaml
from argo_documents import REPOSITORY
from argo_simulator import Simulator
from hypothesis import given, settings
from hypothesis import strategies as st
from small_ir import container, pipeline

from stereo_core.orchestration.argo import manifests
from stereo_core.orchestration.graph import read_pipeline
from stereo_core.orchestration.local import LocalRun

TOLD = "import json, sys; a = sys.argv; open(a[-1], 'w').write(json.dumps([a[1], [open(p).read() for p in a[2:-1]]]))"
"""A step's output: its text, and what it was given. So the last outputs hold all calls that led to them."""

TEXT = {"parameterType": "STRING"}
TEXTS = st.one_of(  # without {{, which Argo would read: it is refused by name
    st.sampled_from(("it's", '"', "$(x)", "{x}}", "\\n", "ä b", "#", "--x")),
    st.text("ab\"'\\ {$\n", max_size=4).filter(lambda text: "{{" not in text),
)
SWITCH = st.sampled_from(("on", "off"))


@st.composite
def graphs(draw) -> dict:
    """PipelineSpec IR of up to four steps: each takes earlier outputs, a text and, perhaps, a condition."""
    steps, wires, told = {}, {}, {}
    for number in range(draw(st.integers(1, 4))):
        name = f"s{number}"
        before = draw(st.lists(st.sampled_from(sorted(steps)), unique=True, max_size=2)) if steps else []
        ports = tuple(f"in{place}" for place in range(len(before)))
        steps[name] = container(TOLD, ("out",), ports)
        steps[name]["args"].insert(0, "{{$.inputs.parameters['text']}}")
        wires[name] = {port: (other, "out") for port, other in zip(ports, before, strict=True)}
        told[name] = draw(st.one_of(st.none(), TEXTS)), draw(st.sampled_from((None, None, "on", "off")))
    spec = pipeline(steps, wires, text=TEXT | {"defaultValue": "default"}, switch=TEXT)
    for name, (text, when) in told.items():
        task = spec["root"]["dag"]["tasks"][name]
        source = {"componentInputParameter": "text"} if text is None else {"runtimeValue": {"constant": text}}
        task["inputs"]["parameters"] = {"text": source, "switch": {"componentInputParameter": "switch"}}
        spec["components"][f"comp-{name}"]["inputDefinitions"]["parameters"] = {"text": TEXT, "switch": TEXT}
        if when:
            task["triggerPolicy"] = {"condition": f"inputs.parameter_values['switch'] == '{when}'"}
    return spec


def calls_here(spec: dict, arguments: dict, folder: Path) -> dict[str, object]:
    run = LocalRun(read_pipeline(yaml.safe_dump(spec), Path("p.yaml")), arguments, folder)
    assert run.execute() == 0
    ran = [name for name, task in run.tasks.items() if task.state == "succeeded"]
    return {name: json.loads((folder / f"tasks/{name}/out").read_text()) for name in ran}


def calls_on_argo(spec: dict, arguments: dict, folder: Path) -> dict[str, object]:
    documents = manifests(read_pipeline(yaml.safe_dump(spec), Path("p.yaml")), arguments, REPOSITORY)
    run = Simulator(documents, folder, {})
    run.run()
    return {name: json.loads(run.stored[f"tasks.{name}.outputs.artifacts.out"].read_text()) for name in run.pods}


def test_both_engines_make_the_same_calls(tmp_path, counted):
    numbers = itertools.count()

    @given(graphs(), TEXTS, SWITCH)
    @settings(max_examples=max(4, settings().max_examples // 200))
    def attempt(spec: dict, text: str, switch: str) -> None:
        counted()
        folder = tmp_path / str(next(numbers))
        arguments = {"text": text, "switch": switch}
        assert calls_here(spec, arguments, folder / "here") == calls_on_argo(spec, arguments, folder / "argo")

    attempt()
