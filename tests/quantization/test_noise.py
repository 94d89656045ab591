"""What libraries say of parts that are not here stays unsaid; what fails is heard."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

from stereo_core.quantization import without_noise

QUANTISED = """
from stereo_core.run.perform import set_up_logging
from stereo_core.quantization import without_noise
set_up_logging()
from torch import nn
with without_noise():
    from torchao.quantization import Int8WeightOnlyConfig, quantize_
    quantize_(nn.Sequential(nn.Linear(8, 8)), Int8WeightOnlyConfig())
"""


def test_only_what_is_of_use_is_heard():
    heard = []
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())
    logging.getLogger().addHandler(handler)
    try:
        with without_noise():
            logging.getLogger("torchao.kernel").warning("no triton")
            logging.getLogger("modelopt.onnx").error("no GPU")
            logging.getLogger("torchao").error("torchao failed")
            logging.getLogger("stereo_core.x").warning("ours")
        logging.getLogger("torchao").warning("after")
    finally:
        logging.getLogger().removeHandler(handler)
    assert heard == ["torchao failed", "ours", "after"]


@pytest.mark.slow
def test_torchao_itself_is_silent():
    pytest.importorskip("torchao")
    done = subprocess.run([sys.executable, "-c", QUANTISED], capture_output=True, text=True, check=True)
    assert done.stderr == done.stdout == ""
