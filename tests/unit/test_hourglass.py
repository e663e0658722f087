"""Hourglasses: their sizes, their stacks, and the authors' figures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.formula_weights import blocks_image, formula_weights
from visionkit.errors import UserError
from visionkit.model.importing import import_model, rename
from visionkit.model.run import load_state
from visionkit.plugins import PluginManager
from visionkit.types import ImageInfo, MixedBatch
from visionkit_backbones.hourglass import CornerHourglass, StackedHourglass
from visionkit_backbones.hourglass_weights import StackedHourglass as Importer
from visionkit_backbones.hourglass_weights import newell_names, without_idle_shortcuts

DATA = Path(__file__).parents[1] / "data" / "stacked_hourglass"
SMALL = {"channels": (8, 12, 16), "blocks": (1, 2, 1), "stem": 4, "outputs": 8}


def near(own: Tensor, want: Tensor) -> None:
    scale = float(want.abs().max())
    torch.testing.assert_close(own, want, atol=1e-3 * scale, rtol=1e-3)


@pytest.mark.parametrize(("stacks", "count"), [(1, 3_426_448), (2, 6_570_400), (4, 12_858_304), (8, 25_434_112)])
def test_parameter_counts_of_the_stacked_hourglass(stacks: int, count: int) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in StackedHourglass(stacks=stacks).parameters()) == count


def test_stacked_hourglass_is_that_of_the_authors() -> None:
    backbone = StackedHourglass(stacks=2).eval()
    state = without_idle_shortcuts(formula_weights(DATA / "keys.json"))
    load_state(backbone, rename(state, newell_names(prefix="")), "fixture")
    seen: dict[str, Tensor] = {}
    backbone.stem.register_forward_hook(lambda module, args, out: seen.__setitem__("pre", out))
    backbone.stacks[0].register_forward_hook(lambda module, args, out: seen.__setitem__("hg0", out))
    with torch.no_grad():
        made = backbone(blocks_image(256, 256)[None].flip(1) / 255)  # their red, green, blue are in this order
    with np.load(DATA / "io.npz") as arrays:
        expected = {name: torch.from_numpy(arrays[name]).float() for name in arrays.files}
    for name, own in (("pre", seen["pre"]), ("hg0", seen["hg0"]), ("feat0", made["stack1"])):
        near(own[0, ::32, ::4, ::4], expected[name])
    near(torch.stack((made["maps1"], made["maps2"]))[:, 0, ::4, ::2, ::2], expected["out"])


def test_imported_hourglasses_say_what_the_authors_say(tmp_path: Path) -> None:
    theirs = {f"model.module.{name}": tensor for name, tensor in formula_weights(DATA / "keys.json").items()}
    torch.save({"state_dict": theirs, "epoch": 3}, tmp_path / "weights.pth")
    model = import_model(Importer(), tmp_path / "weights.pth", PluginManager()).model
    info = ImageInfo(0, "", (256, 256), (256, 256))
    batch = MixedBatch(blocks_image(256, 256)[None].flip(1), (info,), {})
    with torch.no_grad():
        ready = batch.normalised(model.mean, model.std, channels_last=False)
        made = model.eval().run_heads(model.branches(model.features(ready.images)), ready, {"keypoints": [0]})
    with np.load(DATA / "io.npz") as arrays:
        near(torch.stack(made["keypoints"].made)[:, 0, ::4, ::2, ::2], torch.from_numpy(arrays["out"]).float())


def test_shortcuts_that_are_never_used_are_what_the_authors_count_more() -> None:
    state = formula_weights(DATA / "keys.json")
    learnt = {k: v for k, v in state.items() if not k.endswith(("running_mean", "running_var", "num_batches_tracked"))}
    assert sum(v.numel() for v in learnt.values()) == 8_429_088
    assert sum(v.numel() for v in without_idle_shortcuts(learnt).values()) == 6_570_400


def test_without_maps_only_features_go_on() -> None:
    with torch.device("meta"):
        backbone = StackedHourglass(stacks=3, channels=16, maps=0, depth=1)
    assert list(backbone.spec) == ["stack1", "stack2", "stack3"]
    assert not len(backbone.maps)
    assert not len(backbone.merge_maps)


def test_maps_of_a_stack_change_what_the_next_one_sees() -> None:
    backbone = StackedHourglass(stacks=2, channels=16, maps=3, depth=1).eval()
    images = torch.randn(1, 3, 32, 32)
    before = backbone(images)
    with torch.no_grad():
        backbone.maps[0].bias.add_(1.0)
    after = backbone(images)
    assert torch.equal(before["stack1"], after["stack1"])
    assert not torch.allclose(before["stack2"], after["stack2"])


@pytest.mark.parametrize("size", [(64, 96), (36, 52), (33, 47)])
def test_any_size_goes_down_and_up_again(size: tuple[int, int]) -> None:
    expected = (-(-size[0] // 4), -(-size[1] // 4))
    for backbone in (StackedHourglass(stacks=2, channels=8, maps=2, depth=3), CornerHourglass(**SMALL)):
        made = backbone.eval()(torch.randn(1, 3, *size))
        assert {x.shape[-2:] for x in made.values()} == {expected}


def test_every_stack_gets_gradient_from_the_last_one_alone() -> None:
    backbone = CornerHourglass(stacks=3, **SMALL).train()
    backbone(torch.randn(2, 3, 32, 32))["stack3"].square().mean().backward()
    for stack in backbone.stacks:
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in stack.parameters() if p.ndim > 1)


@pytest.mark.parametrize(
    ("backbone", "arguments", "said"),
    [
        (StackedHourglass, {"levels": ["stack3"]}, "no level 'stack3'"),
        (StackedHourglass, {"stacks": 0}, "no level of the hourglass is read"),
        (StackedHourglass, {"maps": 0, "levels": ["maps1"]}, "no level 'maps1'"),
        (CornerHourglass, {"blocks": (1, 1)}, "not 6 and 2"),
    ],
)
def test_what_cannot_be_built_is_said(backbone: type, arguments: dict[str, object], said: str) -> None:
    with torch.device("meta"), pytest.raises(UserError, match=said):
        backbone(**arguments)
