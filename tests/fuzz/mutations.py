"""Strategies that damage what our own writers made: bytes, texts, and trees of JSON or YAML."""

from __future__ import annotations

import copy
import io
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

PIECES = [
    *(
        b"\0",
        b"\n",
        b" ",
        b"\t",
        b"#",
        b"'",
        b'"',
        b"{",
        b"[",
        b"(",
        b")",
        b",",
        b":",
        b"%",
        b"\xff\xfe",
        b"\xef\xbb\xbf",
    ),
    *(b"0", b"-1", b"1e999", b"nan", b"inf", b"1e-320", b"0.5", b"2147483648", b"18446744073709551616", b"9" * 5000),
    *(b"\x7f\xff\xff\xff", b"\xff\xff\xff\xff", b"\x80\0\0\0", b"\xff\xff\xff\x7f", b"\0\0\0\0", b"\xff" * 8),
    *(
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b"[" * 1100,
        b"../",
        b"None",
        b"&a [*a]",
        b"s3://",
        b"\xc3\x28",
        "\u0663\u2028\u00b2".encode(),
    ),
]
"""Bytes that mean something to a reader, or too much."""

JUNK = [
    *(None, True, False, 0, -1, 2**31, 2**63, 10**400, 0.5, 1e308, float("inf"), float("nan")),
    *(
        "",
        "x",
        "\0",
        "../x",
        "${a}",
        "~/",
        "{{$.x}}",
        "1",
        "9" * 5000,
        "\ud800",
        [],
        [[]],
        {},
        {"": None},
        [1],
        {"a": 1},
    ),
]
"""Values that stand where others should."""

KINDS = ("set", "flip", "cut", "drop", "insert", "repeat", "over")
EDIT = 6  # bytes that say what is edited: one draw for all edits is ten times as fast as one for each


BATCH = 20  # inputs in an example of `make fuzz`: Hypothesis spends more on an example than most readers on an input


def inputs(*strategies: st.SearchStrategy) -> Callable:
    """`given` for a function that reads one input."""

    def decorated(attempt: Callable) -> Callable:
        count = BATCH if settings.get_current_profile_name() == "long" else 1

        @settings(max_examples=-(-settings().max_examples // count))
        @given(st.lists(st.tuples(*strategies), min_size=count, max_size=count))
        def attempts(batch: list[tuple]) -> None:
            for one in batch:
                attempt(*one)

        return attempts

    return decorated


def damaged(seeds: list[bytes]) -> st.SearchStrategy[bytes]:
    """One of the seeds with up to six edits."""
    return st.builds(_edited, st.sampled_from(seeds), st.binary(min_size=EDIT, max_size=6 * EDIT))


def damaged_text(seeds: list[str]) -> st.SearchStrategy[str]:
    """The same of texts; half a character becomes a surrogate, as in a command line."""
    return damaged([seed.encode() for seed in seeds]).map(lambda data: data.decode("utf-8", "surrogateescape"))


def _edited(seed: bytes, said: bytes) -> bytes:
    data = bytearray(seed)
    for begin in range(0, len(said) - EDIT + 1, EDIT):
        kind, where, value, *place = said[begin : begin + EDIT]
        at = _place(len(data), int.from_bytes(place), where % 3)
        _edit(data, KINDS[kind % len(KINDS)], at, value)
    return bytes(data)


def _edit(data: bytearray, kind: str, at: int, value: int) -> None:
    length, piece = value % 16 + 1, PIECES[value % len(PIECES)]
    if kind == "set":
        data[at : at + 1] = bytes([value])
    elif kind == "flip" and at < len(data):
        data[at] ^= 1 << value % 8
    elif kind == "cut":
        del data[at:]
    elif kind == "drop":
        del data[at : at + length]
    elif kind == "insert":
        data[at:at] = piece
    elif kind == "repeat":
        data[at:at] = data[at : at + length] * (value % 5 + 1)
    elif kind == "over":
        data[at : at + len(piece)] = piece


def _place(size: int, place: int, where: int) -> int:
    """Headers stand at the beginning, and a zip file's at its end."""
    if where == 0:
        return place % (size + 1)
    return place % min(size + 1, 128) if where == 1 else size - place % min(size + 1, 256)


# -- what a checksum would guard --------------------------------------------------------------------------------------


def repaired_png(data: bytes) -> bytes:
    """The chunks with checksums that fit, so that what stands in them is read."""
    parts, position = [data[:8]], 8
    while position + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, position)
        body = data[position + 4 : position + 8 + length]
        parts.append(struct.pack(">I", max(len(body) - 4, 0)) + body + struct.pack(">I", zlib.crc32(body)))
        position += 12 + length
    return b"".join(parts)


def zipped(name: str, others: dict[str, bytes] | None = None, how: int = zipfile.ZIP_STORED):
    """A function that puts bytes as `name` into a zip file beside `others`."""

    def put(data: bytes) -> bytes:
        with zipfile.ZipFile(file := io.BytesIO(), "w", how) as archive:
            for entry, content in (others or {}).items() | {(name, data)}:
                archive.writestr(entry, content)
        return file.getvalue()

    return put


# -- trees ------------------------------------------------------------------------------------------------------------


@st.composite
def damaged_tree(draw, trees: list[Any]) -> Any:
    """One of the trees with up to four of its values replaced, taken away, doubled, exchanged or renamed."""
    tree = {"root": copy.deepcopy(draw(st.sampled_from(trees)))}
    for _ in range(draw(st.integers(1, 4))):
        places = list(_places(tree))
        holder, key = places[draw(st.integers(0, len(places) - 1))]
        kind = draw(st.sampled_from(("replace", "replace", "remove", "wrap", "move", "rename")))
        if kind == "replace":
            holder[key] = copy.deepcopy(draw(st.sampled_from(JUNK)))
        elif kind == "wrap":
            holder[key] = draw(st.sampled_from(([holder[key]], {"a": holder[key]}, [holder[key]] * 2)))
        elif kind == "move":
            other, from_ = places[draw(st.integers(0, len(places) - 1))]
            holder[key] = copy.deepcopy(other[from_])
        elif holder is not tree:
            value = holder.pop(key)
            if kind == "rename" and isinstance(holder, dict):
                holder[draw(st.sampled_from(("x", "", "a.b", f"{key}2")))] = value
    return tree["root"]


def _places(tree: Any):
    """Every value's holder and key."""
    for key, value in list(tree.items() if isinstance(tree, dict) else enumerate(tree)):
        yield tree, key
        if isinstance(value, dict | list):
            yield from _places(value)
