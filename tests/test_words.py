"""Counts, sizes, guesses and examples, as users read them."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest
import stereo_components
import stereo_pipelines

import stereo_core
from stereo_core.values import counted, near, size_text
from stereo_core.verbs import VERBS

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", *(str(path.relative_to(ROOT)) for room in ("docs", "components", "pipelines", "manifests")
                        for path in sorted((ROOT / room).rglob("*.md")))]  # fmt: skip

NOUNS = "images|files|epochs|pairs|samples|scenes|trials|checkpoints|evaluations|steps|nodes|GPUs|entries|objects"


def test_one_is_no_plural():
    assert [counted(n, "image") for n in (0, 1, 2)] == ["0 images", "1 image", "2 images"]
    assert [counted(n, "entry", "entries") for n in (1, 3)] == ["1 entry", "3 entries"]


def test_a_size_is_width_x_height():
    assert size_text((480, 640)) == "640 x 480"


def test_only_what_is_near_is_guessed():
    assert near("evalute", ["evaluate", "export"]) == "evaluate" and near("epochs", ["export"]) is None


def beginnings(node: ast.JoinedStr) -> list[str]:
    """What stands after each value of an f-string that is a plain number to it."""
    found = []
    for value, text in zip(node.values, node.values[1:], strict=False):
        if isinstance(value, ast.FormattedValue) and isinstance(text, ast.Constant) and value.format_spec is None:
            found.append(str(text.value))
    return found


def test_messages_that_count_go_through_the_one_helper():
    """A message that begins with a number and a plural says "1 images" one day."""
    wrong = []
    for package in (stereo_core, stereo_components, stereo_pipelines):
        for file in Path(package.__file__).parent.rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    first = isinstance(node.values[0], ast.FormattedValue) if node.values else False
                    text = beginnings(node)[:1] if first else []
                    wrong += [f"{file}:{node.lineno}" for one in text if re.match(rf" ({NOUNS})\b", one)]
    assert wrong == []


def commands(page: str) -> list[str]:
    """The commands in a page's blocks of code, those of several lines as one."""
    blocks = re.findall(r"^```(?:|sh|bash|console)\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [
        line.partition(" #")[0]
        for line in lines
        if re.match(r"(\S+=\S+ )*(\S*/)?(depth_net|stereo-pipelines|pip)\b", line)
    ]


def unquoted(command: str) -> str:
    return re.sub(r"'[^']*'|\"[^\"]*\"", "", command)


@pytest.mark.parametrize("page", PAGES)
def test_examples_are_quoted_so_that_every_shell_takes_them(page):
    """zsh ends a command at a bracket or star that matches no file; bash spreads braces."""
    found = commands((ROOT / page).read_text(encoding="utf-8"))
    assert [one for one in found if re.search(r"[][*?{}()]", unquoted(one))] == []
    assert all(shlex.split(one) for one in found)


@pytest.mark.parametrize("verb", VERBS)
def test_the_examples_of_help_are_quoted_too(verb):
    assert not re.search(r"[][*?{}()]", unquoted(VERBS[verb].example))
