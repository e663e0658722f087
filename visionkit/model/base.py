"""The contracts of backbone, neck and head. A plugin subclasses one of these and needs nothing else of the core."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from visionkit.types import Batch, Features, FeatureSpec, LabelSet, Mean, Output, Prediction
from visionkit.types.declared import (
    FLAG,
    MAPPING,
    NAMES,
    TEXT,
    declaration_problem,
    mapping_to,
    optional,
    subclass_of,
)

_HEAD = {
    "task": TEXT,
    "makes": subclass_of(Prediction),
    "output": subclass_of(Output),
    "needs": mapping_to(subclass_of(Output)),
    "may_read": mapping_to(subclass_of(Output)),
    "labels_from": optional(TEXT),
    "loss_names": NAMES,
    "phase_loss_names": mapping_to(NAMES),
    "evaluators": NAMES,
    "remembers": FLAG,
    "exportable": FLAG,
    "expected_failures": mapping_to(TEXT),
    "check_args": MAPPING,
    "starts_from": NAMES,
}


class Backbone(nn.Module):
    """Images -> features.

    The constructor takes keyword arguments only, among them ``levels``: the names that are read (``None``: all), so
    that nothing is built in vain. The core builds it on the ``meta`` device first, to learn its spec: that must cost no
    memory and load no weights (``torch.get_default_device().type == "meta"`` tells).

    Attributes:
        spec: the levels it yields.
        mean, std: what pixels (0 ... 1, RGB) are normalised with before :meth:`forward`.
        starts_from: names of arguments that only say what it starts from (files of weights): they are left out where
            a run is loaded, which holds what they gave.
    """

    starts_from: ClassVar[tuple[str, ...]] = ("pretrained",)

    spec: FeatureSpec
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Features by level name from normalised images (B, 3, H, W)."""
        raise NotImplementedError


class Neck(nn.Module):
    """Features -> further features, offered beside those of the backbone.

    Built as ``Neck(spec, *, levels=None, ...)`` from the backbone's spec; ``levels`` are the names of its own levels
    that are read.

    Attributes:
        spec: the levels it yields.
        reads: the backbone levels it needs for that.
    """

    spec: FeatureSpec
    reads: tuple[str, ...]

    def forward(self, features: Features) -> dict[str, Tensor]:
        """The neck's own levels from the backbone's."""
        raise NotImplementedError


class Head(nn.Module):
    """Shared features -> one kind of prediction.

    A head is built as ``Head(spec, labels, *, ...)``; the keyword arguments are its whole configuration, checked
    against the pipeline file by their annotations. ``forward`` never looks at ``self.training`` and sees no targets;
    losses and predictions are both just asked for, in any mode.

    Class attributes:
        task: which targets it learns from (``"boxes"``, ``"masks"``, ``"keypoints"``, ``"semantic"`` or a new name
            that a source offers).
        makes: the type of prediction.
        output: what ``forward`` returns; other heads may read it by naming that type, or a base, in ``needs``.
        needs: port name -> type of output of another head.
        may_read: the same for ports that stay open unless a pipeline says who feeds them (``reads``).
        labels_from: the port whose head it shares its label set with (a mask branch names the classes of its boxes);
            ``None`` where its labels come from its own sources.
        loss_names: the names of the losses, always the same ones. Where an option adds a loss, the constructor gives
            the instance names of its own.
        phase_loss_names: the same for each phase but ``"main"``.
        evaluators: names of the evaluators that judge its predictions unless the pipeline says otherwise.
        remembers: whether it has a memory: its output then has a field ``memory``, which the next frame of the clip
            finds as ``upstream["memory"]``.
        exportable: whether ``forward`` can be captured by ``torch.export``.
        expected_failures: conformance check -> why this head cannot pass it.
        check_args: keyword arguments that ``visionkit check`` builds it with, beside those that are given: narrow
            widths make the checks quick. ``{data}`` in a text becomes the folder of a small synthetic dataset.
        starts_from: names of arguments that only say what it starts from (files of weights): they are left out where
            a run is loaded, which holds what they gave.

    Instance attributes:
        levels: names of the feature levels it reads; set in the constructor.
        port_labels: the label set of the head at each port; set by :meth:`connect`.
        mirrors: whether predictions are to be made of an image and its mirror image; see :meth:`join_mirrored`.
    """

    task: ClassVar[str]
    makes: ClassVar[type[Prediction]]
    output: ClassVar[type[Output]] = Output
    needs: ClassVar[Mapping[str, type[Output]]] = {}
    may_read: ClassVar[Mapping[str, type[Output]]] = {}
    labels_from: ClassVar[str | None] = None
    loss_names: tuple[str, ...]
    phase_loss_names: Mapping[str, tuple[str, ...]] = {}
    evaluators: ClassVar[tuple[str, ...]] = ()
    remembers: ClassVar[bool] = False
    exportable: ClassVar[bool] = False
    expected_failures: ClassVar[Mapping[str, str]] = {}
    check_args: ClassVar[Mapping[str, Any]] = {}
    starts_from: ClassVar[tuple[str, ...]] = ()

    levels: tuple[str, ...] = ()
    mirrors: bool = False

    @classmethod
    def declaration_problem(cls) -> str:
        """The first class attribute that is missing or of the wrong type, in words; empty if there is none."""
        return declaration_problem(cls, _HEAD, ("task", "makes"))

    def __init__(self, spec: FeatureSpec, labels: LabelSet, **_: Any) -> None:
        super().__init__()
        self.labels = labels
        self.port_labels: Mapping[str, LabelSet] = {}

    def connect(self, port_labels: Mapping[str, LabelSet]) -> None:
        """Called once, when the heads at the ports are known; a head that joins their classes by name does so here.

        Args:
            port_labels: the label set of the head at each port.

        Raises:
            UserError: what is read does not fit; the message says what is missing.
        """
        self.port_labels = port_labels

    def problems(self) -> list[str]:
        """What a user should know before it is trained, a line each; ``train`` and ``validate`` tell it."""
        return []

    def forward(self, features: Features, batch: Batch, upstream: Mapping[str, Any]) -> Any:
        """The head's output.

        Args:
            features: the levels it reads, each (B, C, H / stride, W / stride).
            batch: images and their sizes, without targets.
            upstream: by port name, the outputs of the heads it reads. A head with memory finds what its last output
                kept under ``"memory"`` (``None`` at the start of a clip).
        """
        raise NotImplementedError

    def losses(self, output: Any, batch: Batch) -> Mapping[str, Tensor | Mean]:
        """Losses by name; every image of ``batch`` is labelled for this head.

        A scalar is taken for a mean over the images. A loss that is a mean over something else (pixels, anchors,
        objects) is better returned as :class:`~visionkit.types.Mean`, which stays exact over several processes.
        """
        raise NotImplementedError

    def predict(self, output: Any, batch: Batch) -> Sequence[Prediction]:
        """One prediction an image, in original image coordinates; needs no targets."""
        raise NotImplementedError

    def join_mirrored(self, output: Any, mirrored: Any, batch: Batch) -> Any:
        """One output of what :meth:`forward` made of the images, and of the images mirrored (without their padding).

        Only asked for where :attr:`mirrors` is set; :meth:`predict` is given the result.
        """
        raise NotImplementedError(
            f"{type(self).__name__} does not say what a mirrored image adds: give it join_mirrored"
        )

    def phases(self) -> Mapping[str, Iterable[nn.Parameter]]:
        """Parameter groups that are trained in turn, each by an optimiser of its own; ``"main"`` is everyone's.

        An adversarial head adds a phase for its discriminator and leaves those parameters out of ``"main"``. While one
        phase is trained, the parameters of the others get no gradient, and their batch norms keep their statistics.
        """
        return {"main": self.parameters()}

    def phase_losses(self, phase: str, output: Any, batch: Batch) -> Mapping[str, Tensor | Mean]:
        """The losses of one phase; ``output`` is what ``"main"`` made, detached in every phase but that."""
        return self.losses(output, batch) if phase == "main" else {}
