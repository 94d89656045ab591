"""stereo-pipelines: from raw stereo pairs to a running FoundationStereo engine.

Importing this package is cheap: nothing here imports torch.
"""

__version__ = "0.1.0"
