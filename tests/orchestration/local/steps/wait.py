"""OUTPUT: makes it, then takes a minute."""

import sys
import time
from pathlib import Path

Path(sys.argv[1]).touch()
time.sleep(60)
