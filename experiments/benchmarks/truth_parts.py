"""What taking an item out of a scene of known parts does, against what is claimed of it (`truth.py`).

A scene (DESIGN 2.11) is drawn again without each of its five items; the *drop* is the label's logit before less after,
or that of its margin over the class that came second. A *claim* is a number for each item:

- `contributions`: those of the prototypes that stand on the item in this image: at least half of their locations are
  centred within half a stride of its box;
- `locations`: contributions of the locations, each to the item whose centre is nearest, within `NEAR` pixels;
- `intensity`: the paper's, summed over the prototypes that stand on the item;
- `path, ...`: integrated gradients (Sundararajan, Taly, Yan 2017) in the pixels of the box, from nothing but the median
  level of the image (`level`), from the median around each pixel (`around`), from black, or from the true ground, which
  only who made the scene knows: a ceiling;
- `gradient`: input times gradient; `occlusion`: patches of 8 every 4 pixels, at the median level; `ink`; `random`.

What is claimed of the margin is the same of the difference of the two logits; ink and random stay as they are; `truth`
is the drop itself, the best that a column allows. Leads are chosen on generator seeds 0 to 9, and reported on 100 and
more. After FunnyBirds (Hesse, Schaub-Meyer, Roth 2023).

Courses are of each part's mean claim, and mean drop, over the scenes whose class has it, at every checkpoint, places
being those of the final model. A network that sees a part *late* is trained on scenes without it until a checkpoint is
written: what is claimed of it at that checkpoint is claimed before it existed.
"""

import functools
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import quiet_runs
from experiments.benchmarks import truth_items as items
from i2x_jax import Run, parts
from i2x_jax.config import from_config_dict
from i2x_jax.data.dataset import load_splits
from i2x_jax.devices.mesh import fetch
from i2x_jax.evidence.deletion import ink
from i2x_jax.evidence.geometry import location_centres
from i2x_jax.evidence.measuring import assign_locations, batch_features, batch_tapped
from i2x_jax.evidence.pixels import level_of, path_pixels
from i2x_jax.evidence.prototypes import pca_of
from i2x_jax.evidence.saliency import contributions, saliency_maps
from i2x_jax.explanation import trust
from i2x_jax.models import Tapped
from i2x_jax.pipeline.train import checkpoint_steps
from i2x_jax.results.files import CHECKPOINTS

NETWORKS = {
    "cnn": {"name": "cnn", "width": 24},
    "resnet20": {"name": "resnet20", "width": 8},
}
IMAGES = 150
STEPS = ("train", "prototypes")
EPOCHS = 8
CHECKPOINTS_KEPT, LATE_FROM = 10, -4  # of them, and the one by which late parts appear
AROUND = 15  # side of the window whose median is the level around a pixel
NEAR = 8.0
PATCH, PATCH_STRIDE = 8, 4
TARGETS = ("logit", "margin")
NO_LOGITS = ("ink", "random")


class Seen(NamedTuple):
    """What the network makes of n scenes.

    Attributes:
      images: uint8 `[n, 32, 32, 1]`.
      corners: int `[n, 5, 2]` of the items' boxes.
      toward: `[n, M]`, weights on the logits: what is explained.
      assignments: int `[n, h, w]`.
    """

    images: np.ndarray
    corners: np.ndarray
    toward: np.ndarray
    assignments: np.ndarray


class Late:
    """Training scenes without one part until a checkpoint has been written: images by row (`data.source.Images`)."""

    def __init__(self, scenes: parts.Scenes, part: int, checkpoint: pathlib.Path):
        self._scenes, self._part, self._checkpoint = scenes, part, checkpoint
        self.shape, self.dtype = (len(scenes.labels), parts.SIDE, parts.SIDE, 1), np.dtype(np.uint8)

    def __getitem__(self, rows: np.ndarray | slice) -> np.ndarray:
        """The images of some rows, as they are now."""
        scenes = self._scenes.take(rows)
        kinds = scenes.kinds if self._checkpoint.exists() else np.where(scenes.kinds == self._part, -1, scenes.kinds)
        return parts.draw(scenes._replace(kinds=kinds))


def late_part(seed: int) -> int:
    """Which part is late with a seed."""
    return seed % len(parts.PARTS)


def made(network: str, seed: int, epochs: int, folder: pathlib.Path, late: bool = False) -> Run:
    """A network that is trained on the scenes of a seed, and its prototypes."""
    config = from_config_dict(
        {
            "seed": seed,
            "data": {"name": f"parts:{seed}", "augment": "none"},
            "model": NETWORKS[network],
            "train": {"epochs": epochs, "num_checkpoints": CHECKPOINTS_KEPT, "learning_rate": 0.008},
            "explain": {"num_prototypes": 32},
        }
    )
    splits = load_splits(config.data.name, config.data.validation, seed=config.seed)
    if late:
        checkpoint = folder / CHECKPOINTS / str(checkpoint_steps(config, splits.train)[LATE_FROM])
        images = Late(parts.scenes("train", seed).take(splits.train.rows), late_part(seed), checkpoint)
        splits = splits._replace(train=splits.train._replace(images=images))
    return quiet_runs.made(config, folder, splits, STEPS)


@functools.partial(jax.jit, static_argnames="model")
def logits_of(model, variables, images):
    """Logits `[B, M]`."""
    return model.head(variables, model.features(variables, images))


@functools.partial(jax.jit, static_argnames="model")
def slope(model, variables, images, toward):
    """Gradient of the weighted logits by the pixels: `[B, H, W, C]`, for images in floats."""
    return jax.grad(lambda images: (logits_of(model, variables, images) * toward).sum())(images)


@functools.partial(jax.jit, static_argnames=("model", "cam"))
def maps_of(model, variables, features, toward, label, second, cam):
    """Contributions of the locations `[B, h, w]` to the weighted logits, and saliency maps; `second` -1 for a logit."""
    owed = (contributions(model, variables, Tapped(features), None) * toward[:, None, None]).sum(-1)
    plain = saliency_maps(model, variables, features, label, cam=cam)
    signed = saliency_maps(model, variables, features, label, against=jnp.maximum(second, 0), cam=cam)
    return owed, jnp.where((second >= 0)[:, None, None], signed, plain)


def path(model, variables, seen: Seen, start: np.ndarray) -> np.ndarray:
    """Integrated gradients from images `start` to those seen (`evidence.pixels`): `[n, H, W]`."""
    return fetch(path_pixels(model, variables, np.float32(start), np.float32(seen.images), seen.toward))[0]


def occluded(model, variables, seen: Seen, level: np.ndarray) -> np.ndarray:
    """By how much patches of the level lower the weighted logits, each pixel's mean over its patches: `[n, H, W]`."""
    side = seen.images.shape[1]
    before = (fetch(logits_of(model, variables, seen.images)) * seen.toward).sum(-1)
    drops, covered = np.zeros(seen.images.shape[:3]), np.zeros((side, side))
    for row in range(0, side - PATCH + 1, PATCH_STRIDE):
        for column in range(0, side - PATCH + 1, PATCH_STRIDE):
            inside = np.s_[row : row + PATCH, column : column + PATCH]
            images = seen.images.copy()
            images[:, *inside] = level[:, *inside]
            after = (fetch(logits_of(model, variables, images)) * seen.toward).sum(-1)
            drops[:, *inside] += (before - after)[:, None, None]
            covered[inside] += 1
    return drops / covered


def in_boxes(values: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Sums of pixel values `[n, H, W]` over the items' boxes: `[n, 5]`."""
    reach = np.arange(parts.BOX)
    rows, columns = (corners[..., axis, None] + reach for axis in (0, 1))
    image = np.arange(len(values))[:, None, None, None]
    return values[image, rows[..., :, None], columns[..., None, :]].sum((-1, -2))


def nearest(run: Run, seen: Seen) -> np.ndarray:
    """The item whose centre is nearest to each location, -1 for none within `NEAR`: int `[n, h, w]`."""
    middles = seen.corners[:, :, None, None] + (parts.BOX - 1) / 2
    away = np.sqrt(((location_centres(run.model.places, run.model.feature_shape[:2]) - middles) ** 2).sum(-1))
    return np.where(away.min(1) <= NEAR, away.argmin(1), -1)


def standing(run: Run, seen: Seen, num_prototypes: int) -> np.ndarray:
    """Which item each prototype stands on in each image: bool `[n, K, 5]`."""
    centres = location_centres(run.model.places, run.model.feature_shape[:2])
    grown = np.array([span.stride for span in run.model.places]) / 2
    low = seen.corners[:, :, None, None] - grown
    inside = ((centres >= low) & (centres <= low + 2 * grown + parts.BOX - 1)).all(-1)
    members = np.eye(num_prototypes)[seen.assignments]
    shared, counts = np.einsum("nhwk,njhw->nkj", members, inside), members.sum((1, 2))
    most = shared == shared.max(-1, keepdims=True)
    return most & (shared > 0) & (2 * shared >= counts[..., None])


def plain_claims(run: Run, variables, seen: Seen, label: np.ndarray, second: np.ndarray) -> dict:
    """The claims `[n, 5]` that take one forward pass; `second` is -1 for a logit."""
    k, cam = run.config.explain.num_prototypes, run.config.explain.cam
    features = batch_features(run.model, variables, seen.images)
    owed, map_ = fetch(maps_of(run.model, variables, features, seen.toward, label, second, cam))
    members, on = np.eye(k)[seen.assignments], standing(run, seen, k)
    by_prototype, brightness = (np.einsum("nhwk,nhw->nk", members, each) for each in (owed, map_))
    brightness /= np.maximum(members.sum((1, 2)), 1)
    nearby = nearest(run, seen)
    return {
        "contributions": np.einsum("nk,nkj->nj", by_prototype, on),
        "locations": np.stack([np.where(nearby == item, owed, 0).sum((1, 2)) for item in range(parts.ITEMS)], 1),
        "intensity": np.einsum("nk,nkj->nj", brightness, on),
    }


def claims_of(run: Run, variables, seen: Seen, label: np.ndarray, second: np.ndarray, ground: np.ndarray) -> dict:
    """Every claim `[n, 5]`, by its name; `ground` are the scenes without items."""
    from scipy.ndimage import median_filter

    found = plain_claims(run, variables, seen, label, second)
    model = run.model
    level = level_of(seen.images)
    around = median_filter(seen.images, (1, AROUND, AROUND, 1))
    slopes = fetch(slope(model, variables, np.float32(seen.images), seen.toward))
    boxed = {
        "path, level": path(model, variables, seen, level),
        "path, around": path(model, variables, seen, around),
        "path, true ground": path(model, variables, seen, ground),
        "path, black": path(model, variables, seen, np.zeros_like(seen.images)),
        "occlusion": occluded(model, variables, seen, level),
        "gradient": (slopes * seen.images).sum(-1),
        "ink": ink(seen.images),
    }
    found |= {name: in_boxes(values, seen.corners) for name, values in boxed.items()}
    # Each pixel has the drop of whole patches: their mean, not their sum.
    found["occlusion"] /= parts.BOX**2
    return found | {"random": np.random.default_rng(0).normal(size=found["ink"].shape)}


def figures(claim: np.ndarray, drop: np.ndarray, logits: bool = True) -> dict[str, float | None]:
    """How well claims foresee drops.

    Args:
      claim: `[n, 5]`, an item each.
      drop: `[n, 5]`.
      logits: whether claims are numbers of logits, and can be held against drops as such.

    Returns:
      `pooled`, the rank correlation over all items of all images; `class_parts`, that over the three parts of the class
      within an image, its mean over images; `r2` of the numbers as they stand, over all items, None where claims are
      no logits; and `foreign_sign`, in what share of the images the sign of the foreign part is right.
    """
    own, foreign = np.s_[:, :3], parts.FOREIGN_ITEM
    return {
        "pooled": trust.spearman(claim.ravel(), drop.ravel()),
        "class_parts": float(np.mean([trust.spearman(*pair) for pair in zip(claim[own], drop[own], strict=True)])),
        "r2": trust.r_squared(claim.ravel(), drop.ravel()) if logits else None,
        "foreign_sign": float((np.sign(claim[:, foreign]) == np.sign(drop[:, foreign])).mean()),
    }


class Asked(NamedTuple):
    """What is asked about a run: scenes, and where the final model's prototypes are in them.

    Attributes:
      scenes: of the test set.
      images: uint8 `[n, 32, 32, 1]`.
      assignments: int `[n, h, w]`.
    """

    scenes: parts.Scenes
    images: np.ndarray
    assignments: np.ndarray


def ask(run: Run, seed: int) -> Asked:
    """The test scenes of a seed."""
    found, scenes = run.arrays("prototypes"), parts.scenes("test", seed, IMAGES)
    images = parts.draw(scenes)
    features = batch_features(run.model, run.variables(run.steps[-1]), images)
    return Asked(scenes, images, fetch(assign_locations(pca_of(found), found["centroids"], features)))


def drops_of(run: Run, variables, scenes: parts.Scenes) -> tuple[np.ndarray, np.ndarray]:
    """Logits `[n, M]`, and by how much they fall without each item: `[n, 5, M]`."""
    before = fetch(logits_of(run.model, variables, parts.draw(scenes)))
    after = [
        fetch(logits_of(run.model, variables, parts.draw(parts.without(scenes, item)))) for item in range(parts.ITEMS)
    ]
    return before, before[:, None] - np.stack(after, 1)


def predictions(run: Run, variables, scenes: parts.Scenes) -> np.ndarray:
    """The class of each scene with every choice of its items: int `[n, 32]`, see `items.preserved`."""
    found = []
    for there in range(2**parts.ITEMS):
        held = (there >> np.arange(parts.ITEMS) & 1).astype(bool)
        images = parts.draw(scenes._replace(kinds=np.where(held, scenes.kinds, -1)))
        found.append(fetch(logits_of(run.model, variables, images)).argmax(1))
    return np.stack(found, 1)


def measure(network: str, seed: int, epochs: int, folder: pathlib.Path) -> dict:
    """The figures of one network, for the logit and for the margin."""
    run = made(network, seed, epochs, folder)
    variables, asked = run.variables(run.steps[-1]), ask(run, seed)
    scenes, label = asked.scenes, asked.scenes.labels
    before, drops = drops_of(run, variables, scenes)
    one_hot, chosen = np.eye(before.shape[1], dtype=np.float32), predictions(run, variables, scenes)
    second = np.where(one_hot[label] > 0, -np.inf, before).argmax(1)
    ground = parts.draw(scenes._replace(kinds=np.full_like(scenes.kinds, -1)))
    found = {"network": network, "seed": seed, "epochs": epochs, "images": IMAGES, "accuracy": accuracy_of(run)}
    for target in TARGETS:
        toward = one_hot[label] - (target == "margin") * one_hot[second]
        seen = Seen(asked.images, scenes.corners, toward, asked.assignments)
        against = second if target == "margin" else np.full_like(second, -1)
        drop = np.einsum("njm,nm->nj", drops, toward)
        claims = claims_of(run, variables, seen, label, against, ground) | {"truth": drop}
        found[target] = {
            name: figures(claim, drop, name not in NO_LOGITS)
            | items.preserved(claim, chosen)
            | {"distracted": items.distracted(claim), "own_table": items.own_table(claim, drop, label)}
            | {"target_signs": items.target_signs(claim, scenes.kinds, label, second)}
            for name, claim in claims.items()
        }
    owed = contributions(run.model, variables, batch_tapped(run.model, variables, asked.images), None)
    k = run.config.explain.num_prototypes
    owed = np.einsum("nhwk,nhwm->nkm", np.eye(k)[asked.assignments], fetch(owed))
    found["pairs_right"] = items.pairs_right(owed, standing(run, seen, k), scenes.kinds, label)
    claimed, true = courses(run, asked)
    found["since"] = {name: items.dated(course, true, run.steps) for name, course in claimed.items()}
    return found


def accuracy_of(run: Run) -> float:
    """The last accuracy on test scenes."""
    return [line["accuracy"] for line in run.metrics if line["split"] == "test"][-1]


def courses(run: Run, asked: Asked) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Each part's mean claims by name, and its mean drop, in the label's logit at every checkpoint: `[T, 8]` each."""
    scenes, label = asked.scenes, asked.scenes.labels
    toward = np.eye(len(parts.CLASSES), dtype=np.float32)[label]
    seen = Seen(asked.images, scenes.corners, toward, asked.assignments)
    own = np.arange(parts.ITEMS) < items.BEST
    claimed, true = {}, []

    def by_part(values):
        return [values[(scenes.kinds == part) & own].mean() for part in range(len(parts.PARTS))]

    for step in run.steps:
        variables = run.variables(step)
        claims = plain_claims(run, variables, seen, label, np.full_like(label, -1))
        for name, claim in claims.items():
            claimed.setdefault(name, []).append(by_part(claim))
        true.append(by_part(np.einsum("njm,nm->nj", drops_of(run, variables, scenes)[1], toward)))
    return {name: np.array(course) for name, course in claimed.items()}, np.array(true)


def measure_late(network: str, seed: int, epochs: int, folder: pathlib.Path) -> dict:
    """How a network that sees one part late is dated: its half steps, and what is claimed before it existed."""
    run = made(network, seed, epochs, folder, late=True)
    claimed, true = courses(run, ask(run, seed))
    part, before = late_part(seed), len(run.steps) + LATE_FROM
    everything = claimed | {"truth": true}
    return {
        "network": network,
        "seed": seed,
        "late": parts.SHAPES[part],
        "from_step": int(run.steps[before]),
        "last_step": int(run.steps[-1]),
        "accuracy": accuracy_of(run),
        "half_steps": {
            name: [2 ** items.half_step(each, run.steps) - 1 for each in course.T]
            for name, course in everything.items()
        },
        "before": {name: float(course[before, part] / course[-1, part]) for name, course in everything.items()},
    }
