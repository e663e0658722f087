"""Accelerators, on an emulated device: what would fail on a GPU, and how often the host waits for it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.optim import SGD

from visionkit.errors import UserError
from visionkit.model import MultiTaskModel
from visionkit.testing.case import NAME, HeadCase
from visionkit.testing.compare import tensors
from visionkit.testing.fake_cuda import FakeCuda, Log, fake_cuda
from visionkit.testing.fake_cuda.log import place_of
from visionkit.testing.report import Broken, NotApplicable, seeded
from visionkit.train.step import SMALLEST_SCALE
from visionkit.types import MixedBatch, Prediction
from visionkit.types._tree import map_tensors

MOST_PER_STEP = 20
"""Host synchronizations in one training step on a batch of two images."""
MOST_PER_PREDICTION = 40
"""Host synchronizations in the prediction of two images."""

PRECISIONS: Mapping[str, torch.dtype | None] = {
    "32-true": None,
    "16-mixed": torch.float16,
    "bf16-mixed": torch.bfloat16,
}

PIXELS = 8.0  # what is above is a coordinate, and no score
ENOUGH = 8  # coordinates, to tell whether they are rounded


def check_works_on_an_accelerator(case: HeadCase) -> str:
    """On an emulated CUDA device it trains a step and predicts, with the precisions `32-true`, `16-mixed` and
    `bf16-mixed`: no operator mixes devices, losses and gradients are finite, and coordinates of predictions are not
    rounded to half precision. The host waits for the device at most 20 times in a training step on two images and at
    most 40 times in their prediction, not counting the transfer of the batch to the device and of predictions to the
    host. The numbers are reported."""
    if torch.cuda.is_available():
        raise NotApplicable("a CUDA device cannot be emulated on a machine that has one")
    model = case.model()
    padded, whole = case.images(), case.images(sides=[case.samples[0].info.original_size])
    batches = {"on a batch without labels": case.batch(unlabelled=(0, 1))}
    with contextlib.suppress(NotApplicable):
        batches["on images without objects"] = case.batch(empty=(0, 1))
    batches["on two images"] = case.batch()
    exact: Sequence[Prediction] = ()
    counts: dict[str, list[Log]] = {"training step": [], "prediction": []}
    with fake_cuda() as gpu:
        model.to("cuda")
        for precision, half in PRECISIONS.items():
            for what, batch in batches.items() if NAME in model.learning else ():
                with _running(f"a training step {what} with {precision}", half):
                    # Training scales losses in float16 until gradients do not overflow; this is the least scale.
                    log = _train(gpu, model, batch, SMALLEST_SCALE if half == torch.float16 else 1.0)
            if NAME in model.learning:
                counts["training step"].append(log)
            with _running(f"prediction with {precision}", half):
                counts["prediction"].append(_predict(gpu, model, padded)[1])
                # Coordinates of these are not scaled afterwards, so rounding can be seen.
                found, log = _predict(gpu, model, whole)
                counts["prediction"].append(log)
                if half is None:
                    exact = found
                else:
                    _assert_exact_coordinates(exact, found, half, whole.info[0].original_size)
    limits = {"training step": MOST_PER_STEP, "prediction": MOST_PER_PREDICTION}
    return ", ".join(_bounded(what, logs, limits[what]) for what, logs in counts.items() if logs)


@contextlib.contextmanager
def _running(what: str, half: torch.dtype | None) -> Iterator[None]:
    """Autocast to ``half``; errors say what was running, and where."""
    try:
        with seeded(), torch.autocast("cuda", half or torch.float16, enabled=half is not None):
            yield
    except Broken as error:
        raise Broken(f"in {what}, {error}") from error
    except (NotApplicable, UserError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split())
        raise Broken(f"{what} fails at {place_of(error)}: {type(error).__name__}: {reason}") from error


def _train(gpu: FakeCuda, model: MultiTaskModel, batch: MixedBatch, scale: float) -> Log:
    """One step of every phase of the head, with the losses multiplied by ``scale``."""
    model.train()
    outputs = None
    batch = batch.to("cuda")
    with gpu.recording() as log:
        for phase, parameters in model.head(NAME).phases().items():
            losses, outputs = model.losses(batch, phase, outputs)
            values = losses.get(NAME, {})
            with gpu.recording():
                _assert_usable(values)
            if values:
                (torch.stack([value.float() for value in values.values()]).sum() * scale).backward()
            with gpu.recording():
                _assert_finite_gradients(model)
            if trained := [parameter for parameter in parameters if parameter.grad is not None]:
                SGD(trained, lr=1e-6).step()
            model.zero_grad()
            # Later phases see what the outputs are, not how they were computed.
            outputs = {name: map_tensors(output, Tensor.detach) for name, output in outputs.items()}
    return log


def _assert_usable(losses: Mapping[str, Tensor]) -> None:
    for name, value in losses.items():
        if value.device.type != "cuda":
            raise Broken(f"loss '{name}' is on the CPU; allocate tensors on the device of those they belong to")
        if not bool(value.isfinite()):
            raise Broken(f"loss '{name}' is {value.item()}")


def _assert_finite_gradients(model: MultiTaskModel) -> None:
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and not bool(parameter.grad.isfinite().all()):
            raise Broken(f"the gradient of parameter '{name}' is not finite")


def _predict(gpu: FakeCuda, model: MultiTaskModel, batch: MixedBatch) -> tuple[list[Prediction], Log]:
    """Predictions on the CPU, and what happened until they were there on the device."""
    model.eval()
    batch = batch.to("cuda")
    with torch.no_grad():
        with gpu.recording() as log:
            found = model.predict(batch, [NAME])[NAME]
        with gpu.recording():
            return [map_tensors(prediction, lambda tensor: tensor.cpu()) for prediction in found], log


def _assert_exact_coordinates(
    exact: Sequence[Prediction], found: Sequence[Prediction], half: torch.dtype, size: tuple[int, int]
) -> None:
    """If most coordinates of full precision cannot be represented in half precision, neither in pixels nor as shares of
    an image of ``size``, and all of those of mixed precision can, then they were rounded."""
    reference = _by_field(exact)
    for field, values in _by_field(found).items():
        if values.dtype in (torch.float16, torch.bfloat16):
            raise Broken(f"'{field}' of its predictions is {values.dtype}; end in .float()")
        expected = reference.get(field, values[:0])
        if not bool(values.isfinite().all()) and bool(expected.isfinite().all()):
            raise Broken(f"'{field}' of its predictions is not finite")
        expected, values = expected[expected.abs() > PIXELS], values[values.abs() > PIXELS]
        rounded = [_representable(part, half, (1, *size)) for part in (expected, values)]
        if min(len(expected), len(values)) >= ENOUGH and rounded[0] < 0.5 and rounded[1] == 1.0:
            raise Broken(f"the coordinates in '{field}' of its predictions are rounded to half precision: compute them "
                         "in float32, with autocast disabled if matrix products are involved")  # fmt: skip


def _representable(values: Tensor, half: torch.dtype, units: Sequence[int]) -> float:
    """The share of the values that half precision can represent in any of these units."""
    found = torch.zeros(len(values), dtype=torch.bool)
    for unit in units:
        scaled = values.double() / unit
        found |= (scaled.to(half).double() - scaled).abs() <= scaled.abs() * 2.0**-20
    return float(found.float().mean()) if len(values) else 0.0


def _by_field(predictions: Sequence[Prediction]) -> dict[str, Tensor]:
    """The floating-point numbers of all predictions by the field that they are in."""
    fields: dict[str, list[Tensor]] = {}
    for prediction in predictions:
        for path, value in tensors(prediction).items():
            if value.is_floating_point():
                fields.setdefault(path.partition("[")[0], []).append(value.flatten())
    return {field: torch.cat(values) for field, values in fields.items()}


def _bounded(what: str, logs: Sequence[Log], limit: int) -> str:
    """The number of synchronizations, if it is within the limit in every precision."""
    log = max(logs, key=lambda log: len(log.synchronizations))
    count = len(log.synchronizations)
    if count > limit:
        raise Broken(f"in a {what} the host waits {count} times for the device, and {limit} times are allowed; most "
                     f"often: {'; '.join(log.places(3))}")  # fmt: skip
    return f"{count} host synchronizations per {what}"


CHECKS = (check_works_on_an_accelerator,)
