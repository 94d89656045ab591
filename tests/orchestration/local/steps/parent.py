"""OUTPUT: starts a child, notes its number beside the output, and takes a minute."""

import subprocess
import sys
import time
from pathlib import Path

child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
Path(sys.argv[1]).with_name("pid").write_text(str(child.pid))
time.sleep(60)
