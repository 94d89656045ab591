"""OUTPUT: hears SIGTERM, notes that beside its output, and goes on."""

import signal
import sys
import time
from pathlib import Path

heard = Path(sys.argv[1]).with_name("heard")
signal.signal(signal.SIGTERM, lambda *_: heard.touch())
end = time.time() + 60
while time.time() < end:
    time.sleep(1)
