"""What another process does with objects, with the environment of the test; SIGTERM raises in it, as in a run.

python other_process.py [--part=BYTES] [--largest-file=BYTES] read SIZE URI... | upload FILE URI | tree URI FOLDER
"""

import argparse
import os
import resource
import signal
from pathlib import Path

from stereo_core import storage
from stereo_core.run.termination import sigterm_raises


def read(size: str, *uris: str) -> None:
    for uri in uris:
        assert len(storage.read(uri)) == int(size)


def upload(file: str, uri: str) -> None:
    storage.upload(Path(file), uri)


def tree(uri: str, folder: str) -> None:
    try:
        storage.fetch_tree(uri, Path(folder))
    except OSError as error:
        print(error, os.listdir(folder))


parser = argparse.ArgumentParser()
parser.add_argument("--part", type=int, default=storage.OBJECTS.part)
parser.add_argument("--largest-file", type=int)
parser.add_argument("work", choices=["read", "upload", "tree"])
parser.add_argument("arguments", nargs="*")
said = parser.parse_args()
storage.OBJECTS.part = said.part
if said.largest_file:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (said.largest_file, said.largest_file))
with sigterm_raises():
    {"read": read, "upload": upload, "tree": tree}[said.work](*said.arguments)
