"""The command `depth_net`, and last a line that says whether PyTorch and OpenCV were imported."""

import sys

from stereo_core.cli import main

try:
    main()
finally:
    print("torch" in sys.modules, "cv2" in sys.modules)
