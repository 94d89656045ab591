"""TEXT [INPUT ...] OUTPUT: writes what it was given and its text twenty times, bit by bit, then has its output."""

import sys
import time
from pathlib import Path

text, *inputs, output = sys.argv[1:]
partial = Path(output).with_name("partial")
with partial.open("w") as file:
    file.write("".join(Path(path).read_text() for path in inputs))
    for _ in range(20):
        file.write(text)
        file.flush()
        time.sleep(0.02)
partial.rename(output)
