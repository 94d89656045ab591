"""A parser for Argo's expressions (`{{=...}}`, `when`, `fromExpression`, `retryStrategy.expression`).

It checks the syntax and finds the names and functions that an expression uses.
"""

from __future__ import annotations

import re

_TOKEN = re.compile(
    r"""\s*(?:(?P<text>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")|(?P<number>\d+(?:\.\d+)?(?:[eE][-+]?\d+)?)"""
    r"""|(?P<name>[A-Za-z_]\w*)|(?P<sign>\|\||&&|[=!<>]=|[-+*/<>!?:.,()\[\]]))"""
)
_BETWEEN = {"||", "&&", "==", "!=", "<=", ">=", "<", ">", "+", "-", "*", "/", "in", "contains", "matches"}
_VALUES = {"true", "false", "nil"}


class Expression:
    """An expression's dotted `names` (`a['b']` is `a.b`) and the `functions` that it calls.

    Raises:
        SyntaxError: the text is not an expression.
    """

    def __init__(self, text: str):
        self.names: set[str] = set()
        self.functions: set[str] = set()
        self._tokens: list[tuple[str, str]] = []
        position, text = 0, text.rstrip()
        while position < len(text):
            match = _TOKEN.match(text, position)
            if not match or not match.lastgroup:
                raise SyntaxError(f"unexpected text {text[position : position + 20]!r}")
            self._tokens.append((match.lastgroup, match[match.lastgroup]))
            position = match.end()
        self._choice()
        if self._tokens:
            raise SyntaxError(f"unexpected {self._tokens[0][1]!r} after the end of the expression")

    def _next_is(self, *wanted: str) -> bool:
        return bool(self._tokens) and self._tokens[0][0] != "text" and self._tokens[0][1] in wanted

    def _take(self, *wanted: str) -> tuple[str, str]:
        if not self._tokens or (wanted and not self._next_is(*wanted)):
            found = repr(self._tokens[0][1]) if self._tokens else "the end of the expression"
            raise SyntaxError(f"expected {' or '.join(wanted) or 'a value'}, found {found}")
        return self._tokens.pop(0)

    def _choice(self) -> None:
        self._sum()
        if self._next_is("?"):
            self._take("?")
            self._choice()
            self._take(":")
            self._choice()

    def _sum(self) -> None:
        """Values with operators between them. Operator precedence does not matter here."""
        self._value()
        while self._next_is(*_BETWEEN):
            self._take()
            self._value()

    def _value(self) -> None:
        while self._next_is("!", "-"):
            self._take()
        kind, token = self._take()
        if token == "(" and kind == "sign":
            self._choice()
            self._take(")")
        elif token == "[" and kind == "sign":
            self._items("]")
        elif kind == "name":
            self._named(token)
        elif kind == "sign":
            raise SyntaxError(f"expected a value, found {token!r}")

    def _items(self, end: str) -> None:
        while not self._next_is(end):
            self._choice()
            if not self._next_is(end):
                self._take(",")
        self._take(end)

    def _named(self, name: str) -> None:
        while self._next_is(".", "["):
            if self._take()[1] == ".":
                name += f".{self._take()[1]}"
            else:
                name += f".{self._take()[1].strip(chr(39) + chr(34))}"
                self._take("]")
        if self._next_is("("):
            self._take("(")
            self.functions.add(name)
            self._items(")")
        elif name not in _VALUES:
            self.names.add(name)
