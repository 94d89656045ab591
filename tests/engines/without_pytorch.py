"""Run and describe an engine in a process that has no use for PyTorch: python without_pytorch.py ENGINE."""

import sys

import numpy as np

from stereo_core.engines import load_engine
from stereo_core.report.describe import describe

engine = sys.argv[1]
describe(engine)
image = np.zeros((40, 50, 3), np.uint8)
assert load_engine(engine).infer(image, image).shape == (40, 50)
assert "torch" not in sys.modules
