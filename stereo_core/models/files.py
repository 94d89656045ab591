"""Read weight files of any origin without running code from them."""

from __future__ import annotations

import functools
import logging
import pickle
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stereo_core.errors import ModelError
from stereo_core.files import LFS_POINTER, is_lfs_pointer, sha256_of
from stereo_core.models.pickle_machine import Refused, check_entries, pickle_of
from stereo_core.models.pickled import is_module, read_module
from stereo_core.spec.choice import NoChoice, chosen
from stereo_core.values import from_json

LOG = logging.getLogger(__name__)
AVERAGES = "ema_state_dict"  # our trainer's averaged weights, under the names of `state_dict`
SETTINGS = "hyper_parameters"  # beside the weights; in a safetensors file as JSON
PREFIXES = ("model.", "module.", "_orig_mod.")
ENGINE_SUFFIXES = (".engine", ".plan", ".trt", ".rtx")
ENCRYPTED_SUFFIXES = (".tlt", ".etlt")
# Numbers that trainers store beside the weights (best metric and the like).
_scalar = np.float64(0).__reduce__()[0]
HARMLESS = [np.dtype, *(type(np.dtype(name)) for name in ("float64", "float32", "int64"))]
HARMLESS += [(_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]


@dataclass
class WeightFile:
    """The tensors of a file with prefix-free names, and what else the file contains."""

    path: Path
    state: dict[str, Tensor]
    layout: str  # nvlabs, lightning, bare, module, safetensors
    prefix: str = ""  # the removed prefix of all names, e.g. "module."
    # epoch, global_step, hyper_parameters ...; settings of a module
    extra: dict[str, Any] = field(default_factory=dict)


def read_weights(path: str | Path) -> WeightFile:
    """Read a PyTorch or safetensors file.

    Layouts: {"model": ...} (NVlabs), {"state_dict": ...} (Lightning, TAO), a bare state dict, safetensors; each with
    or without the prefixes of Lightning, DataParallel and torch.compile; and NVlabs' whole pickled module. If our
    trainer averaged the weights (`train.ema_decay`), the averages are returned.

    Args:
        path: a file, "starter", or a training folder with a choice (`results/train@best`).

    Raises:
        ModelError: the file is missing, truncated or damaged; it is an engine, an ONNX graph, encrypted or anything
            else but a checkpoint; it contains pickled objects instead of weights.
    """
    path = weights_file(path)
    check_digest(path)
    if _kind(path) == "torch" and is_module(path):
        state, settings = read_module(path)
        return WeightFile(path, state, "module", extra={"settings": settings})
    content = _read_safetensors(path) if _kind(path) == "safetensors" else read_torch(path)
    layout, state, extra = _open_envelope(path, content)
    if _kind(path) == "safetensors":
        layout = "safetensors"
    state, prefix = _strip_prefixes(state)
    return WeightFile(path, state, layout, prefix, extra)


def weights_file(path: str | Path) -> Path:
    """The file that a path, the text "starter" or a choice names; ModelError if the choice matches no file."""
    try:
        return chosen(path)
    except NoChoice as error:
        raise ModelError(str(error)) from None


def sidecar_of(path: Path) -> Path:
    """The side-car of a checkpoint, with its digest and metrics: `<file>.json` beside the file."""
    path = path.resolve()  # dn_model_best.pth and dn_model_latest.pth are links
    return path.with_name(f"{path.name}.json")


def read_sidecar(path: Path, kind: str = "checkpoint") -> dict[str, Any]:
    """The side-car of a checkpoint, or of a file of another kind; empty if it has none of this kind."""
    try:
        noted = from_json(sidecar_of(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return noted if isinstance(noted, dict) and noted.get("kind") == kind else {}


def check_digest(path: Path) -> None:
    """Raise ModelError if a checkpoint differs from what our trainer wrote; files without a side-car are not
    checked."""
    noted = read_sidecar(path).get("sha256")
    if noted and path.is_file() and digest(path) != noted:
        raise ModelError(
            f"{path}: the file is damaged: its SHA-256 differs from {sidecar_of(path).name}; copy it again or use "
            "another "
            f"checkpoint (if you replaced the file yourself, delete {sidecar_of(path).name})"
        )


def digest(path: str | Path) -> str:
    """SHA-256 of a file, cached until the file changes: a resumed training opens its checkpoint, of gigabytes, several
    times and checks it each time."""
    path = Path(path).resolve()
    return _digest(path, *_identity(path))


@functools.lru_cache(maxsize=4)
def _digest(path: Path, *identity: int) -> str:
    return sha256_of(path)


def _identity(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_ino, found.st_size, found.st_ctime_ns


def _kind(path: Path) -> str:
    """ "torch" or "safetensors", by the first bytes; ModelError names what any other file looks like."""
    if not path.exists():
        raise ModelError(f"{path}: no such file")
    if path.is_dir():
        raise ModelError(f"{path}: this is a folder; name the checkpoint file in it")
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(16)
    suffix = path.suffix.lower()
    if suffix in ENCRYPTED_SUFFIXES:
        raise ModelError(
            f"{path}: the TAO file is encrypted; export it unencrypted (.pth) with the container that wrote it"
        )
    if not head:
        raise ModelError(f"{path}: the file is empty")
    if is_lfs_pointer(head):
        raise ModelError(f"{path}: {LFS_POINTER}")
    if head.startswith((b"PK\x03\x04", b"\x80")):
        return "torch"
    if head[8:9] == b"{":
        if int.from_bytes(head[:8], "little") + 8 > size:
            raise ModelError(f"{path}: the file is truncated or damaged (safetensors header); copy it again")
        return "safetensors"
    if suffix in ENGINE_SUFFIXES or head[:4] in (b"ftrt", b"ptrt") or read_sidecar(path, "engine"):
        raise ModelError(
            f"{path}: this is an engine, not a checkpoint; name it in evaluate.trt_engine or inference.trt_engine"
        )
    if suffix == ".onnx" or head[:1] == b"\x08":
        raise ModelError(
            f"{path}: this is an ONNX file, not a checkpoint; name the checkpoint that it was exported from, or build "
            "an engine with `depth_net gen_trt_engine` and name that in evaluate.trt_engine or inference.trt_engine"
        )
    raise ModelError(f"{path}: not a checkpoint (neither a PyTorch nor a safetensors file); name one")


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            settings = (file.metadata() or {}).get(SETTINGS)
        return {"model": state} | ({SETTINGS: from_json(settings)} if settings else {})
    except (SafetensorError, ValueError) as error:
        raise ModelError(f"{path}: the file is truncated or damaged ({error}); copy it again") from error


def write_torch(content: Any, path: Path) -> None:
    """`torch.save`, except that a file that cannot be written raises the OSError, which PyTorch hides behind a
    RuntimeError about its own archive."""
    with path.open("wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:
            raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None


def read_torch(path: Path, map_location: object = "cpu", mmap: bool = False) -> dict[str, Any]:
    """What `torch.save` wrote: weights and plain values, no code.

    Args:
        path: the file.
        map_location, mmap: as torch.load has them.

    Raises:
        ModelError: it is no such file, it would inflate, it is damaged, or it holds other objects.
    """
    _check_room(path)
    try:
        with torch.serialization.safe_globals(HARMLESS):
            content = torch.load(path, map_location=map_location, weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        if "truncated" in str(error):
            raise ModelError(f"{path}: the file is truncated or damaged; copy it again") from error
        raise ModelError(
            f"{path}: the file contains pickled Python objects; loading them would run code from the file. In the code "
            "that wrote it, save only the weights: torch.save({'state_dict': model.state_dict()}, path)"
        ) from error
    except Exception as error:  # PyTorch does not document which errors its reader raises
        if "TorchScript" in str(error):
            raise ModelError(
                f"{path}: this is a TorchScript program, not a checkpoint; name a file of weights"
            ) from error
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(f"{path}: the file is truncated or damaged ({reason}); copy it again") from error
    if not isinstance(content, dict):
        raise ModelError(
            f"{path}: the file contains a {type(content).__name__}, not a dict of weights; name a checkpoint"
        )
    return content


def _check_room(path: Path) -> None:
    """Reject a zip file of another program, or a compressed one, which PyTorch would inflate without a limit."""
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            return  # a file of PyTorch before 1.6
    try:
        with zipfile.ZipFile(path) as file:
            pickle_of(file)
            check_entries(file, path.stat().st_size)
    except Refused as error:
        raise ModelError(f"{path}: {error}; copy it again, or name a checkpoint that torch.save wrote") from None
    except (zipfile.BadZipFile, EOFError, NotImplementedError, ValueError, OSError) as error:
        raise ModelError(f"{path}: the file is truncated or damaged ({error}); copy it again") from error


def _open_envelope(path: Path, content: dict[str, Any]) -> tuple[str, dict[str, Tensor], dict[str, Any]]:
    if content.get("state_dict_encrypted"):
        raise ModelError(f"{path}: the weights are encrypted; export them unencrypted with the container that wrote it")
    layouts = {"state_dict": "lightning", "model": "nvlabs"}
    key = next((key for key in layouts if isinstance(content.get(key), dict)), None)
    state = content if key is None else content[key]
    layout = layouts.get(key, "bare")
    extra = {} if key is None else {name: value for name, value in content.items() if name != key}
    if layout == "lightning":  # a Lightning module may also contain its loss, averaged weights ...
        state = {name: value for name, value in state.items() if name.startswith("model.")} or state
    if averages := extra.pop(AVERAGES, None):
        LOG.info("%s: using the weights averaged in training (train.ema_decay)", path)
        state = state | averages
    state = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    if not state:
        raise ModelError(
            f"{path}: the file contains no weights, only the keys {first_names(content)}; name a checkpoint"
        )
    return layout, state, extra


def _strip_prefixes(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    found = ""
    while True:
        prefix = next((p for p in PREFIXES if all(name.startswith(p) for name in state)), None)
        if prefix is None:
            return state, found
        state = {name.removeprefix(prefix): value for name, value in state.items()}
        found += prefix


def first_names(names: Iterable[str], count: int = 5) -> str:
    """The first few names of a collection, for a message."""
    names = [str(name) for name in names]
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")
