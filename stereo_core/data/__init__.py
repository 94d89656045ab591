"""Files -> samples: annotation lists, disparity codecs, images, calibration, data sets, synthetic scenes.

Only `datasets`, `loaders` and the rich scenes of `synthetic` import torch; the rest needs NumPy and OpenCV,
`annotations` nothing at all.
"""
