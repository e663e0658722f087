"""Pipelines: YAML in, a validated description out. Imports no torch."""

from visionkit.config.arguments import build_component, check_arguments, check_names
from visionkit.config.load import load_pipeline, parse_pipeline, shipped_pipelines, summary_of
from visionkit.config.pipeline import (
    ComponentConfig,
    CRFConfig,
    EvaluateConfig,
    HeadConfig,
    OptimizerConfig,
    PartConfig,
    Pipeline,
    RefineConfig,
    ScheduleConfig,
    SourceConfig,
    TrainConfig,
    WarmupConfig,
)
from visionkit.config.schema import json_schema

__all__ = [
    "CRFConfig",
    "ComponentConfig",
    "EvaluateConfig",
    "HeadConfig",
    "OptimizerConfig",
    "PartConfig",
    "Pipeline",
    "RefineConfig",
    "ScheduleConfig",
    "SourceConfig",
    "TrainConfig",
    "WarmupConfig",
    "build_component",
    "check_arguments",
    "check_names",
    "json_schema",
    "load_pipeline",
    "parse_pipeline",
    "shipped_pipelines",
    "summary_of",
]
