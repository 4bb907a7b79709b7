"""Every picture of the report and the contact sheet, of images of any shape: what is drawn is there, and is legible."""

import base64
import io
import types

import numpy as np
import pytest
from PIL import Image

import i2x_jax
from i2x_jax.evidence.geometry import crop_size
from i2x_jax.explanation.ranking import FIRST, Ranked
from i2x_jax.explanation.types import (
    ClassEvidence,
    ClassExplanation,
    Explanation,
    PairExplanation,
    Prototype,
    Separating,
)
from i2x_jax.models.places import Places, Span
from i2x_jax.report import contact_sheet, examples, gallery
from i2x_jax.results import pictures, story
from i2x_jax.results.files import CONTACT_SHEET, REPORT

# Height and width of images; all but the square ones stopped the contact sheet.
SHAPES = [(1, 64), (2, 64), (8, 256), (16, 512), (512, 16), (28, 1000), (1, 1), (3, 5), (8, 8), (224, 224)]
FIELDS = (1, 3, 17, 435)
STRIDE = 4


def places_of(shape, field):
    """Of a map with a location on every fourth pixel."""
    map_shape = tuple(-(-side // STRIDE) for side in shape)
    return Places(*[Span(0, STRIDE, field)] * 2), map_shape


def fake_run(shape, channels=1, prototypes=3, classes=2, count=12, checkpoints=3, seed=0):
    """What the pictures are made of, without a network."""
    rng = np.random.default_rng(seed)
    _, map_shape = places_of(shape, 1)
    names = tuple(f"class {c}" for c in range(classes))
    labels = np.arange(count) % classes
    confidence = rng.dirichlet(np.ones(classes), (checkpoints, count)).astype(np.float32)
    arrays = {
        "labels": labels,
        "assignments": rng.integers(0, prototypes, (count, *map_shape)).astype(np.int16),
        "intensity": rng.uniform(0, 1, (checkpoints, count, prototypes)).astype(np.float32),
        "confidence": confidence,
        "groups": rng.integers(-2, 2, (checkpoints - 1, count)).astype(np.int32),
    }
    archives = {
        "contributions": {"mean": rng.normal(size=(checkpoints, classes, prototypes, classes))},
        "curated": {"pair": np.array([0, classes - 1]), "prototypes": [0], "skipped": [], "left_out": np.array([1])},
    }
    explanation = Explanation(
        schema=1,
        classes=names,
        steps=tuple(range(checkpoints)),
        group_by="class",
        fit="samples",
        prototypes=tuple(Prototype(k, 9, 0.5, (ClassEvidence(names[0], 1.5),), ()) for k in range(prototypes)),
        per_class=tuple(ClassExplanation(name, count, (), (), ()) for name in names),
        pairs=(
            PairExplanation(names[0], names[-1], 1, (0, 0), (0, 0), (Separating(0, 1.0, 0.5),), None, None, None, None),
        ),
        intervals=(),
    )
    images = rng.integers(0, 256, (count, *shape, channels)).astype(np.uint8)
    # The last prototype first; the first has too few places to be ranked.
    ranking = [
        Ranked(k, rank if k else None, names[0], 0.3, 1.5, 0.9, names[0], 0.98, 0.005, 0.5, 1, {"validation": -0.01})
        for rank, k in enumerate(reversed(range(prototypes)), 1)
    ]

    def told(row):
        seen = story.Seen(
            split="train",
            image=row,
            label=int(labels[row]),
            confidence=confidence[:, row],
            intensity=arrays["intensity"][:, row],
            assignments=arrays["assignments"][row],
            measure=None,
            row=None,
            path=None,
        )
        return story.tell(seen, names, np.arange(checkpoints), archives["curated"])

    return types.SimpleNamespace(
        story=told,
        explanation=explanation,
        ranking=ranking,
        prototypes=[(explanation.prototypes[each.prototype], each) for each in ranking],
        dataset=types.SimpleNamespace(images=images, pictures=images, labels=labels),
        steps=np.arange(checkpoints),
        array=arrays.__getitem__,
        arrays=archives.__getitem__,
        rivals=np.tile(np.arange(classes), (classes, 1)),
        own_confidence=confidence[:, np.arange(count), labels],
    )


def sheet_of(run, places, crop_side):
    map_shape = run.array("assignments").shape[1:]
    return contact_sheet.contact_sheet(
        run.prototypes,
        run.dataset.images,
        run.array("assignments"),
        run.array("intensity")[-1],
        lambda rows: np.random.default_rng(0).uniform(size=(len(rows), *map_shape)),
        places,
        crop_side,
        seed=0,
    )


def crop_side_of(places, shape):
    return crop_size(types.SimpleNamespace(receptive_field=places.side), shape)


def opened(address):
    return Image.open(io.BytesIO(base64.b64decode(address.split(",")[1])))


def pixels_of(picture, colour):
    return np.argwhere((np.asarray(picture.convert("RGB")) == colour).all(-1))


@pytest.mark.parametrize("shape", SHAPES)
class TestDrawings:
    @pytest.mark.parametrize("side", [36, 56, 84, 196])
    def test_tiles_are_no_lines(self, shape, side):
        width, height = pictures.tile_size((*shape, 1), side)
        assert max(width, height) == side
        assert min(width, height) >= side // 4
        # Up to 4 to 1 the proportions are those of the image.
        ratio = max(shape) / min(shape)
        assert max(width, height) / min(width, height) == pytest.approx(min(ratio, 4), rel=1 / min(width, height))
        for channels in (1, 3):
            tile = pictures.tile(np.full((*shape, channels), 90, np.uint8), (width, height))
            assert tile.size == (width, height)
            assert (np.asarray(tile) == 90).all()

    @pytest.mark.parametrize("field", FIELDS)
    def test_frames_are_seen_at_every_location(self, shape, field):
        (places, (h, w)), size = places_of(shape, field), pictures.tile_size(shape, 60)
        crop_side, pixels = crop_side_of(places, shape), np.zeros((*shape, 1), np.uint8)
        for location in {(0, 0), (h - 1, 0), (0, w - 1), (h - 1, w - 1), (h // 2, w // 2)}:
            drawn = pictures.framed(pixels, size, np.array(location), places, crop_side)
            assert drawn.size == size
            found = pixels_of(drawn, pictures.FRAME)
            # The frame is on the tile, around what the crop shows; to a pixel of the tile.
            scale = np.array(size[::-1]) / shape
            centre = (STRIDE * np.array(location) + 0.5) * scale
            assert len(found)
            assert (np.abs(found + 0.5 - centre) <= (crop_side + 1) / 2 * scale + 1).all()

    @pytest.mark.parametrize("field", FIELDS)
    def test_saliency_and_cells(self, shape, field):
        (places, map_shape), size = places_of(shape, field), pictures.tile_size(shape, 196)
        plain = pictures.tile(np.full((*shape, 3), 128, np.uint8), size)
        overlaid = pictures.overlaid(plain, np.ones(map_shape), 1.0, places, shape)
        assert overlaid.size == size
        assert len(np.unique(np.asarray(overlaid).reshape(-1, 3), axis=0)) == 1
        covered = pictures.outlined(plain, np.zeros(map_shape, int), [0], places, shape)
        assert covered.size == size
        # All locations are of the prototype: no pixel is left as it was, but for some edges of numbers.
        numbered, plain_pixels = (len(pixels_of(covered, (level,) * 3)) for level in (255, 128))
        assert plain_pixels < (40 if numbered else 1)

    @pytest.mark.parametrize("field", FIELDS)
    @pytest.mark.parametrize(
        ("channels", "prototypes", "count"), [(1, 3, 12), (3, 1, 1), (3, 9, 2)], ids=["some", "one", "few"]
    )
    def test_contact_sheet(self, shape, field, channels, prototypes, count):
        places, _ = places_of(shape, field)
        run = fake_run(shape, channels, prototypes, count=count)
        sheet = sheet_of(run, places, crop_side_of(places, shape))
        width, height = contact_sheet.sheet_tile(shape)
        assert sheet.height == contact_sheet.HEADER + prototypes * (max(contact_sheet.TILE, height) + contact_sheet.GAP)
        assert min(width, height) >= contact_sheet.TILE // 4
        assert len(pixels_of(sheet, pictures.FRAME))

    @pytest.mark.parametrize(
        ("channels", "prototypes", "classes", "count"), [(1, 3, 2, 8), (3, 7, 5, 10), (1, 2, 1, 1)]
    )
    def test_report(self, shape, channels, prototypes, classes, count):
        # The field of the frames is swept above.
        places, map_shape = places_of(shape, 17 if channels == 1 else 1)
        run = fake_run(shape, channels, prototypes, classes, count)
        rng, crop_side = np.random.default_rng(0), crop_side_of(places, shape)
        maps = {row: np.ones(map_shape) for row in range(count)}
        members = gallery.choose_members(run, rng)
        for entry in gallery.prototypes(run, members, maps, places, crop_side):
            for kind in set(entry) & {"strongest", "random"}:
                n, width, height = entry[kind]["tiles"]
                assert opened(entry[kind]["framed"]).size == (n * (width + pictures.GAP) - pictures.GAP, height)
                assert opened(entry[kind]["crops"]).height == gallery.CROP
        first = gallery.first(run, members, maps, places, crop_side)
        present = [k for k in reversed(range(1, prototypes)) if len(members[k].strongest)]
        assert [each["prototype"] for each in first] == [k for k in present if k >= prototypes - FIRST]
        for each in first:
            n, width, height = each["tiles"]
            assert opened(each["picture"]).size == (n * (width + pictures.GAP) - pictures.GAP, height)
        shown = gallery.in_classes(run, gallery.choose_in_classes(run), maps, places, crop_side)
        assert all(each["tiles"][0] == len(each["rows"]) for each in shown.values())
        assert len(gallery.classes(run, rng)) == classes
        chosen = examples.choose_images(run.own_confidence, run.array("labels"), np.array([0]), rng)
        over_time = {row: np.ones((len(run.steps), *map_shape)) for row in range(count)}
        told = gallery.images(run, chosen, over_time, places)
        width, height = told["frame"]
        assert [opened(each["frames"]).size for each in told["stories"]] == [(4 * width, height)] * len(told["rows"])
        assert all(opened(each["cells"]).size == tuple(told["large"]) for each in told["stories"])


def test_a_strip_longer_than_webp_can_hold():
    tile = Image.new("RGB", (84, 21), (9, 9, 9))
    address = pictures.data_uri(pictures.row_of([tile] * 200, gap=0))
    assert opened(address).size == (16800, 21)
    assert address.startswith("data:image/png")


@pytest.mark.parametrize(("height", "width"), [(16, 512), pytest.param(1, 64, marks=pytest.mark.slow)])
def test_explain_of_long_images(tmp_path, height, width):
    import jax

    rng = np.random.default_rng(0)
    labels = np.arange(60, dtype=np.int32) % 2
    images = rng.integers(0, 99, (60, height, width, 1)).astype(np.uint8)
    images[labels == 1, :, : width // 4] += 120
    kernel = np.float32(rng.normal(size=(3, 3, 1, 4)))

    def features(variables, images):
        numbers = ("NHWC", "HWIO", "NHWC")
        strides = (min(height, 8), 8)
        maps = jax.lax.conv_general_dilated(images / 255, kernel, strides, "SAME", dimension_numbers=numbers)
        return jax.nn.relu(maps + variables["shift"])

    model = i2x_jax.OwnModel(features, lambda variables, maps: maps.mean((1, 2)) @ variables["weights"])
    kept = [{"shift": np.float32(rng.normal(size=4) / 9), "weights": np.float32(rng.normal(size=(4, 2)))} for _ in "12"]
    settings = {"explain": {"num_prototypes": 3, "restarts": 1, "batch_size": 64}}
    run = i2x_jax.explain(model, kept, i2x_jax.Dataset(images, labels, ("dark", "bright")), settings, tmp_path / "run")
    # 'SAME' pads a stride of 8 by nothing: the fields begin where their pixels do.
    assert run.model.places.columns == Span(1, 8, 3)
    assert run.crops(0, 2).images.shape[1:] == (1 if height == 1 else 3,) * 2 + (1,)
    with Image.open(run.path / CONTACT_SHEET) as sheet:
        assert len(pixels_of(sheet, pictures.FRAME))
    assert (run.path / REPORT).exists()
