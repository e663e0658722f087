"""COCO files: one reader for annotations, results and panoptic JSON. Imports no torch.

Everything that reads a COCO file (sources, evaluators, commands) goes through this package, so that whatever one part
accepts, all others understand. ``docs/reference/coco-files.md`` documents what is accepted, corrected and refused.
"""
