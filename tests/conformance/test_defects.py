"""Each check finds what it is there to find: sound toys pass them all, and every planted defect fails by its name."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conformance.broken_heads import HEADS
from tests.conformance.broken_others import OTHERS
from tests.conformance.toys import (
    Sound,
    SoundBackbone,
    SoundBalancer,
    SoundBoxes,
    SoundEvaluator,
    SoundMemory,
    SoundNeck,
    SoundPhases,
    SoundSource,
    SoundTransform,
)
from visionkit.data.shapes import ShapesSource
from visionkit.plugins import PluginManager
from visionkit.testing import CHECKS, KITS, Report, name_of

KINDS = {
    "head": (Sound, SoundBoxes, SoundMemory, SoundPhases),
    "backbone": (SoundBackbone,),
    "neck": (SoundNeck,),
    "source": (SoundSource,),
    "evaluator": (SoundEvaluator,),
    "transform": (SoundTransform,),
    "balancer": (SoundBalancer,),
}


@pytest.fixture
def check(source: ShapesSource, plugins: PluginManager):
    """Runs the kit of a kind, on the data set of these tests."""

    def check(kind: str, made: type, **options: Any) -> Report:
        if kind == "head":
            options |= {"source": source, "plugins": plugins}
        if kind == "evaluator":
            options |= {"source": SoundSource(images=6), "plugins": plugins}
        return KITS[kind](made, **options)

    return check


@pytest.mark.parametrize(("kind", "made"), [(kind, made) for kind, toys in KINDS.items() for made in toys])
def test_sound_toys_pass(kind: str, made: type, check) -> None:
    check(kind, made).assert_passed()


@pytest.mark.parametrize(("kind", "made", "name", "says"), [*(("head", *head) for head in HEADS), *OTHERS])
def test_a_defect_fails_by_its_name(kind: str, made: type, name: str, says: str, check) -> None:
    report = check(kind, made, only=[name])
    assert [result.name for result in report.failed] == [name]
    assert says in report.failed[0].reason


def test_nearly_every_check_of_a_head_is_shown_to_find_something() -> None:
    # The core alone sees to what is left: it makes the losses of a head without labels itself.
    names = {name_of(check) for check in CHECKS["head"]}
    assert names - {name for _, name, _ in HEADS} == {"without_labels_losses_are_zeros_with_a_graph"}
