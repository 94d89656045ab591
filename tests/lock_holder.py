"""Holds the lock file that is named, says so, and lets go at the end of its input."""

import sys

from stereo_core.locks import held

with held(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
