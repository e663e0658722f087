"""COCO panoptic annotations as targets: a JSON file and a folder of PNGs."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch

from visionkit.coco.panoptic import PanopticFile, read_panoptic
from visionkit.coco.report import OnError, Report, some
from visionkit.coco.values import same_id
from visionkit.data.categories import label_set
from visionkit.errors import DataError
from visionkit.types import IGNORE, LabelSet, PanopticTarget


class PanopticMaps:
    """Segments from the COCO panoptic format: that of a pixel is ``R + 256 G + 65536 B``, where 0 is void.

    Args:
        annotations: the JSON file.
        masks: the folder of PNGs; ``None``: beside the JSON, of the same name.
        on_error: ``"skip"`` leaves out images and annotations that are wrong, and counts them in ``problems``.

    Attributes:
        file: what was read.
        labels: its categories.
        problems: what was left out or is missing, one line per kind.

    Raises:
        DataError: the files contradict themselves; the message names the file, the image and the segment.
    """

    file: PanopticFile
    labels: LabelSet
    problems: list[str]

    def __init__(self, annotations: str, masks: str | None = None, *, on_error: OnError = "fail") -> None:
        self.path = annotations
        self.file = read_panoptic(annotations, masks, on_error=on_error)
        categories = self.file.categories
        if len(categories) > IGNORE:
            raise DataError(f"{annotations}: {len(categories)} categories; a label map holds at most {IGNORE}")
        self.labels = label_set(annotations, categories)
        self.problems = list(self.file.problems)
        self._on_error = on_error
        self._usable = set(self.file.maps.row_of)

    def match(self, image_ids: Sequence[int | str], owner: str) -> None:
        """Compare the annotations with the images of a source, before the first of them is loaded.

        Adds to ``problems`` how many images are not annotated, and with ``on_error: skip`` how many PNGs are missing.

        Args:
            image_ids: of the source.
            owner: the file that lists them, for messages.

        Raises:
            DataError: no image is annotated, so that the IDs of the two files must differ in meaning; or the PNG of an
                image is missing.
        """
        rows = self.file.maps.row_of
        annotated = [image for image in image_ids if same_id(image) in rows]
        if image_ids and not annotated:
            raise DataError(
                f"{self.path}: 0 of {len(image_ids)} images of {owner} have a panoptic annotation (their IDs are "
                f"{some(image_ids, 4)}; the annotated images have {some([*rows], 4) or 'none'})"
            )
        if len(annotated) < len(image_ids):
            missing = [image for image in image_ids if same_id(image) not in rows]
            self.problems.append(f"{self.path}: {len(annotated)} of {len(image_ids)} images have a panoptic "
                                 f"annotation; the others have none (ID {some(missing, 3)})")  # fmt: skip
        report = Report(self.path, self._on_error)
        maps = self.file.maps
        names = {image: maps.file_names[rows[same_id(image)]] for image in annotated}
        there = {
            folder: _names_in(os.path.join(maps.folder, folder)) for folder in set(map(os.path.dirname, names.values()))
        }
        gone = [image for image, name in names.items() if os.path.basename(name) not in there[os.path.dirname(name)]]
        for image in gone:
            report.reject("panoptic annotations whose PNG is missing, of images", image,
                          f"{maps.png(rows[same_id(image)])}: no such file: the PNG of image {image} "
                          f"({len(gone)} of {len(annotated)} PNGs are missing)")  # fmt: skip
        self._usable -= {same_id(image) for image in gone}
        self.problems += report.lines

    def load(self, image: int | str, size: tuple[int, int]) -> PanopticTarget | None:
        """The segments of an image by its ID, ``None`` where it is not annotated. Those without a pixel are left out.

        Raises:
            DataError: the PNG is missing, not of this (height, width), or contradicts the JSON; the message names it.
        """
        if (image := same_id(image)) not in self._usable:
            return None
        maps = self.file.maps
        row = maps.row_of[image]
        own = maps.segments(row)
        return PanopticTarget(
            segments=torch.from_numpy(maps.read_map(row, size)),
            labels=torch.from_numpy(maps.labels[own]).long(),
            crowd=torch.from_numpy(maps.crowd[own].copy()),
            ids=torch.from_numpy(maps.ids[own]).long(),
        ).seen()


def _names_in(folder: str) -> set[str]:
    try:
        return set(os.listdir(folder))
    except OSError:
        return set()
