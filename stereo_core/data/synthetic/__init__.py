"""Synthetic stereo scenes with exact sub-pixel disparity and exact occlusion.

`planes` draws a few slanted planes with NumPy; the rich scenes are `layout` (what stands where), `render` (both views,
with torch), `appearance` (two cameras that differ) and `stream` (the sequence).
"""
