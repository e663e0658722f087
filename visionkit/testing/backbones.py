"""What every backbone and every neck promises."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from visionkit.model import Backbone, Neck
from visionkit.testing.compare import difference
from visionkit.testing.report import Broken, seeded
from visionkit.testing.signature import assert_configurable, assert_documented
from visionkit.testing.toys import ToyBackbone
from visionkit.types import FeatureSpec

SIZES = ((64, 96), (128, 64), (96, 160))


@dataclass
class FeatureCase:
    """A backbone or a neck: something that yields feature levels.

    Attributes:
        kind: ``"backbone"`` or ``"neck"``.
        cls, args: what is checked, and its keyword arguments.
    """

    kind: str
    cls: type[Backbone] | type[Neck]
    args: Mapping[str, Any]

    @property
    def given(self) -> int:
        """Positional arguments that the core hands over."""
        return 1 if self.kind == "neck" else 0

    def build(self, levels: list[str] | None = None, seed: int = 0) -> Any:
        """One more, with new parameters; the same for a seed."""
        with seeded(seed):
            spec = (ToyBackbone().spec,) if self.kind == "neck" else ()
            return self.cls(*spec, levels=levels, **self.args)

    def inputs(self, size: tuple[int, int] = SIZES[0], count: int = 2) -> Any:
        """Random images for a backbone, random features for a neck, for images of this size."""
        with seeded():
            if self.kind == "backbone":
                return torch.randn(count, 3, *size)
            spec = ToyBackbone().spec
            return {n: torch.randn(count, v.channels, *_rounded_up(size, v.stride)) for n, v in spec.items()}


def check_is_built(case: FeatureCase) -> None:
    """It can be built from its keyword arguments, and has a spec that is not empty."""
    spec = getattr(case.build(), "spec", None)
    if not isinstance(spec, FeatureSpec) or not len(spec):
        raise Broken(f"its attribute 'spec' is {spec!r}; it must be a FeatureSpec of all levels that it yields")


def check_arguments_are_its_configuration(case: FeatureCase) -> None:
    """The constructor takes keywords only, annotated, with defaults that keep to the annotation, and refuses others."""
    assert_configurable(case.kind, case.cls, case.given, ours=("levels",))


def check_arguments_are_documented(case: FeatureCase) -> None:
    """The docstring has a line for every keyword argument."""
    assert_documented(case.cls, case.given, ours=("levels",))


def check_spec_is_what_it_yields(case: FeatureCase) -> None:
    """For images of several sizes, it yields just the levels of its spec, of the channels and strides that stand
    there."""
    module = case.build().eval()
    for size in SIZES:
        with torch.no_grad():
            made = module(case.inputs(size))
        if list(made) != list(module.spec):
            raise Broken(f"it yields the levels {', '.join(made)}; its spec has {', '.join(module.spec)}")
        for name, level in module.spec.items():
            expected = (2, level.channels, *_rounded_up(size, level.stride))
            if tuple(made[name].shape) != expected:
                raise Broken(f"for images of {size[0]} x {size[1]}, level '{name}' is {tuple(made[name].shape)}; its "
                             f"spec says {expected}")  # fmt: skip


def check_only_the_levels_asked_for(case: FeatureCase) -> None:
    """Built with the name of one level, it yields that level alone, and no other parameters than it needs."""
    everything = list(case.build().spec)
    for level in (everything[0], everything[-1]):
        module = case.build([level])
        made = module(case.inputs())
        if list(module.spec) != [level] or list(made) != [level]:
            raise Broken(
                f"asked for level '{level}', it has {', '.join(module.spec)} in its spec and yields {', '.join(made)}"
            )
        made[level].square().mean().backward()
        if unused := [n for n, p in module.named_parameters() if p.requires_grad and p.grad is None]:
            raise Broken(
                f"asked for level '{level}' alone, it builds parameter '{unused[0]}', which that does not need"
            )


def check_building_for_the_spec_costs_nothing(case: FeatureCase) -> None:
    """Built on the meta device, it has the same spec, and no parameter takes memory."""
    with torch.device("meta"):
        module = case.build()
    if list(module.spec.items()) != list(case.build().spec.items()):
        raise Broken("on the meta device its spec is another")
    if real := [name for name, p in module.named_parameters() if p.device.type != "meta"]:
        raise Broken(f"on the meta device, parameter '{real[0]}' takes memory: make tensors on the default device")


def check_gradients_reach_every_parameter(case: FeatureCase) -> None:
    """All levels together reach every parameter that is not frozen."""
    module = case.build().train()
    _total(module(case.inputs())).backward()
    if missing := [n for n, p in module.named_parameters() if p.requires_grad and p.grad is None]:
        raise Broken(f"no level reaches parameter '{missing[0]}'")


def check_state_is_restored(case: FeatureCase) -> None:
    """A new one that is given the state of another yields the same."""
    one, other, inputs = case.build(seed=1).eval(), case.build(seed=2).eval(), case.inputs()
    other.load_state_dict(one.state_dict())
    with torch.no_grad():
        if said := difference(one(inputs), other(inputs)):
            raise Broken(f"after its state was loaded, a new one yields other features ({said})")


def check_evaluation_is_deterministic(case: FeatureCase) -> None:
    """In evaluation mode, features depend neither on random numbers nor on what came before."""
    module, found = case.build().eval(), []
    for seed in (1, 2):
        with seeded(seed), torch.no_grad():
            found.append(module(case.inputs()))
            module(case.inputs(SIZES[1]))
    if said := difference(*found):
        raise Broken(f"in evaluation mode, asked twice it yields different features ({said})")


def check_an_image_alone_is_its_row_of_a_batch(case: FeatureCase) -> None:
    """In evaluation mode, the features of an image do not depend on the images beside it."""
    module, inputs = case.build().eval(), case.inputs(count=3)
    one = inputs[1:2] if isinstance(inputs, Tensor) else {n: v[1:2] for n, v in inputs.items()}
    with torch.no_grad():
        together = {name: value[1:2] for name, value in module(inputs).items()}
        if said := difference(together, module(one), rtol=1e-3):
            raise Broken(f"the features of an image alone are not those of its row in a batch ({said})")


def check_inputs_stay_as_they_are(case: FeatureCase) -> None:
    """Images and features that it is given are not changed in place."""
    inputs = case.inputs()
    with torch.no_grad():
        case.build().eval()(inputs)
    if said := difference(inputs, case.inputs()):
        raise Broken(f"it changes its input in place ({said})")


def check_memory_formats_agree(case: FeatureCase) -> None:
    """In channels-last memory format, the features are the same."""
    module, inputs = case.build().eval(), case.inputs()
    with torch.no_grad():
        plain = module(inputs)
        module.to(memory_format=torch.channels_last)
        last = module(_channels_last(inputs))
    if said := difference(plain, last, rtol=1e-3):
        raise Broken(f"with channels-last memory the features are others ({said})")


def check_half_precision_works(case: FeatureCase) -> None:
    """Under bfloat16 autocast, features are finite."""
    module = case.build().eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        made = module(case.inputs())
    if bad := [name for name, value in made.items() if not bool(value.isfinite().all())]:
        raise Broken(f"under bfloat16 autocast, level '{bad[0]}' is not finite")


def check_forward_can_be_exported(case: FeatureCase) -> None:
    """`torch.export` captures it, with the same results."""
    module, inputs = case.build().eval(), case.inputs()
    with torch.no_grad():
        try:
            program = torch.export.export(_Listed(module), (inputs,))
        except Exception as error:
            raise Broken(f"torch.export cannot capture it: {' '.join(str(error).split())[:300]}") from error
        if said := difference(list(module(inputs).values()), list(program.module()(inputs)), rtol=1e-3):
            raise Broken(f"what torch.export captured yields other features ({said})")


def check_reads_what_it_needs(case: FeatureCase) -> None:
    """A neck names in `reads` the backbone levels that it needs, and works with just these."""
    everything = list(case.build().spec)
    for levels in (None, [everything[0]], [everything[-1]]):
        module, inputs = case.build(levels).eval(), case.inputs()
        if unknown := [name for name in module.reads if name not in inputs]:
            raise Broken(f"'reads' names '{unknown[0]}', which the backbone does not have")
        with torch.no_grad():
            made = module({name: inputs[name] for name in module.reads})
        if list(made) != list(module.spec):
            raise Broken(f"from the levels in 'reads' it yields {', '.join(made)}, not {', '.join(module.spec)}")


def _rounded_up(size: tuple[int, int], stride: int) -> tuple[int, int]:
    return -(-size[0] // stride), -(-size[1] // stride)


def _total(features: Mapping[str, Tensor]) -> Tensor:
    return torch.stack([value.float().square().mean() for value in features.values()]).sum()


def _channels_last(inputs: Any) -> Any:
    if isinstance(inputs, Tensor):
        return inputs.contiguous(memory_format=torch.channels_last)
    return {name: _channels_last(value) for name, value in inputs.items()}


class _Listed(nn.Module):
    """Features as a tuple, in the order of the spec."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, inputs: Any) -> tuple[Tensor, ...]:
        return tuple(self.module(inputs).values())


BACKBONE_CHECKS = (
    check_is_built,
    check_arguments_are_its_configuration,
    check_arguments_are_documented,
    check_spec_is_what_it_yields,
    check_only_the_levels_asked_for,
    check_building_for_the_spec_costs_nothing,
    check_gradients_reach_every_parameter,
    check_state_is_restored,
    check_evaluation_is_deterministic,
    check_an_image_alone_is_its_row_of_a_batch,
    check_inputs_stay_as_they_are,
    check_memory_formats_agree,
    check_half_precision_works,
    check_forward_can_be_exported,
)
NECK_CHECKS = (*BACKBONE_CHECKS, check_reads_what_it_needs)
