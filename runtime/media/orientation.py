"""How a picture must be turned to be upright: display matrices, and the orientation in a picture's metadata.

Legend: H, W pixels.
"""

from __future__ import annotations

import re
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

# a, b, c, d: pixel (x, y) is shown at (a x + c y, b x + d y), up to a translation
Matrix = tuple[float, float, float, float]
UPRIGHT: Matrix = (1, 0, 0, 1)

# By the value of the EXIF tag.
ORIENTATIONS: dict[int, Matrix] = {
    1: UPRIGHT,
    2: (-1, 0, 0, 1),
    3: (-1, 0, 0, -1),
    4: (1, 0, 0, -1),
    5: (0, 1, 1, 0),
    6: (0, 1, -1, 0),
    7: (0, -1, -1, 0),
    8: (0, -1, 1, 0),
}

_TAG = 0x0112
_BYTE_ORDERS = {b"II*\0": "<", b"MM\0*": ">"}
_INTEGERS = {3: "H", 4: "I", 8: "h", 9: "i"}  # TIFF types of 16 and 32 bits
_EXIF_PREFIX = b"Exif\0\0"
_XMP_TAG = re.compile(rb'tiff:Orientation(?:="|>)([1-8])')


def product(first: Matrix, second: Matrix) -> Matrix:
    """The matrix that does `first`, then `second`."""
    a, b, c, d = first
    e, f, g, h = second
    return (a * e + b * g, a * f + b * h, c * e + d * g, c * f + d * h)


def of_metadata(exif: bytes, xmp: bytes) -> Matrix:
    """The matrix for the orientation in a picture's metadata: in EXIF, a TIFF file, or else in XMP."""
    orientation = _exif_orientation(exif)
    if orientation is None and (match := _XMP_TAG.search(xmp)):
        orientation = int(match[1])
    return ORIENTATIONS.get(orientation or 1, UPRIGHT)


def _exif_orientation(exif: bytes) -> int | None:
    tiff = exif.removeprefix(_EXIF_PREFIX)
    order = _BYTE_ORDERS.get(tiff[:4])
    if order is None:
        return None
    try:
        (directory,) = struct.unpack_from(order + "I", tiff, 4)
        (entries,) = struct.unpack_from(order + "H", tiff, directory)
        for at in range(directory + 2, directory + 2 + 12 * entries, 12):
            tag, type, count = struct.unpack_from(order + "HHI", tiff, at)
            if tag == _TAG and type in _INTEGERS and count == 1:
                return int(struct.unpack_from(order + _INTEGERS[type], tiff, at + 8)[0])
    except struct.error:  # damaged metadata; the picture itself may be intact
        pass
    return None


def upright(pixels: NDArray[Any], matrix: Matrix) -> NDArray[Any]:
    """[H, W, ...] by the quarter turn, mirrored or not, that is nearest to `matrix`: a view."""
    a, b, c, d = matrix
    if is_sideways(matrix):
        pixels, flip_x, flip_y = np.swapaxes(pixels, 0, 1), c < 0, b < 0
    else:
        flip_x, flip_y = a < 0, d < 0
    return pixels[:: -1 if flip_y else 1, :: -1 if flip_x else 1]


def is_sideways(matrix: Matrix) -> bool:
    """Whether width becomes height."""
    a, b, c, d = matrix
    return abs(b) + abs(c) > abs(a) + abs(d)
