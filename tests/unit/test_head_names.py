"""Names that torch keeps for itself are no names of heads."""

from __future__ import annotations

import pytest

from visionkit.config.load import parse_pipeline
from visionkit.errors import PipelineError
from visionkit.model.build import build_model
from visionkit.plugins import PluginManager
from visionkit.types import LabelSet

PIPELINE = """
backbone: {{name: timm, model: resnet18, options: {{channels: [8, 8, 8, 8]}}}}
heads:
  {name}: {{name: fcn, levels: [c4], hidden: 8}}
"""


@pytest.mark.parametrize("name", ["forward", "training", "keys", "_modules", "T_destination"])
def test_a_head_that_is_named_like_an_attribute_is_refused_where_it_stands(name: str):
    pipeline = parse_pipeline(PIPELINE.format(name=name), "p.yaml")
    with pytest.raises(PipelineError, match=rf"^p\.yaml:4: heads\.{name}: a head cannot be called '{name}'"):
        build_model(pipeline, PluginManager(), {name: LabelSet(("a", "b"))})
