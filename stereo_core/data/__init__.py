"""Files -> samples: annotation lists, disparity codecs, images, calibration, data sets, synthetic scenes.

Only `datasets` and `loaders` import torch; the rest needs NumPy and OpenCV, `annotations` nothing at all.
"""
