"""Draws one picture of a made-up class: a textured, coloured shape somewhere before a cluttered background.

What tells the classes apart is shape, texture and colour together. What varies within a class, as in photographs,
is place, size, rotation, stretch, lighting, exact colour, background, sharpness, noise and the picture's own size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

Field = npt.NDArray[Any]
"""A plane of numbers, (height, width) float32."""

_COLOURS = ("red", "orange", "yellow", "lime", "green", "teal", "azure", "blue", "violet", "pink")
_ASPECT_MAX = 1.6
_TILT_RAD = 0.4  # things mostly stand upright in photographs, too
_COLOUR_SPREAD = 0.05  # of the hue circle; neighbouring colours are 0.1 apart, so they are mistaken now and then


def _polar(u: Field, v: Field) -> tuple[Field, Field]:
    return np.hypot(u, v), np.arctan2(v, u)


def _polygon(u: Field, v: Field, corners: int) -> Field:
    radius, angle = _polar(u, v)
    sector = 2 * math.pi / corners
    distance: Field = 0.6 - radius * np.cos((angle % sector) - sector / 2)
    return distance


def _lobes(u: Field, v: Field, lobes: int, depth: float) -> Field:
    radius, angle = _polar(u, v)
    distance: Field = 0.62 + depth * np.cos(lobes * angle) - radius
    return distance


def _bars(u: Field, v: Field, reach: float, half_width: float) -> Field:
    return np.minimum(reach - np.abs(u), half_width - np.abs(v))


# Each is positive inside the shape and falls off by about one a unit of length; the shape fills [-1, 1] x [-1, 1].
_SHAPES: dict[str, Callable[[Field, Field], Field]] = {
    "disc": lambda u, v: 0.8 - np.hypot(u, v),
    "star": lambda u, v: _lobes(u, v, 5, 0.3),
    "square": lambda u, v: 0.72 - np.maximum(np.abs(u), np.abs(v)),
    "ring": lambda u, v: 0.22 - np.abs(np.hypot(u, v) - 0.68),
    "triangle": lambda u, v: _polygon(u, v, 3) - 0.1,
    "cross": lambda u, v: np.maximum(_bars(u, v, 0.9, 0.3), _bars(v, u, 0.9, 0.3)),
    "bar": lambda u, v: _bars(u, v, 1.0, 0.42),
    "crescent": lambda u, v: np.minimum(0.85 - np.hypot(u, v), np.hypot(u - 0.42, v) - 0.6),
    "dumb-bell": lambda u, v: np.maximum(0.45 - np.hypot(np.abs(u) - 0.5, v), _bars(u, v, 0.5, 0.18)),
    "clover": lambda u, v: _lobes(u, v, 3, 0.34),
}


# Each gives about [-1, 1]; f, near one, is how fine the texture is.
_TEXTURES: dict[str, Callable[[Field, Field, float], Field]] = {
    "plain": lambda u, v, f: 0.4 * u,
    "striped": lambda u, v, f: np.sin(9 * f * u),
    "dotted": lambda u, v, f: 2 * np.cos(8 * f * u) * np.cos(8 * f * v) - 0.5,
    "chequered": lambda u, v, f: 3 * np.sin(6 * f * u) * np.sin(6 * f * v),
    "ringed": lambda u, v, f: np.sin(13 * f * np.hypot(u, v)),
    "pinstriped": lambda u, v, f: np.sin(20 * f * u),
    "zigzag": lambda u, v, f: np.sin(9 * f * (u + 0.35 * np.abs((2.2 * f * v) % 2 - 1))),
    "rayed": lambda u, v, f: 1.5 * np.sin(9 * np.arctan2(v, u)),
    "netted": lambda u, v, f: 3 * np.maximum(np.cos(8 * f * u), np.cos(8 * f * v)) - 2,
    "marbled": lambda u, v, f: np.sin(5 * f * u + 2.5 * np.sin(4 * f * v + 2 * np.sin(3 * f * u))),
}
_SHAPE_NAMES = tuple(_SHAPES)
_TEXTURE_NAMES = tuple(_TEXTURES)


@dataclass(frozen=True)
class Look:
    """What all pictures of a class have in common."""

    shape: str
    texture: str
    colour: int

    @property
    def words(self) -> str:
        """In words, such as ``striped teal ring``."""
        return f"{self.texture} {_COLOURS[self.colour]} {self.shape}"


def look_of(number: int) -> Look:
    """The look of class `number`, 0 to 999: all differ, and the first ten differ in shape, texture and colour."""
    ones, tens, hundreds = number % 10, number // 10 % 10, number // 100
    return Look(_SHAPE_NAMES[ones], _TEXTURE_NAMES[(3 * ones + tens) % 10], (7 * ones + tens + hundreds) % 10)


def draw(look: Look, side_px: int, rng: np.random.Generator) -> Image.Image:
    """One RGB picture of `look`, its shorter side about `side_px` pixels; a pure function of its arguments."""
    width, height = _size(side_px, rng)
    unit = min(width, height) / 2
    x = (np.arange(width, dtype=np.float32)[None, :] - width / 2) / unit
    y = (np.arange(height, dtype=np.float32)[:, None] - height / 2) / unit
    canvas = _background(x, y, rng)
    for _ in range(rng.integers(1, 4)):
        _paint(canvas, x, y, _any_look(rng), rng.uniform(0.1, 0.22), rng)
    _paint(canvas, x, y, look, rng.uniform(0.7, 1.0), rng)
    return _photograph(canvas, x, y, rng)


def _size(side_px: int, rng: np.random.Generator) -> tuple[int, int]:
    short = max(24, round(side_px * math.exp(rng.normal(0, 0.12))))
    long = round(short * _ASPECT_MAX ** rng.uniform())
    return (long, short) if rng.uniform() < 0.7 else (short, long)


def _any_look(rng: np.random.Generator) -> Look:
    return look_of(int(rng.integers(1000)))


def _rgb(hue: float, saturation: float, value: float) -> Field:
    """HSV, each in [0, 1], to (3,) RGB in [0, 1]."""
    corner = np.clip(np.abs((hue * 6 + np.array([0, 4, 2])) % 6 - 3) - 1, 0, 1)
    rgb: Field = (value * (1 - saturation + saturation * corner)).astype(np.float32)
    return rgb


def _background(x: Field, y: Field, rng: np.random.Generator) -> Field:
    """Two random colours mixed by random waves; (height, width, 3) in [0, 1]."""
    waves = np.zeros((y.size, x.size), np.float32)
    for frequency in rng.uniform(0.5, 6, size=5):
        angle, phase = rng.uniform(0, 2 * math.pi, size=2)
        waves += np.sin(frequency * (math.cos(angle) * x + math.sin(angle) * y) + phase) / frequency
    mix = (0.5 + 0.35 * waves)[..., None].clip(0, 1)
    first, second = (_rgb(rng.uniform(), rng.uniform(0, 0.8), rng.uniform(0.15, 0.95)) for _ in range(2))
    background: Field = first * mix + second * (1 - mix)
    return background


def _paint(canvas: Field, x: Field, y: Field, look: Look, radius: float, rng: np.random.Generator) -> None:
    """Paint `look` onto `canvas`, in place and turn at random; `radius` in half shorter sides of the picture."""
    u, v = _object_plane(x, y, radius, rng)
    softness_px = 1.5 / (radius * min(x.size, y.size) / 2)
    inside = (_SHAPES[look.shape](u, v) / softness_px + 0.5).clip(0, 1)[..., None]
    texture = _TEXTURES[look.texture](u, v, rng.uniform(0.8, 1.25))
    mix = (0.5 + texture * rng.uniform(0.45, 0.8)).clip(0, 1)[..., None]
    hue = look.colour / 10 + rng.normal(0, _COLOUR_SPREAD)
    light = _rgb(hue, rng.uniform(0.45, 0.9), rng.uniform(0.65, 1))
    dark = _rgb(hue + rng.normal(0, 0.05), rng.uniform(0.3, 0.9), rng.uniform(0.1, 0.45))
    canvas += inside * (light * mix + dark * (1 - mix) - canvas)


def _object_plane(x: Field, y: Field, radius: float, rng: np.random.Generator) -> tuple[Field, Field]:
    """The pixels' places in the object's own frame, moved, turned, scaled and stretched at random."""
    reach_x, reach_y = (max(0.0, float(plane.max()) - 0.8 * radius) for plane in (x, y))
    centre_x, centre_y = rng.uniform(-reach_x, reach_x), rng.uniform(-reach_y, reach_y)
    angle, stretch = rng.normal(0, _TILT_RAD), math.exp(rng.normal(0, 0.12))
    cos, sin = math.cos(angle) / radius, math.sin(angle) / radius
    shifted_x, shifted_y = x - np.float32(centre_x), y - np.float32(centre_y)
    return (
        (shifted_x * cos + shifted_y * sin) * np.float32(stretch),
        (shifted_y * cos - shifted_x * sin) / np.float32(stretch),
    )


def _photograph(canvas: Field, x: Field, y: Field, rng: np.random.Generator) -> Image.Image:
    """What light and camera do: uneven light, colour cast, exposure, blur, noise; to 8 bits."""
    tilt_x, tilt_y = rng.uniform(-0.3, 0.3, size=2)
    light = (1 + tilt_x * x + tilt_y * y)[..., None] * rng.normal(1, 0.06, size=3)
    exposed = (canvas * light).clip(0, 1) ** np.exp(rng.normal(0, 0.25))
    image = Image.fromarray((exposed * 255 + 0.5).astype(np.uint8))
    sharp = image.filter(ImageFilter.GaussianBlur(rng.uniform(0, 0.01) * min(image.size)))
    grain = rng.normal(0, rng.uniform(1, 9), size=exposed.shape)
    return Image.fromarray((np.asarray(sharp) + grain).clip(0, 255).astype(np.uint8))
