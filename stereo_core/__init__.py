"""stereo-pipelines: from raw stereo pairs to a running FoundationStereo engine.

Importing this package is cheap: nothing here imports torch.
"""

__version__ = "0.1.0"


def predict(left, right, model="starter"):
    """Disparity in px of a rectified pair; see `stereo_core.actions.predict.anything.predict` for shapes and types."""
    from stereo_core.actions.predict.anything import predict

    return predict(left, right, model)
