"""The conformance kit: does a component keep the contract of its kind?

Every promise is one check with a name and a docstring. A component that passes them works with everything else: it
trains, resumes, is judged, drawn, exported and run in several processes like those that come with visionkit.
"""

from visionkit.testing.kits import (
    CHECKS,
    KITS,
    check_backbone,
    check_balancer,
    check_evaluator,
    check_head,
    check_neck,
    check_source,
    check_transform,
)
from visionkit.testing.report import Broken, CheckResult, NotApplicable, Report, is_slow, name_of, promise_of, slow

__all__ = [
    "CHECKS",
    "KITS",
    "Broken",
    "CheckResult",
    "NotApplicable",
    "Report",
    "check_backbone",
    "check_balancer",
    "check_evaluator",
    "check_head",
    "check_neck",
    "check_source",
    "check_transform",
    "is_slow",
    "name_of",
    "promise_of",
    "slow",
]
