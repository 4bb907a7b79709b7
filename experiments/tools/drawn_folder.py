"""Draws a folder of pictures at ImageNet's shape: any number of classes, JPEG, in DIR/{train,validation,test}/CLASS/.

    python experiments/tools/drawn_folder.py --folder=/tmp/drawn --classes=1000 --images=50000 --side=224

A class is three parts, each a shape of a colour and a size; a picture has them at random places, turned at random, on
smooth noise of random colours, beside one part of another class. Every picture is drawn from (seed, split, class,
number) alone: a smaller folder holds the first pictures of a larger one, and what is there is not drawn again.
"""

import concurrent.futures
import pathlib

import numpy as np
from absl import app, flags
from PIL import Image, ImageDraw

SHAPES = ("triangle", "square", "bar", "star", "ring", "cross")
COLOURS, SIZES, PARTS = 12, (0.1, 0.14, 0.19), 3
SPLITS = ("train", "validation", "test")
QUALITY = 90


def parts_of(label: int, seed: int) -> np.ndarray:
    """The parts of a class: int `[3, 3]`, a shape, a colour and a size each."""
    rng = np.random.default_rng((seed, label))
    return np.stack([rng.integers(len(each), size=PARTS) for each in (SHAPES, range(COLOURS), SIZES)], -1)


def outline(shape: str, radius: float, angle: float, centre: np.ndarray) -> list[list[tuple[float, float]]]:
    """Polygons of a part in pixels; the second of a ring is cut out of the first."""
    turns = {
        "triangle": [(3, 1.0)],
        "square": [(4, 1.0)],
        "star": [(10, 1.0)],
        "ring": [(16, 1.0), (16, 0.55)],
    }
    if shape in turns:
        made = []
        for corners, scale in turns[shape]:
            at = angle + 2 * np.pi * np.arange(corners) / corners
            reach = radius * scale * (np.where(np.arange(corners) % 2, 0.45, 1) if shape == "star" else 1)
            made.append(np.stack([np.cos(at), np.sin(at)], -1) * np.broadcast_to(reach, corners)[:, None])
    else:
        flat = np.array([[-1, -0.28], [1, -0.28], [1, 0.28], [-1, 0.28]]) * radius
        made = [flat, flat[:, ::-1]] if shape == "cross" else [flat]
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        made = [each @ turn for each in made]
    return [list(map(tuple, each + centre)) for each in made]


def picture(label: int, number: int, split: str, classes: int, side: int, seed: int) -> Image.Image:
    """One picture; see above."""
    rng = np.random.default_rng((seed, SPLITS.index(split), label, number))
    ground = Image.fromarray(rng.integers(40, 216, (5, 5, 3)).astype(np.uint8)).resize((side, side), Image.BICUBIC)
    draw = ImageDraw.Draw(ground)
    other = (label + 1 + int(rng.integers(classes - 1))) % classes
    parts = [*parts_of(label, seed), parts_of(other, seed)[int(rng.integers(PARTS))]]
    for shape, colour, size in [parts[place] for place in rng.permutation(len(parts))]:
        radius = side * SIZES[size]
        centre, angle = rng.uniform(radius, side - radius, 2), float(rng.uniform(0, 2 * np.pi))
        rgb = tuple(int(127 + 120 * np.cos(2 * np.pi * (colour / COLOURS + third / 3))) for third in range(3))
        for place, polygon in enumerate(outline(SHAPES[shape], radius, angle, centre)):
            cut = SHAPES[shape] == "ring" and place
            draw.polygon(polygon, fill=ground.getpixel((1, 1)) if cut else rgb)
    return ground


def draw_class(folder: pathlib.Path, label: int, counts: dict[str, int], classes: int, side: int, seed: int) -> int:
    """Draws the pictures of a class that are not there yet; how many they were."""
    drawn = 0
    for split, count in counts.items():
        below = folder / split / f"class_{label:04}"
        below.mkdir(parents=True, exist_ok=True)
        for number in range(count):
            path = below / f"{number:06}.jpg"
            if not path.exists():
                unfinished = path.with_name(f".{path.name}")
                picture(label, number, split, classes, side, seed).save(unfinished, "JPEG", quality=QUALITY)
                unfinished.rename(path)
                drawn += 1
    return drawn


def draw_folder(folder: pathlib.Path, images: int, held_out: int, classes: int, side: int, seed: int) -> int:
    """Draws a folder, or what is missing of it.

    Args:
      folder: where it goes.
      images: training pictures; the first classes have one more where they cannot be dealt out evenly.
      held_out: pictures of a class for validation, and as many for testing.
      classes: how many.
      side: of a picture, in pixels.
      seed: of all that is drawn.

    Returns:
      How many pictures were drawn.
    """
    whole, left = divmod(images, classes)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        jobs = [
            pool.submit(
                draw_class,
                folder,
                label,
                {"train": whole + (label < left), "validation": held_out, "test": held_out},
                classes,
                side,
                seed,
            )
            for label in range(classes)
        ]
        return sum(job.result() for job in jobs)


def main(argv):
    """Draws."""
    if argv[1:]:
        raise app.UsageError(f"unknown arguments: {' '.join(argv[1:])}")
    given = flags.FLAGS
    folder = pathlib.Path(given.folder)
    drawn = draw_folder(folder, given.images, given.held_out, given.classes, given.side, given.seed)
    print(f"{drawn:,} pictures drawn in {folder}")


if __name__ == "__main__":
    # Here, so that a program that draws folders may have flags of the same names.
    flags.DEFINE_string("folder", None, "Where the pictures go.", required=True)
    flags.DEFINE_integer("classes", 1000, "Classes.", lower_bound=2)
    flags.DEFINE_integer("images", 50_000, "Training pictures, of all classes together.", lower_bound=2)
    flags.DEFINE_integer("held_out", 2, "Pictures of a class for validation, and for testing.", lower_bound=1)
    flags.DEFINE_integer("side", 224, "Pixels of a side.", lower_bound=16)
    flags.DEFINE_integer("seed", 0, "Of all that is drawn.", lower_bound=0)
    app.run(main)
