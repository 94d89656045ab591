"""stereo-pipelines: from raw stereo pairs to a running FoundationStereo engine.

Importing this package is cheap: nothing here imports torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

__version__ = "0.1.0"


def predict(left: Any, right: Any, model: str | Path = "starter") -> Any:
    """Disparity in px of a rectified pair; see `stereo_core.actions.predict.anything.predict` for shapes and types."""
    from stereo_core.actions.predict.anything import predict

    return predict(left, right, model)
