"""The list ``categories`` of a COCO file: names, keypoints, skeletons, flip pairs and sigmas."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from visionkit.coco.values import describe, field, flag, identifier, number, same_id, text, whole
from visionkit.errors import DataError

Pairs = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Category:
    """A class of a COCO file.

    Attributes:
        id: as in the file.
        name: as in the file.
        isthing: whether its objects are countable.
        color: RGB, 0 to 255, or ``None``.
        keypoints: names of the keypoints of an object.
        skeleton: pairs of indices into ``keypoints`` that are connected.
        flip_pairs: pairs of indices that swap places in a mirrored image, or ``None`` where the file doesn't give any.
        sigmas: one per keypoint for object keypoint similarity, or empty.
    """

    id: int | str
    name: str
    isthing: bool = True
    color: tuple[int, int, int] | None = None
    keypoints: tuple[str, ...] = ()
    skeleton: Pairs = ()
    flip_pairs: Pairs | None = None
    sigmas: tuple[float, ...] = ()


def read_categories(rows: Sequence[Mapping[str, Any]], path: str) -> list[Category]:
    """The entries of the list ``categories`` of a COCO file.

    A skeleton and flip pairs may consist of names or of numbers counted from 1, as in COCO.

    Raises:
        DataError: an entry is wrong or two have the same ID; the message names the file and the category.
    """
    categories = [_read_category(row, f"{path}: category") for row in rows]
    known: set[int | str] = set()
    for category in categories:
        if same_id(category.id) in known:
            raise DataError(f"{path}: two categories have the ID {category.id}")
        known.add(same_id(category.id))
    return categories


def _read_category(row: Mapping[str, Any], where: str) -> Category:
    category_id = identifier(field(row, "id", where), f"{where}: 'id'")
    where = f"{where} {category_id}"
    name = field(row, "name", where)
    name = str(name) if isinstance(name, int | float) and not isinstance(name, bool) else text(name, f"{where}: 'name'")
    where = f"{where} ('{name}')"
    keypoints = _read_keypoint_names(row.get("keypoints"), where)
    flip_pairs = row.get("flip_pairs")
    return Category(
        id=category_id,
        name=name,
        isthing=flag(row.get("isthing", 1), f"{where}: 'isthing'"),
        color=_read_color(row.get("color"), where),
        keypoints=keypoints,
        skeleton=_read_pairs(row.get("skeleton"), keypoints, f"{where}: 'skeleton'"),
        flip_pairs=None if flip_pairs is None else _read_pairs(flip_pairs, keypoints, f"{where}: 'flip_pairs'"),
        sigmas=_read_sigmas(row.get("sigmas"), len(keypoints), where),
    )


def _read_keypoint_names(names: Any, where: str) -> tuple[str, ...]:
    if not names:
        return ()
    if not isinstance(names, list):
        raise DataError(f"{where}: 'keypoints' must be a list of names, not {describe(names)}")
    for index, name in enumerate(names):
        text(name, f"{where}: the name of keypoint {index + 1}")
        if name in names[:index]:
            raise DataError(f"{where}: two keypoints have the name '{name}'")
    return tuple(names)


def _read_pairs(pairs: Any, names: Sequence[str], where: str) -> Pairs:
    """Pairs of keypoints, given by name or by number from 1, as indices from 0."""
    if not pairs:
        return ()
    if not isinstance(pairs, list):
        raise DataError(f"{where} must be a list of pairs of keypoints, not {describe(pairs)}")
    indices = []
    for pair in pairs:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise DataError(f"{where} must consist of pairs of keypoints; it has {describe(pair)}")
        indices.append((_keypoint_index(pair[0], names, where), _keypoint_index(pair[1], names, where)))
    return tuple(indices)


def _keypoint_index(value: Any, names: Sequence[str], where: str) -> int:
    if isinstance(value, str) and value in names:
        return names.index(value)
    number_or_name = f"the names of its {len(names)} keypoints or numbers from 1 to {len(names)}"
    try:
        index = whole(value, where)
    except DataError:
        raise DataError(f"{where} must use {number_or_name}; it has {describe(value)}") from None
    if not 1 <= index <= len(names):
        raise DataError(f"{where} must use {number_or_name}; it has {index}")
    return index - 1


def _read_sigmas(sigmas: Any, num_keypoints: int, where: str) -> tuple[float, ...]:
    if not sigmas:
        return ()
    if not isinstance(sigmas, list):
        raise DataError(f"{where}: 'sigmas' must be a list of numbers, not {describe(sigmas)}")
    if len(sigmas) != num_keypoints:
        raise DataError(f"{where}: {len(sigmas)} sigmas for {num_keypoints} keypoints")
    values = tuple(number(sigma, f"{where}: sigma {index + 1}") for index, sigma in enumerate(sigmas))
    if min(values) <= 0:
        raise DataError(f"{where}: 'sigmas' must be above 0, not {min(values)}")
    return values


def _read_color(color: Any, where: str) -> tuple[int, int, int] | None:
    if not color:
        return None
    if not isinstance(color, list) or len(color) != 3:
        raise DataError(f"{where}: 'color' must be [red, green, blue], not {describe(color)}")
    red, green, blue = (whole(value, f"{where}: 'color'", least=0) for value in color)
    if max(red, green, blue) > 255:
        raise DataError(f"{where}: 'color' must consist of numbers from 0 to 255, not {color}")
    return red, green, blue


def all_keypoints(categories: Sequence[Category]) -> tuple[str, ...]:
    """The names of the keypoints of all categories, each once.

    Categories whose keypoints are the beginning of the longest list give exactly the longest list.
    """
    lists = sorted((category.keypoints for category in categories), key=len, reverse=True)
    return tuple(dict.fromkeys(name for names in lists for name in names))


def all_sigmas(categories: Sequence[Category], names: Sequence[str]) -> tuple[float, ...]:
    """The sigma of each of these keypoints, or nothing if one of them has none."""
    known: dict[str, float] = {}
    for category in categories:
        known |= dict(zip(category.keypoints, category.sigmas))
    return tuple(known[name] for name in names) if names and all(name in known for name in names) else ()


def all_skeletons(categories: Sequence[Category], names: Sequence[str]) -> Pairs:
    """The connected pairs of all categories, as indices into ``names``."""
    return _renumber(((category, category.skeleton) for category in categories), names)


def all_flip_pairs(categories: Sequence[Category], names: Sequence[str]) -> Pairs:
    """The flip pairs of all categories as indices into ``names``; guessed from names where the file gives none."""
    given = _renumber(((category, category.flip_pairs or ()) for category in categories), names)
    guessed = [] if any(category.flip_pairs is not None for category in categories) else flip_pairs_by_name(names)
    return tuple(dict.fromkeys((min(pair), max(pair)) for pair in (*given, *guessed)))


def _renumber(lists: Any, names: Sequence[str]) -> Pairs:
    pairs: dict[tuple[int, int], None] = {}
    for category, own in lists:
        for first, second in own:
            pairs[names.index(category.keypoints[first]), names.index(category.keypoints[second])] = None
    return tuple(pairs)


# How names say left. The first patterns are the surest; a keypoint belongs to the first pair that is found for it.
_LEFT = (
    re.compile("left", re.IGNORECASE),  # left_eye, leftear, EyeLeft
    re.compile("(?<![a-z])l(?![a-z])", re.IGNORECASE),  # l_hip, hip_L, eye.l, L1
    re.compile("(?<![A-Za-z])[lL](?=[A-Z])"),  # lHip, LEye, LBigToe
    re.compile("(?<=[a-z0-9])L(?![a-z])"),  # eyeL, kneeL
    re.compile("(?<![A-Za-z])[lL](?=[a-z])"),  # lknee, Lhip
)


def flip_pairs_by_name(names: Sequence[str]) -> Pairs:
    """Pairs of keypoints that swap places in a mirrored image, by their names.

    Recognized are left and right in any case (``left_eye``, ``LeftEye``, ``eyeLeft``) and the letters L and R
    (``l_hip``, ``eye.L``, ``LEye``, ``kneeL``, ``lknee``), each only where both names of a pair exist.
    """
    index = {name: i for i, name in enumerate(names)}
    partner: dict[int, int] = {}
    for pattern in _LEFT:
        for name in names:
            i, j = index[name], index.get(pattern.sub(_right, name))
            if j is not None and i != j and i not in partner and j not in partner:
                partner[i], partner[j] = j, i
    return tuple(sorted((i, j) for i, j in partner.items() if i < j))


def _right(left: re.Match[str]) -> str:
    """The word or letter for right, spelled as the match for left."""
    word = left[0]
    right = "right" if len(word) > 1 else "r"
    return right.upper() if word.isupper() else right.capitalize() if word[0].isupper() else right
