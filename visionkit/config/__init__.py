"""Pipelines: YAML in, a validated description out. Imports no torch."""

from visionkit.config.arguments import argument_problems, build_component, check_arguments, check_names
from visionkit.config.load import inspect_pipeline, load_pipeline, parse_pipeline, shipped_pipelines, summary_of
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
from visionkit.config.settings import setting_problems

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
    "argument_problems",
    "build_component",
    "check_arguments",
    "check_names",
    "inspect_pipeline",
    "json_schema",
    "load_pipeline",
    "parse_pipeline",
    "setting_problems",
    "shipped_pipelines",
    "summary_of",
]
