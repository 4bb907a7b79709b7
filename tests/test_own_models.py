"""Networks of a user's own: what is found out about them, and the ten lines that bring them."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

import i2x_jax
from experiments.examples import ten_lines
from i2x_jax.config import InputError
from i2x_jax.models.own import linear_head_of, nnx_functions
from tests import plain_ledger
from tests.helpers import DEEP, ROUNDING, one_line, planted
from tests.own_networks import CHANNELS, CLASSES, plain_features, plain_head, weights

DATA = planted(150)
SETTINGS = {"explain": {"num_prototypes": 4, "restarts": 1, "batch_size": 64, "max_pairs": 1}}
DRAWN = [weights(seed) for seed in range(3)]


def explained(model, checkpoints, folder, data=DATA):
    return i2x_jax.explain(model, checkpoints, data, SETTINGS, folder)


class Nnx(nnx.Module):
    def __init__(self, seed):
        rngs = nnx.Rngs(seed)
        self.first = nnx.Conv(1, 6, (3, 3), strides=2, rngs=rngs)
        self.norm = nnx.BatchNorm(6, rngs=rngs)
        self.second = nnx.Conv(6, 8, (3, 3), rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.classifier = nnx.Linear(8, CLASSES, rngs=rngs)

    def __call__(self, images):
        x = nnx.relu(self.norm(self.first(images / 255 - 0.3)))
        return self.classifier(self.dropout(nnx.gelu(self.second(x)).mean((1, 2))))


class TestLinearHead:
    def test_is_found(self):
        found, bias = linear_head_of(plain_head, (4, 4, CHANNELS))(DRAWN[0])
        np.testing.assert_allclose(found, DRAWN[0]["classifier"], **ROUNDING)
        np.testing.assert_allclose(bias, DRAWN[0]["bias"], **ROUNDING)

    @pytest.mark.slow
    def test_makes_the_ledger_exact_without_being_given(self, tmp_path):
        run = explained(i2x_jax.OwnModel(plain_features, plain_head), DRAWN, tmp_path / "run")
        assert run.model.linear_head
        plain_ledger.check_adds_up(run)
        assert (run.arrays("ledger")["path_error"] == 0).all()

    @pytest.mark.parametrize(
        "head",
        [
            lambda held, f: jnp.tanh(plain_head(held, f)),
            lambda held, f: f.max((1, 2)) @ held["classifier"],
            lambda held, f: f[:, 1:].mean((1, 2)) @ held["classifier"] + held["bias"],
            lambda held, f: (f / jnp.sqrt((f**2).mean(-1, keepdims=True) + 1e-6)).mean((1, 2)) @ held["classifier"],
        ],
        ids=["tanh", "max", "not all places", "norm"],
    )
    def test_another_head_is_not_taken_for_one(self, head):
        assert not tried(plain_features, head).linear_head

    @pytest.mark.slow
    def test_half_precision_has_a_tolerance_of_its_own_and_sums_that_are_exact(self, tmp_path):
        half = [jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), held) for held in DRAWN]
        run = explained(i2x_jax.OwnModel(half_features, half_head), half, tmp_path / "run")
        assert run.model.linear_head
        plain_ledger.check_adds_up(run)
        assert not tried(half_features, lambda held, f: jnp.tanh(half_head(held, f)), half).linear_head


def half_features(held, images):
    return plain_features(held, images.astype(jnp.bfloat16))


def half_head(held, features):
    return plain_head(held, features.astype(jnp.bfloat16))


def tried(features, head, checkpoints=DRAWN):
    """A network as `explain` sees it, without being explained."""
    from i2x_jax import api

    given = api._checkpoints(checkpoints)
    model = i2x_jax.OwnModel(features, head)
    like = jax.eval_shape(lambda: checkpoints[0])
    own = api._cut(model, like, DATA, False)
    return api._with_linear_head(own, given, DATA, api._tolerance(model, like, DATA))


class TestOtherImages:
    """Five channels of numbers around zero, one of which holds the patch that tells the classes."""

    DISPLAY = i2x_jax.Display(channels=(3, 0, 1), low=-1, high=2)

    def data(self):
        noise = np.random.default_rng(0).normal(size=(150, 8, 8, 4)) / 4
        return DATA._replace(
            images=np.float32(np.concatenate([noise[..., :3], DATA.images / 100 - 0.5, noise[..., 3:]], -1)),
            display=self.DISPLAY,
        )

    def test_are_explained_and_shown_as_they_are_told_to(self, tmp_path):
        def features(held, images):
            return plain_features(held, 255 * (images[..., 3:4] + 0.3) + 0 * images.sum(-1, keepdims=True))

        data = self.data()
        model = i2x_jax.OwnModel(features, plain_head)
        run = i2x_jax.explain(model, DRAWN, data, SETTINGS, tmp_path / "run", trust=True)
        plain_ledger.check_adds_up(run)
        assert run.dataset.images.dtype == np.float32
        # The blank image is the mean itself, not a rounded one.
        blank = run.arrays("prototypes")["blank"]
        np.testing.assert_allclose(blank, run.dataset.images.mean((0, 1, 2)), rtol=1e-4, atol=1e-6)
        assert blank.min() < 0
        crops = run.crops(prototype=1, n=3)
        assert crops.images.dtype == np.uint8
        assert crops.images.shape[3] == 3
        expected = np.clip((run.dataset.images[5][..., [3, 0, 1]] + 1) / 3, 0, 1)
        np.testing.assert_array_equal(run.dataset.pictures[5], np.round(255 * expected))
        assert run.plot_image(5)
        assert run.plot_image(run.dataset.images[5])
        own = run.story(run.dataset.images[5])
        np.testing.assert_allclose(own.confidence, run.story(5).confidence, atol=1e-5)
        assert (run.path / "report.html").exists()
        assert run.has_trust

    @pytest.mark.parametrize(
        ("display", "words"),
        [
            (None, "float32 [150, 8, 8, 5]; allowed without a display: uint8 with 1 or 3 channels"),
            (i2x_jax.Display((0, 1)), "allowed: 1 or 3 of the channels 0 to 4"),
            (i2x_jax.Display((0, 1, 5)), "allowed: 1 or 3 of the channels 0 to 4"),
            (i2x_jax.Display((0,), 1, 1), "low below high"),
            (i2x_jax.Display((0,), 0, np.nan), "low below high"),
        ],
    )
    def test_a_display_that_cannot_be_used(self, display, words, tmp_path):
        with pytest.raises(InputError) as error:
            explained(
                i2x_jax.OwnModel(plain_features, plain_head),
                DRAWN,
                tmp_path / "run",
                self.data()._replace(display=display),
            )
        assert words in one_line(error)

    def test_networks_of_this_project_take_levels(self):
        with pytest.raises(InputError) as error:
            i2x_jax.train(self.data())
        assert "float32 for a network of this project; allowed: uint8" in one_line(error)


class TestNnxByName:
    def test_both_halves_are_the_network(self):
        net = Nnx(0)
        net.train()
        for layer in ("first", "norm", "second"):
            features, head = nnx_functions(net, layer, DATA.images[:3])
            variables = nnx.state(net, nnx.Not(nnx.RngState))
            expected = nnx.view(net, deterministic=True, use_running_average=True)(DATA.images[:5])
            np.testing.assert_allclose(head(variables, features(variables, DATA.images[:5])), expected, **DEEP)
        assert not net.dropout.deterministic, "it is left as it was"

    def test_a_layer_that_others_go_round(self):
        class Round(nnx.Module):
            def __init__(self):
                self.layers = nnx.List([nnx.Conv(1, 1, (3, 3), rngs=nnx.Rngs(0)), nnx.Linear(1, 3, rngs=nnx.Rngs(1))])

            def __call__(self, images):
                return self.layers[1]((images / 255 + self.layers[0](images / 255)).mean((1, 2)))

        with pytest.raises(InputError) as error:
            i2x_jax.OwnModel.from_nnx(Round(), "layers.0", DATA.images[:2])
        assert "'layers.0' is not all that the logits depend on" in one_line(error)

    def test_an_unknown_layer(self):
        with pytest.raises(InputError) as error:
            i2x_jax.OwnModel.from_nnx(Nnx(0), "third", DATA.images[:2])
        assert "'third'; allowed: classifier, dropout, first, norm, second" in one_line(error)


class Linen(linen.Module):
    def setup(self):
        self.conv, self.classifier = linen.Conv(6, (3, 3), strides=2), linen.Dense(CLASSES)

    def features(self, images):
        return linen.relu(self.conv(images / 255 - 0.3))

    def head(self, features):
        return self.classifier(features.mean((1, 2)))

    def __call__(self, images):
        return self.head(self.features(images))


def kept_of(package):
    if package == "nnx":
        return [(step, Nnx(step)) for step in (0, 5)]
    if package == "linen":
        return Linen(), [(step, Linen().init(jax.random.key(step), DATA.images[:1])) for step in (0, 5)]
    eqx = pytest.importorskip("equinox")

    class Equinox(eqx.Module):
        conv: eqx.nn.Conv2d
        classifier: eqx.nn.Linear

        def __init__(self, key):
            self.conv = eqx.nn.Conv2d(1, 6, 3, 2, 1, key=key)
            self.classifier = eqx.nn.Linear(6, CLASSES, key=key)

        def features(self, image):
            return jax.nn.relu(self.conv(image.transpose(2, 0, 1) / 255 - 0.3)).transpose(1, 2, 0)

        def head(self, features):
            return self.classifier(features.mean((0, 1)))

    return [(step, Equinox(jax.random.key(step))) for step in (0, 5)]


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("linen", "equinox")]


@pytest.mark.parametrize("package", ["nnx", *SLOW])
def test_ten_lines_explain_a_network(package, tmp_path):
    explain = getattr(ten_lines, f"of_{package}")
    body = inspect.getsource(explain).split('"""')[2]
    assert len([line for line in body.splitlines() if line.strip()]) <= 10
    kept = kept_of(package)
    run = explain(*(kept if package == "linen" else [kept]), DATA, tmp_path / "run")
    assert list(run.steps) == [0, 5]
    assert bool(run.model.linear_head) == (package != "nnx"), "behind `second` a gelu follows"
    assert run.model.places.side == (7 if package == "nnx" else 3)
    plain_ledger.check_adds_up(run)
