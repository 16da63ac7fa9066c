"""Feature extractors: what the feature term of a degradation label compares (METHOD.md §3).

An extractor is a class registered in FEATURES, with typed keyword arguments, an attribute and one method::

    extractor.eps                     of `labels.cosine_distance`: squared lengths far below it count as nothing there
    extractor(pictures) -> features

pictures is (B, H, W, 3) float32 RGB in [0, 1], features (B, h, w, C) float32 on a grid over the picture, coarser or
not; a picture's features are a function of that picture. `FILES`, where a class has it, names the arguments that are
files, whose content then counts as an option of the build; one may be null, or the name of something on a hub. A class
that computes on a device has the argument `device`.
"""
