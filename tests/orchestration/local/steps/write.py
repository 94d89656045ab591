"""TEXT [INPUT ...] OUTPUT: writes what it was given and its text."""

import sys
from pathlib import Path

text, *inputs, output = sys.argv[1:]
Path(output).write_text("".join(Path(path).read_text() for path in inputs) + text)
