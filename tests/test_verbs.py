"""A verb is a row and a module: nothing else has to know of it."""

from __future__ import annotations

import json
import sys

import pytest

from stereo_core import cli
from stereo_core.step import launch
from stereo_core.verbs import VERBS, Verb

MODULE = '''
from pathlib import Path

from stereo_core.run.outcome import Outcome
from stereo_core.spec.fields import Section, Text, Texts, key


class GreetSpec(Section):
    """Whom to greet."""

    results_dir: Text = key("", "Folder for the greeting", mandatory=True)
    name: Text = key("you", "Whom")
    pictures: Text = key("", "Folder of pictures")


def run(spec, status):
    folder = Path(spec.results_dir)
    seen = sorted(path.name for path in Path(spec.pictures).iterdir())
    (folder / "greeting.md").write_text(f"hello {spec.name}: {', '.join(seen)}\\n")
    return Outcome("greeted", artifacts={"card": folder / "greeting.md"}, kpi={"pictures": len(seen)})
'''
ROW = Verb(
    name="greet",
    help="A greeting.",
    example="name=you results_dir=out",
    action="invented_verb",
    spec="invented_verb:GreetSpec",
    inputs={"images": "images"},
    outputs={"card": "card"},
    input_keys={"images": "pictures"},
    step_keys={"results_dir": "{results}"},
    flat_parameters=True,
)


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """The invented verb `greet`, in one row and one module; a folder of pictures."""
    (tmp_path / "invented_verb.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(VERBS, "greet", ROW)
    yield_to = tmp_path / "pictures"
    yield_to.mkdir()
    (yield_to / "a.png").touch()
    yield yield_to
    sys.modules.pop("invented_verb", None)


def called(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        cli.main([*arguments], prog_name="depth_net")
    return end.value.code


def test_an_invented_verb_runs_on_the_command_line(pictures, tmp_path, capsys):
    assert called("greet", "name=me", f"pictures={pictures}", f"results_dir={tmp_path}/out") == 0
    assert (tmp_path / "out" / "greeting.md").read_text() == "hello me: a.png\n"
    assert called("greet", "nam=me") == 2
    told = capsys.readouterr().err
    assert "nam: unknown key; did you mean name?" in told and called("gret") == 2
    assert "did you mean greet?" in capsys.readouterr().err


def test_an_invented_verb_is_described(pictures, capsys):
    assert called("--help") == 0 and "\n  greet " in capsys.readouterr().out
    assert called("default_specs", "greet") == 0
    assert "results_dir: ???" in capsys.readouterr().out


def test_an_invented_verb_runs_as_a_step(pictures, tmp_path):
    def item(path) -> dict:
        return {"artifacts": [{"name": path.name, "uri": str(path), "metadata": {}}]}

    outputs = {"artifacts": {"card": item(tmp_path / "card")}, "outputFile": str(tmp_path / "output.json")}
    outputs["parameters"] = {"pictures": {"outputFile": str(tmp_path / "count")}}
    given = {"parameterValues": {"name": "step"}, "artifacts": {"images": item(pictures)}}
    assert launch.main(["greet", json.dumps({"inputs": given, "outputs": outputs})]) == 0
    assert (tmp_path / "card").read_text() == "hello step: a.png\n" and (tmp_path / "count").read_text() == "1"
    metadata = json.loads((tmp_path / "output.json").read_text())["artifacts"]["card"]["artifacts"][0]["metadata"]
    assert metadata["kind"] == "card" and metadata["producer"].endswith(" greet")


def test_the_ports_of_an_invented_verb_are_checked(pictures, tmp_path, capsys):
    message = {"inputs": {}, "outputs": {"outputFile": str(tmp_path / "output.json")}}
    assert launch.main(["greet", json.dumps(message)]) == 2
    assert "greet: EXECUTOR_INPUT_JSON has no artifact for input images" in capsys.readouterr().err


def test_a_verb_may_take_no_spec(monkeypatch, capsys):
    """Its command stands in cli.py; there is no schema of it."""
    monkeypatch.setitem(VERBS, "look", Verb("look", "Looks.", "LEFT RIGHT", action="nowhere", spec=""))
    assert called("schema", "look") == 2
    assert "look: takes no spec" in capsys.readouterr().err
    assert called("look") == 2, "no command is made of it"
    for command in ("default_specs", "schema"):
        assert called(command, "predict") == 2
        assert "predict has no spec; see `depth_net predict --help`" in capsys.readouterr().err


@pytest.mark.parametrize("verb", VERBS)
def test_every_name_in_a_row_is_of_something(verb):
    """A typing error in a row would be a port, a key or a module that nobody reads."""
    from importlib.util import find_spec

    from stereo_core.spec import spec_class
    from stereo_core.spec.paths import walk
    from stereo_core.verbs import required

    row = VERBS[verb]
    assert find_spec(row.action)
    known = {path for path, _ in walk(spec_class(verb))}
    keys = {*row.parameters.values(), *row.step_keys, *(key.removesuffix("[]") for key in row.input_keys.values())}
    keys |= {f"dataset.{split}_dataset" for split in required(row.splits)} | set(row.sections)
    keys |= {row.output_file} - {""}
    assert {key for key in keys if not any(path == key or path.startswith(f"{key}.") for path in known)} == set()
    assert set(row.input_keys) | set(row.one_of) <= set(required(row.inputs))
