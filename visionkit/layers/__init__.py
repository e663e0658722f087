"""Building blocks that two or more heads share.

Each lives in a module of its own (``visionkit.layers.norm``, ``.conv``, ``.semantic``, ``.rle`` ...) and is imported
from there, so that run-length encoding needs no torch and a convolution no pycocotools.
"""
