"""A run of a pipeline that is ready for its first step, without the loop around it."""

from __future__ import annotations

from pathlib import Path

import torch
from lightning_fabric import Fabric

from visionkit.config import parse_pipeline
from visionkit.data.loader import train_loader
from visionkit.data.wiring import build_feeds, build_sources, resolve_labels
from visionkit.model.build import build_model
from visionkit.model.run import RunFolder
from visionkit.plugins import PluginManager
from visionkit.train.loop import Run
from visionkit.train.step import Training
from visionkit.types import MixedBatch


def ready(text: str, name: str, folder: Path, plugins: PluginManager) -> tuple[Training, MixedBatch]:
    """The run of a pipeline's YAML, and one batch of its training data."""
    torch.manual_seed(0)
    pipeline = parse_pipeline(text, name)
    sources = build_sources(pipeline, plugins, "train")
    labels = resolve_labels(pipeline, plugins, sources)
    model = build_model(pipeline, plugins, labels)
    feeds = build_feeds(pipeline, plugins, sources, labels, training=True)
    (batch,) = train_loader(feeds, batch_size=pipeline.train.batch_size, seed=0, steps=1)
    fabric = Fabric(accelerator="auto", devices=1)
    return Training(Run(RunFolder(folder / "run"), pipeline, model, labels), plugins, fabric), batch
