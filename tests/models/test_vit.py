"""Vision transformers: the cut, the ledger behind either head, and the same network and saliency in PyTorch."""

import functools

import jax
import numpy as np
import pytest

import i2x_jax
from i2x_jax import models
from i2x_jax.config import InputError
from i2x_jax.evidence import measuring, saliency
from i2x_jax.models import torch_weights
from tests import plain_ledger
from tests.helpers import DEEP, assert_trees_equal, one_line, planted

try:
    import timm
    import torch
    from captum.attr import LayerGradCam
except ImportError:
    timm = None

needs_timm = pytest.mark.skipif(timm is None, reason="PyTorch, timm and captum are not installed")
DATA = planted(90)
POOLS = ("mean", "mean_norm", "token")
SETTINGS = {"explain": {"num_prototypes": 4, "restarts": 1, "batch_size": 64, "pca_dims": 8, "max_pairs": 1}}
# How timm makes the network of each pool.
TIMM = {
    "mean": {"class_token": False, "global_pool": "avg", "fc_norm": False},
    "mean_norm": {"class_token": False, "global_pool": "avg"},
    "token": {},
}
AGREE = 1e-4
SLOW_CAPTUM = pytest.param("mean_norm", "blocks.1", marks=pytest.mark.slow)


@functools.cache
def tiny(pool="mean", tap=""):
    return models.create("vit_ti", num_classes=3, image_shape=(8, 8, 1), width=12, patch=2, depth=2, pool=pool, tap=tap)


@functools.cache
def variables_of(model, seed=0):
    """Variables in which no leaf keeps its start."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        scale = np.sqrt(2 / np.prod(leaf.shape[:-1])) if path[-1].key == "kernel" else 0.3
        return np.float32((path[-1].key == "scale") + scale * rng.normal(size=leaf.shape))

    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(model.init, jax.random.key(0)))


@pytest.mark.parametrize("pool", POOLS)
def test_every_tap_splits_the_same_network(pool):
    places = models.taps("vit_ti", num_classes=3, image_shape=(8, 8, 1), width=12, patch=2, depth=2, pool=pool)
    names = [place.name for place in places]
    # Behind the last block nothing of the map reaches a class token.
    assert names == ["embed", "block1", *(["block2"] if pool != "token" else []), *(["norm"] if pool == "mean" else [])]
    variables = variables_of(tiny(pool))
    expected = np.asarray(tiny(pool).logits(variables, DATA.images[:6]))
    assert np.ptp(expected, axis=0).min() > 0.01
    for name in names:
        model = tiny(pool, name)
        assert model.feature_shape == (4, 4, 12)
        assert (model.linear_head is None) == (name != "norm")
        tapped = model.cut(variables, DATA.images[:6])
        np.testing.assert_allclose(model.logits_of(variables, tapped), expected, **DEEP)
        assert (tapped.beside is None) == (pool != "token")
        logits, _ = model.train_logits(variables, DATA.images[:6])
        np.testing.assert_allclose(logits, expected, **DEEP)


def test_locations_lie_on_their_patches():
    embedded, mixed = tiny("mean", "embed").places, tiny("mean").places
    assert embedded == models.Places(models.Span(0.5, 2, 2), models.Span(0.5, 2, 2))
    assert mixed == models.Places(models.Span(0.5, 2, 15), models.Span(0.5, 2, 15))
    # From the first and the last location alike, all of the image is seen.
    for place in (0, 3):
        centre = 0.5 + 2 * place
        assert centre - 15 / 2 <= -0.5
        assert centre + 15 / 2 >= 7.5


@pytest.mark.parametrize(
    ("wrong", "words"),
    [({"patch": 3}, "model.patch is 3 for images of 8x8"), ({"width": 32}, "a multiple of the 3 heads")],
)
def test_sizes_that_do_not_fit(wrong, words):
    settings = {"width": 12, "patch": 2, "depth": 1} | wrong
    with pytest.raises(InputError) as error:
        models.create("vit_ti", num_classes=3, image_shape=(8, 8, 1), **settings)
    assert words in one_line(error)


@pytest.fixture(
    scope="module", params=["token", *(pytest.param(pool, marks=pytest.mark.slow) for pool in ("mean", "mean_norm"))]
)
def run(request, tmp_path_factory):
    """A run of three checkpoints of drawn weights."""
    model = tiny(request.param)
    held = [variables_of(model, seed) for seed in range(3)]
    return i2x_jax.explain(model, held, DATA, SETTINGS, tmp_path_factory.mktemp("vit") / "run")


def test_the_ledger_adds_up(run):
    plain_ledger.check_adds_up(run)
    ledger = run.arrays("ledger")
    assert np.abs(ledger["seeing"]).max() > 0.01
    assert np.abs(ledger["weighing"]).max() > 0.01
    assert (ledger["path_error"] == 0).all() == bool(run.model.linear_head)
    assert ledger["path_error"].max() < 0.1


def test_contributions_of_an_image_and_what_goes_round_the_map_are_its_logits(run):
    """Of a class token, what belongs to no place differs from image to image; none is counted from zero."""
    stories = [run.story(row) for row in (0, 1)]
    for story in stories:
        pixels = run.dataset.images[story.image][None]
        logits = np.stack([run.model.logits(run.variables(step), pixels)[0] for step in run.steps])
        np.testing.assert_allclose(story.contributions.sum(1) + story.bias, logits, rtol=1e-4, atol=1e-4)
        assert np.abs(story.contributions).max() > 0.1
        assert run.account(story.image).account.shape == (2, 5)
    differs = np.abs(stories[0].bias - stories[1].bias).max() > 1e-3
    assert differs == (run.model.tapped is not None)


def test_the_account_of_an_image_that_was_held_out_adds_up(run):
    for split, row in (("train", 3), ("test", 2)):
        found = run.account(row, split)
        change = np.diff(found.confidence)
        np.testing.assert_allclose(found.account.sum(1), change, atol=5e-6)
    anew = run.account(run.dataset.images[3])
    story = run.story(run.dataset.images[3])
    if story.predicted == run.story(3).label:
        np.testing.assert_allclose(anew.account, run.account(3).account, atol=1e-5)


@functools.partial(jax.jit, static_argnums=0)
def evidence_from(model, variables, tapped, blank):
    places = np.zeros((len(tapped.features), 4, 4), np.int32)
    return measuring.evidence_of(model, variables, tapped, places, blank, 1), model.logits_of(variables, tapped)


def test_the_path_starts_at_the_blank_image_because_from_zero_it_would_see_nothing():
    model = tiny("mean_norm")
    variables, tapped = variables_of(model), model.cut(variables_of(model), DATA.images[:5])
    blank = model.features(variables, np.full((1, 8, 8, 1), 90, np.uint8))
    from_blank, logits = evidence_from(model, variables, tapped, blank)
    from_zero, _ = evidence_from(model, variables, tapped, 0 * blank)
    assert np.abs(from_blank.error).max() < 0.1 * np.ptp(logits)
    # Behind a norm the gradient has no part along that line: all of the logits is missing.
    everything = np.abs(logits - model.head(variables, 0 * blank)).max(-1)
    np.testing.assert_allclose(from_zero.error, everything, rtol=1e-3)
    assert everything.min() > 0.3 * np.ptp(logits)


class TestPyTorch:
    pytestmark = needs_timm

    def both(self, pool, classes=7, name="vit_tiny_patch16_224", own="vit_ti", depth=12):
        torch.manual_seed(0)
        theirs = timm.create_model(name, num_classes=classes, depth=depth, **TIMM[pool]).eval()
        with torch.no_grad():
            for value in theirs.parameters():
                value += 0.02 * torch.randn(value.shape)
        ours = models.create(own, num_classes=classes, image_shape=(224, 224, 3), pool=pool, depth=depth)
        shapes = jax.eval_shape(ours.init, jax.random.key(0))
        state = {key: value.numpy() for key, value in theirs.state_dict().items()}
        variables, other = torch_weights.from_torch(own, state, shapes, "them")
        assert other is None
        return ours, variables, theirs, state

    @pytest.mark.parametrize(
        ("pool", "depth"),
        [("token", 12), ("mean", 2), ("mean_norm", 2)],
    )
    def test_logits_are_timms(self, pool, depth):
        ours, variables, theirs, state = self.both(pool, depth=depth)
        images = np.random.default_rng(7).integers(0, 256, (2, 224, 224, 3)).astype(np.uint8)
        with torch.no_grad():
            expected = theirs(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1).numpy()
        found = np.asarray(jax.jit(ours.logits)(variables, images))
        assert np.abs(expected).max() > 0.1
        assert np.abs(found - expected).max() < AGREE * np.abs(expected).max()
        back = torch_weights.to_torch("vit_ti", variables)
        assert_trees_equal(back, {key: np.ascontiguousarray(value) for key, value in state.items()})

    @pytest.mark.slow
    @pytest.mark.parametrize(("name", "own"), [("vit_small_patch16_224", "vit_s"), ("vit_base_patch16_224", "vit_b")])
    def test_the_larger_ones_too(self, name, own):
        ours, variables, theirs, _ = self.both("token", name=name, own=own)
        images = np.random.default_rng(7).integers(0, 256, (1, 224, 224, 3)).astype(np.uint8)
        with torch.no_grad():
            expected = theirs(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1).numpy()
        found = np.asarray(jax.jit(ours.logits)(variables, images))
        assert np.abs(found - expected).max() < AGREE * np.abs(expected).max()

    @pytest.mark.parametrize(("pool", "tap"), [("token", "blocks.0"), ("mean", "norm"), SLOW_CAPTUM])
    def test_saliency_is_that_of_captum(self, pool, tap):
        """GradCAM over the patch tokens at the same place; of a class token, the token is none of them."""
        ours, variables, theirs, _ = self.both(pool, depth=2)
        images = np.random.default_rng(7).integers(0, 256, (2, 224, 224, 3)).astype(np.uint8)
        labels = np.array([2, 5])
        found = jax.jit(
            lambda v, x: (
                lambda tapped: saliency.saliency_maps(ours, v, tapped.features, labels, beside=tapped.beside)
            )(ours.cut(v, x))
        )(variables, images)
        cut = AsMap(theirs, tap, pool == "token")
        expected = LayerGradCam(cut, cut.map).attribute(
            torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1,
            torch.from_numpy(labels),
            relu_attributions=True,
        )
        expected = expected[:, 0].detach().numpy()
        assert np.abs(expected).max() > 1e-5
        assert np.abs(np.asarray(found) - expected).max() < AGREE * np.abs(expected).max()

    @pytest.mark.slow
    def test_another_number_of_classes_keeps_the_drawn_classifier(self):
        _, variables, _, state = self.both("token", depth=2)
        few = models.create("vit_ti", num_classes=3, image_shape=(224, 224, 3), pool="token", depth=2)
        initial = few.init(jax.random.key(1))
        found, other = torch_weights.from_torch("vit_ti", state, initial, "them")
        assert other == 7
        assert_trees_equal(found["params"]["classifier"], initial["params"]["classifier"])
        assert_trees_equal(found["params"]["block1"], variables["params"]["block1"])


if timm is not None:

    class AsMap(torch.nn.Module):
        """A transformer of timm cut after a layer: its patch tokens pass through `map` as `[B, d, h, w]`."""

        def __init__(self, network, tap, token):
            super().__init__()
            self.network, self.map, self.token = network, torch.nn.Identity(), token

            def through(module, inputs, tokens):
                patches = tokens[:, int(token) :]
                side = int(patches.shape[1] ** 0.5)
                shown = self.map(patches.transpose(1, 2).unflatten(2, (side, side)))
                return torch.cat([tokens[:, : int(token)], shown.flatten(2).transpose(1, 2)], 1)

            network.get_submodule(tap).register_forward_hook(through)

        def forward(self, x):
            return self.network(x)
