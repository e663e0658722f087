"""Label sets from the categories of COCO files."""

from __future__ import annotations

from collections.abc import Sequence

from visionkit.coco.categories import Category, all_flip_pairs, all_keypoints, all_sigmas, all_skeletons
from visionkit.errors import DataError
from visionkit.types import LabelSet


def label_set(path: str, categories: Sequence[Category], *, keypoints: bool = False) -> LabelSet:
    """The label set of a COCO file's categories; with ``keypoints``, with the keypoints of all of them.

    Args:
        path: the file, for messages.
        categories: in the order of the labels.

    Raises:
        DataError: two categories have the same name.
    """
    names = [category.name for category in categories]
    if len(set(names)) < len(names):
        name = next(name for name in names if names.count(name) > 1)
        ids = ", ".join(str(category.id) for category in categories if category.name == name)
        raise DataError(f"{path}: the categories {ids} have the same name, '{name}'")
    colors = tuple(category.color for category in categories if category.color is not None)
    points = all_keypoints(categories) if keypoints else ()
    return LabelSet(
        names=tuple(names),
        ids=tuple(category.id for category in categories),
        things=tuple(category.isthing for category in categories),
        colors=colors if len(colors) == len(names) else (),
        keypoints=points,
        skeleton=all_skeletons(categories, points) if points else (),
        swaps=all_flip_pairs(categories, points) if points else (),
        sigmas=all_sigmas(categories, points),
    )
