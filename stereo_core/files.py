"""Atomic writes, links, unique names, and digests of files."""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
import os
import secrets
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from multiprocessing.pool import IMapIterator, ThreadPool
from pathlib import Path, PurePath

from stereo_core.cores import usable_cores
from stereo_core.locks import held

LFS_POINTER = "a Git LFS pointer, not the file itself; fetch the file with `git lfs pull`"


def is_lfs_pointer(head: bytes) -> bool:
    """Whether a file that begins with `head` is a Git LFS pointer: the real file has not been fetched."""
    return head.startswith(b"version https:/")


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`. On success it is synced and renamed to `path`; on an error it is removed.
    An OSError of the system names a file, `path` if it had none.

    The parent folder is created. The suffix is kept, because some libraries choose the format by it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}{path.suffix}")
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))  # minus the umask, as for any file
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.errno is not None and error.filename is None:  # a write, say to a full disk, names no file
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


COPY = "copy"


def point(link: Path, target: Path) -> str:
    """Make `link` a relative symbolic link to `target`, atomically. A file system without symbolic links gets a hard
    link or, failing that, a copy. Returns which one: "symbolic link", "hard link" or COPY."""
    temporary = link.with_name(f".{link.name}.{os.getpid()}")
    ways: dict[str, Callable[[], object]] = {
        "symbolic link": lambda: temporary.symlink_to(os.path.relpath(target, link.parent)),
        "hard link": lambda: temporary.hardlink_to(target),
    }
    made = COPY
    for name, make in ways.items():
        temporary.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            make()
            made = name
            break
    else:
        shutil.copyfile(target, temporary)
    temporary.replace(link)
    temporary.unlink(missing_ok=True)  # renaming one hard link onto another leaves both
    return made


def links_in(folder: Path) -> str:
    """What `point` makes in this folder (see there), found by trying.

    Raises:
        OSError: the folder is not writable.
    """
    with tempfile.TemporaryDirectory(prefix=".links", dir=folder) as place:
        target = Path(place, "target")
        target.write_bytes(b"a link")
        return point(Path(place, "link"), target)


def locked(path: str | Path) -> contextlib.AbstractContextManager[int]:
    """Hold the lock file `path`.lock while working on `path`; a second process waits."""
    return held(f"{path}.lock", waiting=f"another process is writing {path}; waiting for it")


LONGEST_NAME = 200  # bytes; file systems allow 255


def flat_names(rels: Sequence[str]) -> list[str]:
    """Relative paths as names of files in one folder: / becomes _, and only the end of a long one is kept.

    Where several paths have the same such name, a hash of the path distinguishes them, whatever their order.
    """
    names = [_end(rel.replace("/", "_")) for rel in rels]
    ambiguous = shared(names, rels)
    return [with_hash(name, rel) if name in ambiguous else name for name, rel in zip(names, rels, strict=True)]


def _end(name: str) -> str:
    """The last LONGEST_NAME bytes of a name, which may be no UTF-8, without half a character."""
    whole = os.fsencode(name)
    cut = whole[-LONGEST_NAME:]
    return os.fsdecode(cut if cut == whole else cut.lstrip(bytes(range(0x80, 0xC0))))


def with_hash(name: str, text: str) -> str:
    """The name, distinguished from equal ones by a short hash of the text."""
    return f"{name}-{hashlib.sha256(text.encode(errors='surrogateescape')).hexdigest()[:8]}"


def stems(names: Sequence[str], paths: Sequence[str]) -> list[str]:
    """Names without suffix; `a_png` and `a_jpg` where files of different paths would share one."""
    short = list(map(stem, names))
    ambiguous = shared(short, paths)
    if not ambiguous:
        return short
    return [f"{at}_{PurePath(n).suffix[1:]}" if at in ambiguous else at for at, n in zip(short, names, strict=True)]


def stem(name: str) -> str:
    """A name without suffix, with / between folders."""
    return PurePath(name).with_suffix("").as_posix()


def shared(names: Iterable[str], things: Iterable[Hashable]) -> set[str]:
    """The names that several different things share (a thing that occurs twice counts once)."""
    counts = Counter(name for name, _ in set(zip(names, things, strict=True)))
    return {name for name, count in counts.items() if count > 1}


class UniqueNames:
    """Gives unique file names: the second `a` becomes `a-2`, the third `a-3`."""

    def __init__(self) -> None:
        self._used: set[str] = set()

    def __call__(self, name: str) -> str:
        candidate, count = name, 1
        while candidate in self._used:
            count += 1
            candidate = f"{name}-{count}"
        self._used.add(candidate)
        return candidate


def sha256_of(path: str | Path, of_file: Callable[[Path], str] | None = None) -> str:
    """Hex digest of a file, or of a folder (over the sorted relative names and contents of its files).

    Files of a folder are read in parallel. Pass `of_file` to look up digests of files that are known already.
    """
    path, of_file = Path(path), of_file or _sha256_of_file
    if path.is_file():
        return of_file(path)
    files = sorted(p for p in path.rglob("*") if p.is_file())
    digest = hashlib.sha256()
    with ThreadPool(usable_cores()) as pool:
        contents = pool.imap(of_file, files)
        for file in files:
            digest.update(os.fsencode(f"{file.relative_to(path).as_posix()}\0{_next(contents)}\n"))
    return digest.hexdigest()


def _next(found: IMapIterator[str]) -> str:
    """The next result. It waits a second at a time: a SIGTERM that arrives as a wait begins is handled after it."""
    while True:
        with contextlib.suppress(multiprocessing.TimeoutError):
            return found.next(timeout=1)


def _sha256_of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def size_of(path: Path) -> int:
    """Size in bytes of a file, or of all files below a folder."""
    return path.stat().st_size if path.is_file() else sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
