"""State: what a head keeps, and what it leaves as it finds it."""

from __future__ import annotations

import copy
import dataclasses
import pickle

import torch

from visionkit.testing.case import NAME, HeadCase, losses, outputs, predictions, total
from visionkit.testing.compare import difference, tensors
from visionkit.testing.report import Broken, seeded
from visionkit.types._tree import map_tensors


def check_the_batch_stays_as_it_is(case: HeadCase) -> None:
    """Images, targets and shared features are the same after `forward`, `losses` and `predict`."""
    model, batch = case.model(), case.batch()
    features = model.features(batch.images)
    shown = {"images": batch.images, "targets": batch.targets[NAME], "features": features}
    before = map_tensors(shown, lambda t: t.detach().clone())
    output = outputs(model, batch, features)[NAME]
    model.head(NAME).losses(output, case.view(batch, targets=True))
    with torch.no_grad():
        model.head(NAME).predict(output, case.view(batch, targets=False))
    for what, value in before.items():
        if said := difference(tensors(value), tensors(shown[what])):
            raise Broken(f"it changes the {what} of the batch in place ({said}); other heads read them too")


def check_state_is_restored(case: HeadCase) -> None:
    """A new head that is given the state of another predicts the same; the state is all tensors."""
    model, other, batch = case.model(seed=1), case.model(seed=2), case.images()
    total(losses(model.train(), case.batch())).backward()  # batch norms and the like have moved
    state = model.state_dict()
    if bad := [name for name, value in state.items() if not isinstance(value, torch.Tensor)]:
        raise Broken(f"'{bad[0]}' of its state is a {type(state[bad[0]]).__name__}, not a tensor")
    other.load_state_dict({name: value.clone() for name, value in state.items()})
    if said := difference(predictions(model.eval(), batch), predictions(other.eval(), batch)):
        raise Broken(f"after its state was loaded, a new head predicts otherwise ({said}): something that matters is "
                     "neither parameter nor buffer")  # fmt: skip


def check_a_seed_decides(case: HeadCase) -> None:
    """With the same seed, parameters and losses are the same; in evaluation, predictions need no seed."""
    one, other, batch = case.model(seed=3), case.model(seed=3), case.batch()
    if said := difference(dict(one.state_dict()), dict(other.state_dict())):
        raise Broken(
            f"two heads made with the same seed have different parameters ({said}); draw from torch's generator"
        )
    if said := difference(dict(losses(one, batch)), dict(losses(other, batch))):
        raise Broken(f"with the same seed, losses differ ({said}); draw from torch's generator")
    one.eval()
    made = []
    for seed in (1, 2):
        with seeded(seed), torch.no_grad():
            made.append(list(one.predict(batch, [NAME])[NAME]))
    if said := difference(*made):
        raise Broken(f"in evaluation, predictions change with the random numbers ({said})")


def check_calls_leave_nothing_behind(case: HeadCase) -> None:
    """In evaluation, what was seen before changes neither predictions nor the state of the module."""
    model, batch = case.model().eval(), case.images()
    first, state = predictions(model, batch), copy.deepcopy(model.state_dict())
    losses(model, case.batch(3, sides=((64, 64),)))
    predictions(model, case.images(3, sides=((64, 96),)))
    predictions(model, dataclasses.replace(batch, images=batch.images.flip(0, 3)))
    if said := difference(dict(state), dict(model.state_dict())):
        raise Broken(f"its state changes in evaluation mode ({said})")
    if said := difference(first, predictions(model, batch)):
        raise Broken(f"predictions depend on what was predicted before ({said}); keep nothing on the module")


def check_copies_predict_the_same(case: HeadCase) -> None:
    """Copied deeply and pickled, it predicts the same: averages of weights and other processes rely on it."""
    model, batch = case.model().eval(), case.images()
    expected = predictions(model, batch)
    for how, made in (("a deep copy", copy.deepcopy(model)), ("a pickled copy", pickle.loads(pickle.dumps(model)))):
        if said := difference(expected, predictions(made, batch)):
            raise Broken(f"{how} predicts otherwise ({said})")


CHECKS = (
    check_the_batch_stays_as_it_is,
    check_state_is_restored,
    check_a_seed_decides,
    check_calls_leave_nothing_behind,
    check_copies_predict_the_same,
)
