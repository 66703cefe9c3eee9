"""Draws the project's sample inputs: a drive along a country road, as a clip and as a still image.

`python -m cosmos_triton.tiny.sample_media FOLDER` writes both.

Lengths are in metres from a camera above the middle of the road. Legend: H, W pixels; x right, y down, z ahead.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from cosmos_triton.runtime.media.encode import FPS, encode_mp4

HEIGHT, WIDTH, CLIP_FRAMES = 640, 1024, 40
CLIP_NAME, STILL_NAME = "road.mp4", "road.jpg"

HORIZON, FOCAL = 262, 760.0  # pixels
CAMERA, SPEED = 1.5, 15.0  # metres, metres a second
HALF_ROAD, DASH, DASH_PERIOD = 4.2, 3.0, 9.0
TREE_EVERY, NEAREST_TREE, TREES = 11.0, 6.0, 13  # metres, metres, on each side
FADE = 170.0  # metres to where haze has taken 63 % of a colour

Image = NDArray[np.floating[Any]]  # [H, W, 3] or [H, W]
Colour = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Light:
    """The time of day: colours in [0, 1], and the position of the sun in pixels."""

    zenith: Colour
    haze: Colour
    sun: Colour
    sun_at: tuple[float, float]
    grass: Colour
    brightness: float


EVENING = Light((0.13, 0.20, 0.44), (0.98, 0.66, 0.43), (1.0, 0.86, 0.60), (452, 186), (0.25, 0.30, 0.13), 0.95)
NOON = Light((0.20, 0.45, 0.83), (0.80, 0.90, 0.96), (1.0, 0.99, 0.93), (250, 60), (0.33, 0.50, 0.17), 1.05)

# Centres of the pixels.
_y = (np.arange(HEIGHT, dtype=np.float32) + 0.5)[:, None]  # [H, 1]
_x = (np.arange(WIDTH, dtype=np.float32) + 0.5)[None, :]  # [1, W]


def draw(seconds: float, light: Light) -> NDArray[np.uint8]:
    """The view after `seconds` of driving: uint8 [H, W, 3]."""
    image = np.concatenate([_sky(seconds, light), _ground(seconds, light)])
    driven = SPEED * seconds
    nearest = int((driven + NEAREST_TREE) // TREE_EVERY) + 1
    for number in range(nearest + TREES, nearest, -1):  # from far to near
        for side in (-1, 1):
            _tree(image, number, side, number * TREE_EVERY - driven, light, seconds)
    _car(image, seconds, light)
    return (np.clip(image * light.brightness, 0, 1) * 255 + 0.5).astype(np.uint8)


def _sky(seconds: float, light: Light) -> Image:
    y = _y[:HORIZON]
    height = (1 - y / HORIZON) ** 0.7  # [H, 1], 0 at the horizon
    image = np.broadcast_to(_mix(light.haze, light.zenith, height[..., None]), (HORIZON, WIDTH, 3)).copy()
    distance = np.hypot(_x - light.sun_at[0], y - light.sun_at[1])
    _paint(image, 0.55 * np.exp(-distance / 130), light.sun)
    _paint(image, _step(24.0 - distance, 2), light.sun)
    clouds = _noise(_x / 210 + seconds * 0.03, y / 34) + 0.5 * _noise(_x / 70 + seconds * 0.05, y / 17)
    _paint(image, 0.5 * _step(clouds - 0.85, 0.5) * height, _mix(light.haze, (1, 1, 1), 0.5))
    for layer, (rise, length, haze) in enumerate(((84, 260, 0.72), (56, 150, 0.5), (34, 70, 0.3))):
        along = (_x + _turn(seconds) * 3) / length + 17 * layer
        ridge = HORIZON - rise * (0.35 + 0.65 * _noise(along, np.full_like(along, layer)) + 0.06 * np.sin(along * 9))
        _paint(image, _step(y - ridge, 1.5), _mix(_dim(light.grass, 0.45), light.haze, haze))
    return image


def _ground(seconds: float, light: Light) -> Image:
    """Fields, the road and its marks, fading into haze."""
    depth = CAMERA * FOCAL / (_y[HORIZON:] - HORIZON)  # [H, 1] distance of the ground in a row of pixels
    across = (_x - WIDTH / 2) * depth / FOCAL - _bend(depth, seconds)  # [H, W] metres from the middle of the road
    along = depth + SPEED * seconds  # [H, 1] metres on the road
    pixel = depth / FOCAL  # width of a pixel in metres
    near = np.exp(-depth / 25)  # fades out detail finer than a pixel, which would flicker

    tufts = _noise(across * 1.1, along * 0.5) - 0.5 + near * (_noise(across * 6, along * 3) - 0.5)
    image = np.multiply(light.grass, (1 + 0.7 * tufts)[..., None], dtype=np.float32)
    side = np.abs(across)
    _paint(image, _step(HALF_ROAD + 0.9 - side + 0.3 * tufts, 0.2 + pixel), (0.42, 0.37, 0.30))
    tracks = 0.06 * np.cos(across * 3)
    grain = 1 - tracks + 0.10 * near * (_noise(across * 14, along * 7) - 0.5)
    _paint(image, _step(HALF_ROAD - side, pixel), np.multiply((0.23, 0.23, 0.25), grain[..., None]))
    in_dash = np.abs(along % DASH_PERIOD - DASH_PERIOD / 2) < DASH / 2
    _paint(image, _step(0.09 - side, pixel) * in_dash, (0.92, 0.90, 0.84))
    _paint(image, _step(0.08 - np.abs(side - HALF_ROAD + 0.35), pixel), (0.88, 0.87, 0.82))
    return _mix(image, light.haze, (1 - np.exp(-depth / FADE))[..., None])


def _tree(image: Image, number: int, side: int, z: float, light: Light, seconds: float) -> None:
    random = np.random.default_rng((number, side + 1))
    scale, haze = FOCAL / z, 1 - np.exp(-z / FADE)
    tall, wide = random.uniform(5, 8) * scale, random.uniform(1.5, 2.3) * scale
    x = WIDTH / 2 + (side * (HALF_ROAD + random.uniform(3.2, 7)) + _bend(z, seconds)) * scale
    foot, crown = HORIZON + CAMERA * scale, HORIZON + CAMERA * scale - 0.66 * tall
    rim = 1 + 0.03 * scale
    _ellipse(image, x, foot, wide, 0.12 * wide, 0.4 * wide, (0.05, 0.06, 0.05), opacity=0.6)
    _box(image, x, foot - 0.3 * tall, 0.14 * scale, 0.3 * tall, 1, _mix((0.22, 0.16, 0.11), light.haze, haze))
    leaves = _mix(light.grass, (0.10, 0.20, 0.06), 0.5)
    sunward = np.sign(light.sun_at[0] - x)
    around = [(0.0, 0.0, 0.8)] + [(u, v, 0.42) for u, v in random.normal(0, 0.42, (16, 2)) if u * u + v * v < 1]
    for u, v, size in sorted(around, key=lambda leaf: (leaf[2] < 0.5, -leaf[1])):  # low before high
        colour = _dim(leaves, 0.85 - 0.35 * v + 0.2 * u * sunward if size < 0.5 else 0.6)
        _ellipse(
            image,
            x + u * wide,
            crown + 0.3 * v * tall,
            size * wide,
            size * 0.3 * tall,
            rim,
            _mix(colour, light.haze, haze),
        )


def _car(image: Image, seconds: float, light: Light) -> None:
    """The car ahead, seen from behind. It comes closer and drifts within its lane."""
    z = 17 - 1.6 * seconds
    scale = FOCAL / z
    middle = WIDTH / 2 + (2 + 0.12 * np.sin(2 * seconds) + _bend(z, seconds)) * scale
    foot = HORIZON + CAMERA * scale

    def box(x: float, low: float, high: float, half: float, corner: float, colour: Colour | Image) -> None:
        """From `low` to `high` metres above the road, `half` metres to both sides of x."""
        y, half_height = foot - (low + high) / 2 * scale, (high - low) / 2 * scale
        _box(image, middle + x * scale, y, half * scale, half_height, corner * scale, colour)

    _ellipse(image, middle, foot, 1.05 * scale, 0.12 * scale, 0.25 * scale, (0.03, 0.03, 0.04), opacity=0.8)
    for x in (-0.68, 0.68):
        box(x, 0.0, 0.5, 0.14, 0.05, (0.04, 0.04, 0.05))
    box(0, 0.22, 0.98, 0.88, 0.16, (0.62, 0.11, 0.10))
    box(0, 0.80, 1.46, 0.66, 0.20, (0.55, 0.09, 0.09))
    box(0, 0.96, 1.36, 0.55, 0.12, _mix((0.10, 0.12, 0.16), light.haze, 0.25))
    box(0, 0.24, 0.36, 0.84, 0.05, (0.16, 0.15, 0.16))
    box(0, 0.50, 0.64, 0.24, 0.02, (0.86, 0.86, 0.80))
    for x in (-0.68, 0.68):
        box(x, 0.66, 0.84, 0.15, 0.05, (1.0, 0.24, 0.14))
        _ellipse(image, middle + x * scale, foot - 0.75 * scale, 0, 0, 0.5 * scale, (1.0, 0.25, 0.15), opacity=0.35)


def _turn(seconds: float) -> float:
    return float(14 * np.sin(0.8 * seconds))


def _bend(z: Any, seconds: float) -> Any:
    """Lateral displacement of the road at depth z, a number or an array."""
    return np.minimum(z, 400) ** 2 * 1e-5 * (30 + _turn(seconds))


def _ellipse(
    image: Image,
    x: float,
    y: float,
    half_width: float,
    half_height: float,
    rim: float,
    colour: Colour | Image,
    *,
    opacity: float = 1.0,
) -> None:
    """Opaque inside, fading out over `rim` pixels."""
    a, b = half_width + rim, half_height + rim
    part, u, v = _part(image, x, y, a, b)
    _paint(part, opacity * _step(1 - np.hypot(u / a, v / b) - rim / a / 2, rim / a), colour)


def _box(
    image: Image, x: float, y: float, half_width: float, half_height: float, corner: float, colour: Colour | Image
) -> None:
    """A rectangle with rounded corners, antialiased."""
    part, u, v = _part(image, x, y, half_width + 1, half_height + 1)
    beyond = np.abs(u) - half_width + corner, np.abs(v) - half_height + corner
    outside = np.hypot(np.maximum(beyond[0], 0), np.maximum(beyond[1], 0)) + np.minimum(np.maximum(*beyond), 0)
    _paint(part, _step(corner - outside, 1), colour)


def _part(image: Image, x: float, y: float, half_width: float, half_height: float) -> tuple[Image, Image, Image]:
    """A view of the image around (x, y), and the offsets of its pixels from there in x and y."""
    top, bottom = (int(np.clip(edge, 0, HEIGHT)) for edge in (y - half_height, y + half_height + 1))
    left, right = (int(np.clip(edge, 0, WIDTH)) for edge in (x - half_width, x + half_width + 1))
    return image[top:bottom, left:right], _x[:, left:right] - np.float32(x), _y[top:bottom] - np.float32(y)


def _paint(image: Image, mask: Image, colour: Colour | Image) -> None:
    """Blend a colour into the image, in place; `mask` in [0, 1] is its opacity."""
    image += mask[..., None] * (np.asarray(colour, np.float32) - image)


def _step(distance: Image, width: Image | float) -> Image:
    """A smooth step from 0 where `distance` is negative to 1 where it is positive, `width` wide."""
    ramp = np.clip(distance / width + 0.5, 0, 1)
    return np.asarray(ramp * ramp * (3 - 2 * ramp), np.float32)


def _noise(u: Image, v: Image) -> Image:
    """Value noise in [0, 1] over the plane, with a grid of unit size."""
    column, row = np.floor(u), np.floor(v)
    fu, fv = u - column, v - row
    fu, fv = fu * fu * (3 - 2 * fu), fv * fv * (3 - 2 * fv)

    def corner(right: int, down: int) -> Image:
        mixed = (column + right).astype(np.int32) * 73856093 ^ (row + down).astype(np.int32) * 19349663
        mixed = (mixed ^ mixed >> 13) * 1274126177
        return ((mixed ^ mixed >> 16) & 0xFFFF).astype(np.float32) / 0xFFFF

    top = corner(0, 0) + fu * (corner(1, 0) - corner(0, 0))
    bottom = corner(0, 1) + fu * (corner(1, 1) - corner(0, 1))
    return np.asarray(top + fv * (bottom - top), np.float32)


def _mix(a: Colour | Image, b: Colour | Image, share: Image | float) -> Image:
    first = np.asarray(a, np.float32)
    return np.asarray(first + share * (np.asarray(b, np.float32) - first), np.float32)


def _dim(colour: Colour | Image, factor: float) -> Image:
    return np.asarray(colour, np.float32) * np.float32(factor)


def encode_jpeg(picture: NDArray[np.uint8]) -> bytes:
    """uint8 [H, W, 3] -> the bytes of a jpeg file."""
    codec = av.CodecContext.create("mjpeg", "w")
    codec.height, codec.width = picture.shape[:2]
    codec.pix_fmt, codec.time_base, codec.options = "yuvj420p", Fraction(1, FPS), {"qmin": "2", "qmax": "2"}
    frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuvj420p")
    return b"".join(bytes(packet) for packet in [*codec.encode(frame), *codec.encode(None)])


def write_samples(folder: Path) -> tuple[Path, Path]:
    """Draw the clip and the still image into `folder`; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    clip, still = folder / CLIP_NAME, folder / STILL_NAME
    frames = np.stack([draw(i / FPS, EVENING) for i in range(CLIP_FRAMES)])  # [T, H, W, 3]
    metadata = {"title": "A country road in the evening", "comment": "drawn by a program"}
    clip.write_bytes(encode_mp4(frames, metadata=metadata))
    still.write_bytes(encode_jpeg(draw(3.2, NOON)))
    return clip, still


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Draw a sample clip and a sample image.")
    parser.add_argument("folder", type=Path)
    for path in write_samples(parser.parse_args().folder):
        print(path)
