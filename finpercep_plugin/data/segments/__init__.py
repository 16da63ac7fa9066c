"""Segmenters: what the regions of semantic masks are put together from (METHOD.md §3).

A segmenter is a class registered in SEGMENTS, with typed keyword arguments and one method::

    segmenter(pictures) -> [segments of the first picture, segments of the second, ...]

pictures is a sequence of (H, W, 3) uint8 RGB arrays, which may differ in size; segments is (n, H, W) bool, n of 0 and
more, which may overlap and need not cover the picture; the same picture gives the same segments in the same order.
`FILES`, where a class has it, names the arguments that are files or folders, whose content then counts as an option of
the build; one may be the name of something on a hub. A class that computes on a device has the argument `device`.
"""
