"""Names for Kubernetes, as the command line's options take them: a cluster refuses wrong ones late, or never."""

from __future__ import annotations

import re
from typing import Any

import click

_LABEL = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"


class Name(click.ParamType):  # type: ignore[type-arg] # not generic before click 8.4
    """A text of one form. An empty one, an option's default, stays empty.

    Args:
        pattern: What the whole text matches.
        longest: Most characters.
        form: The form in words.
    """

    name = "name"

    def __init__(self, pattern: str, longest: int, form: str) -> None:
        self._pattern, self._longest, self.form = re.compile(pattern), longest, form

    def fits(self, text: str) -> bool:
        return len(text) <= self._longest and bool(self._pattern.fullmatch(text))

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value)
        if text and not self.fits(text):
            self.fail(f"{text}: expected {self.form}.", param, ctx)
        return text


RESOURCE = Name(rf"{_LABEL}(\.{_LABEL})*", 253, "a name on Kubernetes: lower-case letters, digits, dashes and dots")
NAMESPACE = Name(_LABEL, 63, "a namespace: at most 63 lower-case letters, digits and dashes")
EXPERIMENT = Name(  # Katib appends the algorithm and makes it the name of a Service
    "[a-z]([-a-z0-9]*[a-z0-9])?", 40, "at most 40 lower-case letters, digits and dashes, a letter first"
)
IMAGE = Name(r"[\w./:@-]+", 1000, "an image name [REGISTRY/]NAME[:TAG][@sha256:...]")
