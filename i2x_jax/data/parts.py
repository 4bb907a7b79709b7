"""`parts`: scenes made of known parts, which can be drawn again without any of them (DESIGN 2.11).

A class is a set of three parts, and each part belongs to several classes, so that no part alone tells. A scene holds
the parts of its class, one foreign part, which belongs to other classes but completes none of them, and one neutral
shape. Items never overlap: a scene drawn again without one differs in its box of 7x7 pixels and nowhere else.

    from i2x_jax import parts

    scenes = parts.scenes("test").take(run.splits.test.rows[:100])  # data.name=parts; parts:7 is scenes("test", 7)
    images = parts.draw(parts.without(scenes, 3))  # the same images without the foreign part

After FunnyBirds (Hesse, Schaub-Meyer, Roth, ICCV 2023), where parts of rendered birds are taken away. Everything is
drawn from a seed, row by row: a scene is the same however many there are.
"""

from typing import NamedTuple

import numpy as np

from i2x_jax.config import MAX_SEED, InputError

SIDE, BOX = 32, 7
COUNTS = {"train": 6000, "test": 2000}
CLASS_NAMES = tuple("ABCDEFGHIJ")

# The parts, and behind them the neutral shapes.
DRAWINGS = {
    "ring": "..###.. .#...#. #.....# #.....# #.....# .#...#. ..###..",
    "cross": "#.....# .#...#. ..#.#.. ...#... ..#.#.. .#...#. #.....#",
    "dots": "##...## ##...## ....... ...#... ....... ##...## ##...##",
    "corner": "##..... ##..... ##..... ##..... ##..... ####### #######",
    "wedge": "#...... ##..... ###.... ####... #####.. ######. #######",
    "bars": "####### ....... ....... ####### ....... ....... #######",
    "plus": "...#... ...#... ...#... ####### ...#... ...#... ...#...",
    "arch": "####### #.....# #.....# #.....# #.....# #.....# #.....#",
    "disc": "..###.. .#####. ####### ####### ####### .#####. ..###..",
    "block": "....... .#####. .#####. .#####. .#####. .#####. .......",
}
SHAPES = tuple(DRAWINGS)
PARTS = SHAPES[:8]
STENCILS = np.array([[[c == "#" for c in row] for row in text.split()] for text in DRAWINGS.values()], np.float32)
# The parts of each class, as numbers in SHAPES. A part is in 2 to 5 classes: were all in equally many, all would tell
# equally much, and there would be no order to find.
CLASSES = np.array(
    [(2, 6, 7), (3, 5, 6), (1, 5, 6), (3, 4, 6), (0, 2, 3), (0, 2, 6), (2, 4, 5), (0, 1, 4), (1, 2, 3), (0, 5, 7)]
)
# What else may stand in a scene of each class: with no class's three parts does it make a set of another's.
FOREIGN = [
    [part for part in range(len(PARTS)) if sum({*each} <= {*own, part} for each in CLASSES) == 1 and part not in own]
    for own in CLASSES
]
# Items of a scene: the three parts of its class in the order of `CLASSES`, the foreign part, and the neutral shape.
ITEMS = 5
FOREIGN_ITEM, NEUTRAL_ITEM = 3, 4
LACKING = 0.2  # share of the training scenes without one of their parts, so that a removal is nothing new
CONTRAST = (0.35, 0.6)  # of the range of levels, brighter or darker than the ground
FAINT, FAINT_SHARE = SHAPES.index("bars"), 0.45  # the part that is fainter, and its share of that contrast
LEVEL, LEVEL_RANGE, NOISE, NOISE_POINTS = 0.5, 0.1, 0.06, 6  # of the ground: a level, and noise between so many points
# Places that items are dealt to, three by three: each moves in its place, and all together in the image.
PLACES, PITCH, MOVE, MOVE_ALL = 3, 10, 3, 2


class Scenes(NamedTuple):
    """What n images show.

    Attributes:
      labels: int32 `[n]`, index into `CLASSES` and `CLASS_NAMES`.
      kinds: int64 `[n, 5]`, the shape of each item (see `ITEMS`) as its number in `SHAPES`; -1 where there is none.
      corners: int64 `[n, 5, 2]`, row and column of the upper left pixel of each item's box of 7x7.
      contrast: float32 `[n, 5]`, by which an item's pixels are brighter than the ground, or darker; 1 is all levels.
      ground: float32 `[n, 32, 32]`, level of the ground, 0 to 1.
    """

    labels: np.ndarray
    kinds: np.ndarray
    corners: np.ndarray
    contrast: np.ndarray
    ground: np.ndarray

    def take(self, rows: np.ndarray) -> "Scenes":
        """The scenes of some rows, in that order."""
        return Scenes(*(each[rows] for each in self))


def scenes(split: str = "train", seed: int = 0, count: int | None = None) -> Scenes:
    """Draws scenes.

    Args:
      split: 'train', where a fifth of the scenes lack a part of their class, or 'test'.
      seed: of everything; `data.name=parts:SEED` has the same.
      count: how many; None for as many as the data set has. The first ones are the same whatever the count.

    Raises:
      InputError: an unknown split, or a seed or count that is none.
    """
    if split not in COUNTS:
        raise InputError(f"unknown split {split!r} of parts; allowed: {', '.join(COUNTS)}")
    for what, value, high in (("seed", seed, MAX_SEED), ("count", COUNTS[split] if count is None else count, None)):
        good = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
        if not good or value < 0 or (high is not None and value > high):
            allowed = "at least 0" if high is None else f"0 to {high}"
            raise InputError(f"the {what} of parts is {value!r}; allowed: a whole number, {allowed}; set {what}")
    n = COUNTS[split] if count is None else count
    streams = iter(np.random.default_rng((seed, list(COUNTS).index(split), number)) for number in range(10))

    def uniform(*shape):
        # One stream each, so that a row is drawn alike however many follow it.
        return next(streams).random((n, *shape))

    labels = np.arange(n, dtype=np.int32) % len(CLASSES)
    own = np.where(_lacking(uniform(), uniform(), split), -1, CLASSES[labels])
    sizes = np.array([len(each) for each in FOREIGN])
    table = np.array([each + [-1] * (sizes.max() - len(each)) for each in FOREIGN])
    foreign = table[labels, (uniform() * sizes[labels]).astype(int)]
    neutral = len(PARTS) + (uniform() * (len(SHAPES) - len(PARTS))).astype(int)
    kinds = np.concatenate([own, foreign[:, None], neutral[:, None]], 1)
    cells = uniform(PLACES**2).argsort(1)[:, :ITEMS]
    corners = np.stack(np.divmod(cells, PLACES), -1) * PITCH + (uniform(ITEMS, 2) * (MOVE + 1)).astype(int)
    corners += (uniform(1, 2) * (MOVE_ALL + 1)).astype(int)
    contrast, sign = uniform(2, ITEMS).swapaxes(0, 1)
    contrast = (CONTRAST[0] + contrast * (CONTRAST[1] - CONTRAST[0])) * np.where(sign < 0.5, -1, 1)
    contrast *= np.where(kinds == FAINT, FAINT_SHARE, 1)
    return Scenes(labels, kinds, corners, np.float32(contrast), _ground(next(streams), n))


def _lacking(whether, which, split):
    """Whether `[n, 3]`: True for the part that a scene lacks."""
    lacks = whether < (LACKING if split == "train" else 0)
    return lacks[:, None] & (np.arange(3) == (which * 3).astype(int)[:, None])


def _ground(rng, count):
    """Smooth noise about a level of each image's own: float32 `[n, 32, 32]`."""
    drawn = rng.standard_normal((count, 1 + NOISE_POINTS**2), np.float32)
    points = NOISE * drawn[:, 1:].reshape(count, NOISE_POINTS, NOISE_POINTS)
    at = np.linspace(0, NOISE_POINTS - 1, SIDE)
    # Linear between the points: each pixel's share of each.
    shares = np.maximum(0, 1 - abs(at[:, None] - np.arange(NOISE_POINTS))).astype(np.float32)
    level = LEVEL + LEVEL_RANGE * np.tanh(drawn[:, :1, None])
    return level + shares @ points @ shares.T


def without(scenes: Scenes, item: int | np.ndarray) -> Scenes:
    """The same scenes without an item: 0 to 4, one for all or int `[n]`; where it is absent nothing changes.

    Raises:
      InputError: no such item.
    """
    item = np.asarray(item)
    if not np.issubdtype(item.dtype, np.integer) or (item < 0).any() or (item >= ITEMS).any():
        raise InputError(f"the item is {item.tolist()!r}; allowed: 0 to {ITEMS - 1}; see parts.Scenes")
    kinds = scenes.kinds.copy()
    kinds[np.arange(len(kinds)), item] = -1
    return scenes._replace(kinds=kinds)


def draw(scenes: Scenes) -> np.ndarray:
    """The images of scenes: uint8 `[n, 32, 32, 1]`."""
    levels, index = scenes.ground.copy(), np.arange(len(scenes.labels))[:, None, None]
    for item in range(ITEMS):
        rows, columns = (scenes.corners[:, item, axis, None, None] + np.arange(BOX) for axis in (0, 1))
        there = scenes.kinds[:, item] >= 0
        strength = np.where(there, scenes.contrast[:, item], 0)[:, None, None]
        levels[index, rows.swapaxes(1, 2), columns] += strength * STENCILS[scenes.kinds[:, item]]
    return np.round(255 * np.clip(levels, 0, 1)).astype(np.uint8)[..., None]


def samples(split: str, seed: int) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Images, labels and class names of a split, as a data set; arguments and errors as in `scenes`."""
    made = scenes(split, seed)
    return draw(made), made.labels, CLASS_NAMES
