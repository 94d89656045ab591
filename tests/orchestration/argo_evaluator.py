"""Argo's references and expressions, evaluated: `{{name}}`, `{{=expression}}`, and expressions that stand alone.

References are replaced as Argo does it: in the JSON text of a task or template, from `{{` to the next `}}`; `{{=...}}`
is evaluated (the part of the expression language that the manifests use). A template has them replaced twice, first
what is known of the workflow, then its inputs; an expression stands as it is where one of its names is not known.
"""

from __future__ import annotations

import hashlib
import json
import operator
import re

TOKEN = re.compile(
    r"""\s*('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?(?:e-?\d+)?|\|\||&&|[=!<>]=|[A-Za-z_]\w*|[\[\](),.?:+<>!])"""
)
COMPARE = {"==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt}
COMPARE |= {">=": operator.ge, "in": lambda a, b: a in b, "contains": lambda a, b: b in a}
COMPARE["matches"] = lambda a, b: re.search(b, a) is not None


class Expression:
    """`inputs.parameters['a'] == '' ? '[]' : f(...) + 'x'`, over a flat mapping of dotted names to texts.

    What is not needed for the value (the other choice, what comes after a false `&&`) need not be in the mapping.
    """

    def __init__(self, text: str, values: dict[str, str]):
        self.values, self.tokens, self.needed, position = values, [], True, 0
        self.unknown: set[str] = set()
        while text[position:].strip():
            match = TOKEN.match(text, position)
            assert match, f"no token at {text[position : position + 30]!r}"
            self.tokens.append(match[1])
            position = match.end()

    def take(self, *wanted: str) -> str:
        token = self.tokens.pop(0) if self.tokens else ""
        assert not wanted or token in wanted, f"{token!r} instead of {wanted}"
        return token

    def next_is(self, token: str) -> bool:
        return self.tokens[:1] == [token]

    def whole(self):
        value = self.choice()
        assert not self.tokens, f"{self.tokens} is left over"
        return value

    def unless(self, needed: bool, part):
        """The value of a part, which may be without one where it is not needed."""
        before, self.needed = self.needed, self.needed and bool(needed)
        value = part()
        self.needed = before
        return value

    def choice(self):
        value = self.either()
        if not self.next_is("?"):
            return value
        self.take("?")
        yes = self.unless(value, self.choice)
        self.take(":")
        no = self.unless(not value, self.choice)
        return yes if value else no

    def either(self):
        value = self.both()
        while self.next_is("||"):
            self.take("||")
            right = self.unless(not value, self.both)
            value = value or right
        return value

    def both(self):
        value = self.comparison()
        while self.next_is("&&"):
            self.take("&&")
            right = self.unless(value, self.comparison)
            value = value and right
        return value

    def comparison(self):
        value = self.sum()
        if self.tokens and self.tokens[0] in COMPARE:
            compare = COMPARE[self.take()]
            right = self.sum()
            return compare(value, right) if self.needed else None
        return value

    def sum(self):
        value = self.atom()
        while self.next_is("+"):
            self.take("+")
            right = self.atom()
            value = value + right if self.needed else None
        return value

    def items(self, end: str) -> list:
        found = []
        while not self.next_is(end):
            found.append(self.choice())
            if self.next_is(","):
                self.take(",")
        self.take(end)
        return found

    def atom(self):
        token = self.take()
        if token.startswith("'"):
            return re.sub(r"\\(.)", r"\1", token[1:-1])
        if token[0] in '"-0123456789' or token in ("true", "false"):
            return json.loads(token)
        if token == "[":
            return self.items("]")
        if token == "!":
            return not self.atom()
        if token == "(":
            value = self.choice()
            self.take(")")
            return value
        name = token
        while self.tokens[:1] in (["."], ["["], ["("]):
            if self.next_is("("):
                self.take("(")
                given = self.items(")")
                return FUNCTIONS[name](*given) if self.needed else None
            if self.take(".", "[") == ".":
                name += "." + self.take()
            else:
                name += "." + self.take()[1:-1]
                self.take("]")
        self.unknown |= {name} - self.values.keys()
        return self.values[name] if self.needed else None


def go_json(value) -> str:
    """Go's json.Marshal: keys in order, no spaces, HTML's characters escaped."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def jsonpath(text: str, path: str):
    value = json.loads(text)
    for name, index in re.findall(r"\.(\w+)|\[(\d+)\]", path.removeprefix("$")):
        value = value[name] if name else value[int(index)]
    return value


def replace_all(pattern: str, text: str, replacement: str) -> str:
    return re.sub(pattern, re.sub(r"\$\{(\d+)\}", r"\\\1", replacement), text)


FUNCTIONS = {
    "toJson": go_json,
    "jsonpath": jsonpath,
    "asInt": int,
    "asFloat": float,
    "sprig.sha256sum": lambda text: hashlib.sha256(text.encode()).hexdigest(),
    "sprig.regexReplaceAll": replace_all,
    "sprig.replace": lambda old, new, text: text.replace(old, new),
}


def substituted(part, values: dict[str, str]):
    """A part of a manifest with its references replaced; a value is put into JSON text, escaped."""

    def value(match: re.Match) -> str:
        tag = json.loads(f'"{match[1]}"')
        found = Expression(tag[1:], values).whole() if tag.startswith("=") else values[tag]
        found = json.dumps(found) if isinstance(found, bool) else found
        assert isinstance(found, str), f"{tag} is no text"
        return json.dumps(found)[1:-1]

    return json.loads(re.sub(r"\{\{(.*?)\}\}", value, json.dumps(part), flags=re.DOTALL))


def resolved(part, values: dict[str, str]):
    """As `substituted`, with what is not known left as it is; an expression needs all its names, used or not."""

    def value(match: re.Match) -> str:
        tag = json.loads(f'"{match[1]}"')
        if tag.startswith("="):
            expression = Expression(tag[1:], values)
            expression.unless(False, expression.whole)
            known = not expression.unknown
        else:
            known = tag in values
        return json.dumps(substituted(json.loads(f'"{match[0]}"'), values))[1:-1] if known else match[0]

    return json.loads(re.sub(r"\{\{(.*?)\}\}", value, json.dumps(part), flags=re.DOTALL))
