"""ME OTHER INPUT OUTPUT: waits until it sees that the other step runs too."""

import sys
import time
from pathlib import Path

me, other, source, output = sys.argv[1:]
run = Path(source).parents[2]
(run / me).touch()
end = time.time() + 20
while not (run / other).exists():
    assert time.time() < end, "alone"
    time.sleep(0.02)
Path(output).write_text(Path(source).read_text() + me)
