"""LAST CODE OUTPUT: counts its starts in the folder of its output; ends with an exit code, or a signal (-N), until the
last."""

import os
import sys
from pathlib import Path

last, code, output = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
count = output.with_name("count")
start = int(count.read_text()) + 1 if count.exists() else 1
count.write_text(str(start))
if start >= last:
    output.write_text("done")
elif code < 0:
    os.kill(0, -code)
else:
    sys.exit(code)
