"""A pipeline that is as small as one can be and still has everything: two sources, ports, an average, clipping."""

from __future__ import annotations

from pathlib import Path

import pytest

TINY = """\
backbone: {{name: timm, model: resnet18, options: {{channels: [8, 8, 16, 16]}}}}
neck: {{name: fpn, channels: 16}}
heads:
  semantic: {{name: semantic_fpn, channels: 16}}
  boxes:
    name: rcnn
    anchor_sizes: [[8], [16], [32], [48], [64]]
    canonical_size: 56
    fcs: [32]
    rpn_before_nms_train: 50
    rpn_after_nms_train: 30
    rpn_before_nms: 50
    rpn_after_nms: 20
    samples: 16
    detections: 10
  masks: {{name: roi_mask, convs: [8], canonical_size: 56}}
  keypoints: {{name: roi_keypoint, convs: [8], canonical_size: 56}}
sources:
  things:
    name: shapes
    heads: [boxes, masks, keypoints]
    train: {{root: {root}/things, images: 12, seed: 0, size: 64}}
    val: {{root: {root}/val, images: 4, seed: 1, size: 64}}
  stuff:
    name: shapes
    heads: [semantic]
    weight: 0.5
    train: {{root: {root}/stuff, images: 8, seed: 2, size: 64}}
    val: {{root: {root}/val, images: 4, seed: 1, size: 64}}
train:
  steps: 6
  batch_size: 3
  optimizer: {{name: sgd, lr: 0.01}}
  warmup: {{steps: 1, factor: 0.1}}
  clip: 10.0
  ema: 0.9
  workers: 0
  log_every: 1
  checkpoint_every: 2
  transforms: [hflip]
evaluate:
  batch_size: 2
  pictures: 1
"""


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of the tiny pipeline."""
    folder = tmp_path_factory.mktemp("tiny")
    file = folder / "tiny.yaml"
    file.write_text(TINY.format(root=folder))
    return file
