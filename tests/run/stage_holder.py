"""A run that has begun: names its folder, then waits for the end of its input."""

import sys

from stereo_core.run.staging import staged
from stereo_core.spec.loading import build

with staged("synthesize", build("synthesize", {"results_dir": "s3://b/x"})) as stage:
    for kind in ("results", "inputs"):
        (stage.folder / kind / "folder").mkdir(parents=True)
    (stage.folder / "results" / "link").symlink_to("gone")
    print(stage.folder, flush=True)
    sys.stdin.read()
