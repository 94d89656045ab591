"""Reads a pickle of `torch.save` without running code from it.

A pickle is a program for Python's unpickler, which imports and calls whatever the pickle names. This machine knows only
the opcodes that `torch.save` writes. It imports nothing, calls only its own methods, and turns every object into an
inert `Record`. Time and memory are bounded by the size of the file.
"""

from __future__ import annotations

import math
import pickletools
import zipfile
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

# The published network's pickle has 0.25 MiB and 722 tensors.
MAX_PICKLE = 2 << 20
MAX_OBJECTS = 20_000
MAX_DIMS = 8

# Classes of these modules become records. Several versions of the network's code wrote the published file.
ROOTS = ("core.", "foundation_stereo_ori.", "Utils.", "depth_anything.", "dinov2.", "dpt.", "timm.", "omegaconf.")
ROOTS += ("torch.nn.modules.", "typing.")
STORAGES = {
    "torch.FloatStorage": torch.float32,
    "torch.DoubleStorage": torch.float64,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.CharStorage": torch.int8,
}
DTYPES = ("torch.float32", "torch.float16", "torch.bfloat16")
TYPES = ("__builtin__.dict", "__builtin__.list", "__builtin__.long")  # only named, in OmegaConf's metadata
CALLS = ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter", "collections.OrderedDict",
         "collections.defaultdict", "__builtin__.set")  # fmt: skip
NAMES = {*STORAGES, *DTYPES, *TYPES, *CALLS}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}


class Refused(Exception):
    """The reason why a file is rejected."""


class Name(str):
    """A class or function that the pickle names. It is never imported."""


@dataclass(slots=True)
class Record:
    """An object of the pickle: the name of its class, and its attributes."""

    kind: Name
    state: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Storage:
    """Where a tensor's numbers are, according to the pickle."""

    kind: str
    key: str
    numel: int


def pickle_of(file: zipfile.ZipFile) -> str:
    found = [name for name in file.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(found) != 1:
        raise Refused(f"torch.save did not write it: the zip file has {len(found)} entries NAME/data.pkl, not one")
    return found[0]


def check_entries(file: zipfile.ZipFile, size: int) -> None:
    """Reject a zip file of `size` bytes whose contents would need more than that."""
    entries = file.infolist()
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
            raise Refused(f"its entry {shown(entry.filename)} is compressed or encrypted, which torch.save never does")
    if sum(max(entry.file_size, entry.compress_size) for entry in entries) > size:  # zipfile reads as much as either
        raise Refused(f"the sizes of its entries add up to more than the file's {size} bytes")


class Archive:
    """The zip file around the pickle. No entry is larger than the file itself."""

    def __init__(self, file: zipfile.ZipFile, size: int):
        check_entries(file, size)
        self._file = file
        self._sizes = {entry.filename: entry.file_size for entry in file.infolist()}
        self._root = pickle_of(file).removesuffix("data.pkl")
        self._storages: dict[str, tuple[Storage, Tensor]] = {}
        if self._sizes.get(f"{self._root}byteorder") == len("big"):
            raise Refused("its numbers are big-endian")

    def pickle(self) -> bytes:
        size = self._sizes[f"{self._root}data.pkl"]
        if size > MAX_PICKLE:
            raise Refused(
                f"its data.pkl has {size / 2**20:.1f} MiB; a stereo network's has at most {MAX_PICKLE >> 20} MiB"
            )
        return self._file.read(f"{self._root}data.pkl")

    def numbers(self, storage: Storage) -> Tensor:
        """A storage as a one-dimensional tensor; each entry of the zip file is read once."""
        if storage.key not in self._storages:
            self._storages[storage.key] = storage, self._read(storage)
        known, numbers = self._storages[storage.key]
        if known != storage:
            raise Refused(f"it describes the numbers of tensor data {shown(storage.key)} in two different ways")
        return numbers

    def _read(self, storage: Storage) -> Tensor:
        entry, dtype = f"{self._root}data/{storage.key}", STORAGES[storage.kind]
        size = self._sizes.get(entry, 0)
        if not size or size != storage.numel * dtype.itemsize:
            raise Refused(f"tensor data {shown(storage.key)} has {size} bytes, not {storage.numel} numbers of {dtype}")
        return torch.frombuffer(bytearray(self._file.read(entry)), dtype=dtype)


class Machine:
    """Runs the opcodes of one pickle. The cost of a step is bounded by its bytes in the pickle."""

    def __init__(self, archive: Archive):
        self._archive = archive
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []  # stacks below the open marks
        self._memo: dict[int, object] = {}
        self._tensors = 0

    def run(self) -> object:
        position = 0
        try:
            for opcode, argument, position in pickletools.genops(self._archive.pickle()):  # noqa: B007
                if opcode.name == "STOP":
                    return self._stack.pop()
                self._step(opcode.name, argument)
        except (ValueError, IndexError, KeyError) as error:
            raise Refused(f"its pickle is damaged near byte {position}") from error
        raise AssertionError("genops ends with STOP or an error")

    def _step(self, opcode: str, argument: Any) -> None:
        match opcode:
            case "PROTO":
                pass
            case "BINUNICODE" | "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT":
                self._push(argument)
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                self._push(CONSTANTS[opcode])
            case "EMPTY_TUPLE":
                self._push(())
            case "EMPTY_LIST":
                self._push([])
            case "EMPTY_DICT":
                self._push({})
            case "MARK":
                self._below.append(self._stack)
                self._stack = []
            case "TUPLE":
                self._push(tuple(self._since_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                self._push(tuple(self._pop(int(opcode[-1]))))
            case "APPEND":
                self._extend(self._pop(1))
            case "APPENDS":
                self._extend(self._since_mark())
            case "SETITEM":
                self._update(self._pop(2))
            case "SETITEMS":
                self._update(self._since_mark())
            case "BINPUT" | "LONG_BINPUT":
                self._memo[argument] = self._stack[-1]
            case "BINGET" | "LONG_BINGET":
                self._push(self._memo[argument])
            case "GLOBAL":
                self._push(_name(argument))
            case "BINPERSID":
                self._push(_storage(*self._pop(1)))
            case "REDUCE":
                self._push(self._call(*self._pop(2)))
            case "NEWOBJ":
                self._push(_new(*self._pop(2)))
            case "BUILD":
                _build(self._stack[-2], *self._pop(1))
            case _:
                raise Refused(f"it holds the pickle instruction {opcode}, which torch.save does not write")

    def _push(self, value: object) -> None:
        self._stack.append(value)

    def _pop(self, count: int) -> list[Any]:
        if len(self._stack) < count:
            raise IndexError("the stack is empty")
        items = self._stack[-count:]
        del self._stack[-count:]
        return items

    def _since_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._below.pop()
        return items

    def _extend(self, items: list[Any]) -> None:
        if not isinstance(target := self._stack[-1], list):
            raise Refused(f"it adds items to {kind_of(target)}, which is no list")
        target.extend(items)

    def _update(self, items: list[Any]) -> None:
        if not isinstance(target := self._stack[-1], dict):
            raise Refused(f"it adds items to {kind_of(target)}, which is no dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str):  # hashing nested tuples may take very long
                raise Refused(f"it has a dict with {kind_of(key)} as key")
            target[key] = value

    def _call(self, name: object, arguments: object) -> object:
        match name, arguments:
            case "torch._utils._rebuild_tensor_v2", (Storage() as storage, *view, bool(), dict(hooks)) if not hooks:
                return self._tensor(storage, *view)
            case "torch._utils._rebuild_parameter", (Tensor() as tensor, bool(), dict(hooks)) if not hooks:
                return tensor
            case "collections.OrderedDict", ():
                return {}
            case "collections.defaultdict", (Name(),):
                return {}
            case "__builtin__.set", (list(items),):
                return items
        if isinstance(name, Name) and name in CALLS:
            raise Refused(f"it calls {name} with arguments that torch.save does not write")
        raise Refused(f"it calls {kind_of(name)}")

    def _tensor(self, storage: Storage, *view: object) -> Tensor:
        self._tensors += 1
        if self._tensors > MAX_OBJECTS:
            raise Refused(f"it has more than {MAX_OBJECTS} tensors")
        numbers = self._archive.numbers(storage)
        match view:
            case int(offset), tuple(size), tuple(stride) if _fits(len(numbers), offset, size, stride):
                return numbers.as_strided(size, stride, offset)
        raise Refused(f"the shape of a tensor does not fit its tensor data {shown(storage.key)}")


def _fits(room: int, offset: int, size: tuple[Any, ...], stride: tuple[Any, ...]) -> bool:
    """Whether a view lies inside a storage of `room` numbers and has no more elements than it."""
    if not len(size) == len(stride) <= MAX_DIMS:
        return False
    if not all(type(n) is int and 0 <= n <= room for n in (offset, *size, *stride)):
        return False
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    return 0 < math.prod(size) <= room and last < room


def _name(argument: str) -> Name:
    name = argument.replace(" ", ".")
    if name not in NAMES and not name.startswith(ROOTS):
        raise Refused(f"it names {shown(name)}")
    return Name(name)


def _storage(identity: object) -> Storage:
    match identity:
        case ("storage", Name() as kind, str(key), str(), int(numel)) if kind in STORAGES:
            return Storage(str(kind), key, numel)
    raise Refused("it refers to data outside of the pickle that are not a tensor's numbers")


def _new(name: object, arguments: object) -> Record:
    if not isinstance(name, Name) or name in NAMES:
        raise Refused(f"it holds an object of {kind_of(name)}")
    if arguments != ():
        raise Refused(f"it holds an object of {shown(name)} with arguments, which no saved network has")
    return Record(name)


def _build(target: object, state: object) -> None:
    if not isinstance(target, Record):
        raise Refused(f"it sets attributes of {kind_of(target)}, which has none")
    if type(state) is not dict or target.state:
        raise Refused(f"the attributes of {shown(target.kind)} are no dict, or are set twice")
    target.state = state


def kind_of(value: object) -> str:
    if isinstance(value, Name):
        return shown(value)
    return shown(value.kind) if isinstance(value, Record) else f"a {type(value).__name__}"


def shown(name: str) -> str:
    """A name from the file for a message: shortened, and without terminal control characters."""
    short = name if len(name) <= 100 else f"{name[:100]}..."
    return short if short.isprintable() else ascii(short)
