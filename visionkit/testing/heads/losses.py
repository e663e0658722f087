"""Losses: their names and values, and which images they come from."""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from visionkit.model import Head, MultiTaskModel, Step
from visionkit.testing.case import NAME, HeadCase, losses, number, outputs, total
from visionkit.testing.compare import difference
from visionkit.testing.report import Broken, NotApplicable, seeded
from visionkit.types import LabelSet, Mean, MixedBatch, Output, Prediction
from visionkit.types.mean import divide


def check_losses_are_named_finite_scalars(case: HeadCase) -> None:
    """`losses` returns exactly the names in `loss_names`, each a finite scalar with a gradient, or a `Mean` of two."""
    model, batch = case.model(), case.batch()
    head = model.head(NAME)
    named = head.losses(outputs(model, batch)[NAME], case.view(batch, targets=True))
    if not isinstance(named, Mapping) or set(named) != set(head.loss_names):
        said = ", ".join(sorted(named)) if isinstance(named, Mapping) else type(named).__name__
        raise Broken(f"losses are {said}; loss_names declares {sorted(head.loss_names)}")
    for name, loss in named.items():
        value = loss.total if isinstance(loss, Mean) else loss
        if not isinstance(value, Tensor) or value.ndim:
            shown = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise Broken(f"loss '{name}' is {shown}; it must be a scalar tensor or a Mean of one")
        if isinstance(loss, Mean) and torch.as_tensor(loss.count).numel() != 1:
            raise Broken(f"loss '{name}' is a Mean whose count is not one number")
        if not bool(value.isfinite()):
            raise Broken(f"loss '{name}' is {number(value)}")
    if not total({n: v.total if isinstance(v, Mean) else v for n, v in named.items()}).requires_grad:
        raise Broken("no loss has a gradient: it is cut off (detach, no_grad, item) on the way")


def check_forward_returns_its_output(case: HeadCase) -> None:
    """`forward` returns an instance of the class in `output`."""
    model, batch = case.model(), case.batch()
    found = outputs(model, batch)[NAME]
    if not isinstance(found, case.cls.output):
        raise Broken(
            f"forward returns a {type(found).__name__}; the head declares {case.cls.output.__name__} as output"
        )


def check_unlabelled_images_change_nothing(case: HeadCase) -> None:
    """An image that is not labelled for the head changes neither its losses nor its gradients."""
    model = case.model().eval()
    alone, beside = case.batch(2, sides=((96, 80),)), case.batch(3, sides=((96, 80),), unlabelled=(2,))
    found = [_losses_and_gradients(model, batch) for batch in (alone, beside)]
    if said := difference(*found, rtol=1e-3):
        raise Broken(f"with one more image, not labelled, losses or gradients are others ({said})")


def check_rows_of_its_output_are_its_images(case: HeadCase) -> None:
    """Where a reader makes the head run on more images than it is labelled for, its losses are those of its own: in the
    output, the first axis of a tensor is the image, and a list holds one item an image."""
    model = case.model().eval()
    batch = case.batch(3, sides=((96, 80),), unlabelled=(1,))
    heads = {name: model.head(name) for name in model.order}
    both = MultiTaskModel(
        model.backbone, model.neck, {**heads, "reader": _reader(case)}, {**model.reads, "reader": {"port": NAME}}
    ).eval()
    more = replace(batch, targets={**batch.targets, "reader": case.batch(3).targets[NAME]})
    with seeded():
        expected = losses(model, batch)
    if said := difference(dict(expected), dict(losses(both, more)), rtol=1e-3):
        raise Broken(f"on rows that were picked from a larger output the losses are others ({said}); see Output for "
                     "how its fields must be laid out")  # fmt: skip


def check_without_labels_losses_are_zeros_with_a_graph(case: HeadCase) -> None:
    """In a batch without labels for the head, its losses are zeros that reach all its parameters."""
    model = case.model()
    named = losses(model, case.batch(unlabelled=(0, 1)))
    if bad := [name for name, value in named.items() if number(value) != 0.0]:
        raise Broken(f"without labels loss '{bad[0]}' is {number(named[bad[0]])}, not 0")
    total(named).backward()
    if missing := [n for n, p in model.head(NAME).named_parameters() if p.requires_grad and p.grad is None]:
        raise Broken(f"without labels parameter '{missing[0]}' gets no gradient, which stops a distributed run")


def check_images_without_objects_are_learnt_from(case: HeadCase) -> None:
    """A target that says that nothing is there gives finite losses and gradients, alone and beside others."""
    for empty in ((0, 1), (0,)):
        model = case.model()
        named = losses(model, case.batch(empty=empty))
        total(named).backward()
        _assert_finite(model, named, "where nothing is on the images")


def check_one_labelled_image_is_enough(case: HeadCase) -> None:
    """In training, one labelled image in a batch gives finite losses and gradients."""
    model = case.model().train()
    named = losses(model, case.batch(1))
    total(named).backward()
    _assert_finite(model, named, "with one labelled image")


def check_losses_do_not_depend_on_the_batch_size(case: HeadCase) -> None:
    """A batch that holds every image twice has the losses of the batch that holds it once: they are means, not sums."""
    model = case.model().eval()
    once, twice = (losses(model, case.batch(count, of=2)) for count in (2, 4))
    for name, value in once.items():
        if not torch.allclose(value, twice[name], rtol=0.1, atol=1e-3):
            raise Broken(f"loss '{name}' is {number(value):.4g} for 2 images and {number(twice[name]):.4g} for the "
                         "same ones twice; a loss is a mean over images, pixels or objects")  # fmt: skip


def check_losses_of_batches_add_up(case: HeadCase) -> None:
    """Several batches of one image each give the losses and gradients of one batch that holds all these images: a loss
    is a mean over images, or a `Mean` that says what else it is a mean over."""
    model, batch = case.model().eval(), case.batch(3)
    if NAME not in model.learning:
        raise NotApplicable("it has no losses: it only joins what others have learned")
    whole = _added_up(model, [batch], 0)
    if difference(whole, _added_up(model, [batch], 1), rtol=1e-6):
        raise NotApplicable("it draws random numbers, which are others in each batch")
    parts = _added_up(model, [_row(batch, row) for row in range(len(batch))], 0)
    for name, value in whole.items():
        if (value - parts[name]).norm() > 1e-3 * value.norm() + 1e-6:
            shown = "" if value.ndim else f" ({number(value):.4g} and {number(parts[name]):.4g})"
            raise Broken(f"{name} of three images is not the same in one batch and in three{shown}; a loss that is a "
                         "mean over objects or pixels must be returned as Mean(sum, count)")  # fmt: skip


def _added_up(model: MultiTaskModel, batches: Sequence[MixedBatch], seed: int) -> dict[str, Tensor]:
    """Losses of the head, and their gradient, in a training step that accumulates these batches."""
    steps = [Step(batch) for batch in batches]
    for step in steps:
        step.divide = False
    with seeded(seed):
        sums = [model(step) for step in steps]
    counts = iter(functools.reduce(operator.add, [step.counts for step in steps]).losses)
    found: dict[str, Tensor] = {}
    for head, named in sums[0].items():
        for name in named:
            value = divide(torch.stack([part[head][name] for part in sums]).sum(), next(counts))
            if head == NAME:
                found[f"loss '{name}'"] = value
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(total(found), learned, allow_unused=True)
    gradient = torch.cat([g.flatten() for g in gradients if g is not None])
    return {**{name: value.detach() for name, value in found.items()}, "the gradient": gradient}


def _row(batch: MixedBatch, row: int) -> MixedBatch:
    targets = {name: [own[row]] for name, own in batch.targets.items()}
    return replace(batch, images=batch.images[row : row + 1], info=batch.info[row : row + 1], targets=targets)


def _assert_finite(model: MultiTaskModel, named: Mapping[str, Tensor], where: str) -> None:
    for name, value in named.items():
        if not bool(value.isfinite()):
            raise Broken(f"{where}, loss '{name}' is {number(value)}")
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and not bool(parameter.grad.isfinite().all()):
            raise Broken(f"{where}, the gradient of '{name}' is not finite")


def _losses_and_gradients(model: MultiTaskModel, batch: MixedBatch) -> dict[str, Tensor]:
    model.zero_grad()
    named = losses(model, batch)
    total(named).backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {**{f"loss {name}": value for name, value in named.items()}, **gradients}


def _reader(case: HeadCase) -> Head:
    """A head that reads the checked one, and has losses of its own."""

    class Reader(Head):
        task, makes, needs, loss_names = case.cls.task, Prediction, {"port": case.cls.output}, ("zero",)

        def __init__(self, labels: LabelSet) -> None:
            super().__init__(case.spec, labels)
            self.weight = nn.Parameter(torch.zeros(()))

        def forward(self, features, batch, upstream):  # type: ignore[no-untyped-def]
            return Output()

        def losses(self, output, batch):  # type: ignore[no-untyped-def]
            return {"zero": self.weight * 0.0}

    return Reader(case.labels)


CHECKS = (
    check_losses_are_named_finite_scalars,
    check_forward_returns_its_output,
    check_unlabelled_images_change_nothing,
    check_rows_of_its_output_are_its_images,
    check_without_labels_losses_are_zeros_with_a_graph,
    check_images_without_objects_are_learnt_from,
    check_one_labelled_image_is_enough,
    check_losses_do_not_depend_on_the_batch_size,
    check_losses_of_batches_add_up,
)
