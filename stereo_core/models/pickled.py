"""Read weights and settings of NVlabs' pickled module (`torch.save(model)`) without running code from it."""

from __future__ import annotations

import pickletools
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from stereo_core.errors import ModelError
from stereo_core.models.pickle_machine import (
    MAX_OBJECTS,
    ROOTS,
    Archive,
    Machine,
    Name,
    Record,
    Refused,
    check_entries,
    kind_of,
    pickle_of,
    shown,
)

MAX_NAME = 500  # characters of a weight's name; the published network's have up to 70
MAX_DEPTH = 20  # nesting depth of settings


def read_module(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a module that `torch.save` wrote as a zip file, without running code from it.

    Returns:
        The module's state dict, on the CPU, under the names and in the order of `module.state_dict()`; and its
        settings: the scalar attributes of the module, overridden by those of its `args`.

    Raises:
        ModelError: the file is missing, truncated, damaged or no zip file; or its pickle contains anything but tensors,
            settings and objects of the network's, timm's, OmegaConf's and torch.nn's classes. The message names what
            was found.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as file:
            root = Machine(Archive(file, path.stat().st_size)).run()
            if not isinstance(root, Record):
                raise Refused(f"the file holds {kind_of(root)}, not a network")
            return _state_dict(root), _settings(root)
    except Refused as error:
        raise ModelError(
            f"{path}: the pickled module is damaged, or loading it could run code from the file: {error}. If you trust "
            "the file, load it and save only the weights: torch.save({'state_dict': model.state_dict()}, path)"
        ) from error
    except (zipfile.BadZipFile, EOFError, NotImplementedError, UnicodeDecodeError) as error:
        raise ModelError(
            f"{path}: the file is truncated, damaged or no zip file of torch.save ({error}); copy it again"
        ) from error
    except OSError as error:
        raise ModelError(f"{path}: cannot read the file: {error.strerror or error}") from error


def is_module(path: Path) -> bool:
    """Whether the file is a zip whose pickle begins with an object of one of the classes that `read_module` knows."""
    try:
        with zipfile.ZipFile(path) as file:
            check_entries(file, path.stat().st_size)
            with file.open(pickle_of(file)) as content:
                head = content.read(MAX_NAME)
        opcodes = ((code.name, argument) for code, argument, _ in pickletools.genops(head) if code.name != "PROTO")
        opcode, name = next(opcodes)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, OSError, ValueError, Refused):
        return False
    return opcode == "GLOBAL" and name.startswith(ROOTS)


def _state_dict(root: Record) -> dict[str, Tensor]:
    """What `module.state_dict()` would give: parameters, persistent buffers, then the submodules."""
    state: dict[str, Tensor] = {}
    met = 0
    todo = [("", root)]
    while todo:
        prefix, module = todo.pop()
        parts = [_part(prefix, module, name) for name in ("_parameters", "_buffers", "_modules")]
        met += 1 + sum(map(len, parts))
        if met > MAX_OBJECTS:  # a module may contain itself
            raise Refused(f"it has more than {MAX_OBJECTS} modules and tensors")
        parameters, buffers, children = parts
        passing = _not_saved(prefix, module)
        kept = {name: value for name, value in buffers.items() if name not in passing}
        for name, value in (parameters | kept).items():
            _check_entry(prefix, name, value, Tensor)
            if value is not None:
                state[prefix + name] = value
        for name, child in reversed(children.items()):
            _check_entry(prefix, name, child, Record)
            if child is not None:
                todo.append((f"{prefix}{name}.", child))
    return state


def _part(prefix: str, module: Record, name: str) -> dict[str, Any]:
    part = module.state.get(name)
    if not isinstance(part, dict):
        raise Refused(f"{prefix[:-1] or 'what the file holds'} is {kind_of(module)} without {name}, so it is no module")
    return part


def _not_saved(prefix: str, module: Record) -> list[str]:
    names = module.state.get("_non_persistent_buffers_set", [])
    if not isinstance(names, list) or len(names) > MAX_NAME or not all(isinstance(name, str) for name in names):
        raise Refused(f"its {prefix}_non_persistent_buffers_set is no set of names")
    return names


def _check_entry(prefix: str, name: str, value: object, wanted: type) -> None:
    if not name or "." in name or len(prefix) + len(name) > MAX_NAME:
        raise Refused(f"{shown(prefix + name[:MAX_NAME])} is not a name that PyTorch gives to a weight or layer")
    if value is not None and not isinstance(value, wanted):
        raise Refused(f"{shown(prefix + name)} is {kind_of(value)}, not a {'module' if wanted is Record else 'tensor'}")


def _settings(root: Record) -> dict[str, Any]:
    own = {name: value for name, value in root.state.items()
           if type(value) in (bool, int, float, str) and name != "training" and not name.startswith("_")}  # fmt: skip
    arguments = _unwrapped(root.state.get("args", {}), iter(range(MAX_OBJECTS)))
    if not isinstance(arguments, dict):
        raise Refused(f"args is {kind_of(arguments)}, not a mapping of settings")
    return own | arguments


def _unwrapped(value: object, room: Iterator[int], depth: int = 0) -> object:
    """A setting unwrapped from OmegaConf's nodes."""
    if depth > MAX_DEPTH or next(room, None) is None:
        raise Refused(f"its settings have more than {MAX_OBJECTS} values, or more than {MAX_DEPTH} levels")
    match value:
        case Record(state={"_content": content}):
            return _unwrapped(content, room, depth + 1)
        case Record(state={"_val": content}):
            return _unwrapped(content, room, depth + 1)
        case Name():
            return str(value)
        case None | bool() | int() | float() | str():
            return value
        case list() | tuple():
            return [_unwrapped(item, room, depth + 1) for item in value]
        case dict():
            return {key: _unwrapped(item, room, depth + 1) for key, item in value.items()}
    raise Refused(f"its settings contain {kind_of(value)}")
