"""Running: other precisions, memory formats, and capture for export."""

from __future__ import annotations

import dataclasses
from dataclasses import replace

import torch
from torch import Tensor, nn

from visionkit.model import MultiTaskModel
from visionkit.testing.case import NAME, HeadCase, losses, number, outputs, predictions, total
from visionkit.testing.compare import difference, tensors
from visionkit.testing.report import Broken, NotApplicable, slow
from visionkit.types import MixedBatch


def check_half_precision_works(case: HeadCase) -> None:
    """Under bfloat16 autocast, losses and gradients are finite and near those of full precision, and predictions are of
    the same types."""
    model, batch = case.model().eval(), case.batch()
    full, made = losses(model, batch), predictions(model, batch)
    with torch.autocast("cpu", torch.bfloat16):
        half, made_half = losses(model, batch), predictions(model, batch)
    total(half).backward()
    for name, value in half.items():
        if not torch.allclose(value.float(), full[name].float(), rtol=0.2, atol=0.05):
            raise Broken(f"loss '{name}' is {number(full[name]):.4g}, and {number(value):.4g} under bfloat16 autocast")
    if bad := [n for n, p in model.named_parameters() if p.grad is not None and not bool(p.grad.isfinite().all())]:
        raise Broken(f"under bfloat16 autocast the gradient of '{bad[0]}' is not finite")
    for one, other in zip(made, made_half):
        kinds = [{path: value.dtype for path, value in tensors(p).items()} for p in (one, other)]
        if kinds[0] != kinds[1]:
            raise Broken(f"predictions hold {kinds[0]}, and {kinds[1]} under bfloat16 autocast; end in .float()")


def check_memory_formats_agree(case: HeadCase) -> None:
    """With images and weights in channels-last memory format, losses are the same."""
    model, batch = case.model().eval(), case.batch()
    plain = losses(model, batch)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = batch.images.contiguous(memory_format=torch.channels_last)
    last = losses(model, dataclasses.replace(batch, images=images))
    for name, value in plain.items():
        if not torch.allclose(value, last[name], rtol=0.01, atol=1e-4):
            raise Broken(
                f"loss '{name}' is {number(value):.6g}, and {number(last[name]):.6g} with channels-last memory"
            )


@slow
def check_forward_can_be_exported(case: HeadCase) -> None:
    """Where the head says that it is exportable, `torch.export` captures backbone and head, with the same results."""
    if not case.cls.exportable:
        raise NotApplicable("it does not say that it is exportable")
    model, batch = case.model().eval(), case.images(2, sides=((64, 96),))
    whole = _Whole(model, batch)
    with torch.no_grad():
        expected = whole(batch.images)
        try:
            program = torch.export.export(whole, (batch.images,))
        except Exception as error:
            raise Broken(f"torch.export cannot capture it: {' '.join(str(error).split())[:300]}") from error
        found = program.module()(batch.images)
    if said := difference(list(expected), list(found), rtol=1e-4):
        raise Broken(f"what torch.export captured gives other results ({said})")


class _Whole(nn.Module):
    """Images -> every tensor of the head's output."""

    def __init__(self, model: MultiTaskModel, batch: MixedBatch) -> None:
        super().__init__()
        self.model, self.batch = model, batch

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensors(outputs(self.model, replace(self.batch, images=images, targets={}))[NAME]).values())


CHECKS = (check_half_precision_works, check_memory_formats_agree, check_forward_can_be_exported)
