"""The step `ranking` on a network of one's own: other heads, an audit set, batches."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import planted
from own_networks import CHECKPOINTS, CLASSES, SETTINGS, plain_features, plain_head

import i2x_jax
from i2x_jax import Run
from i2x_jax.data.dataset import Dataset
from i2x_jax.explanation import ranking
from i2x_jax.pipeline import rank
from i2x_jax.pipeline.directory import RunDirectory

K = 4


def again(explained, linear_head):
    """The same run, of a network of which another closed form of its head is known, or none."""
    run = Run(explained.path)
    run.splits, run.abstract_variables = explained.splits, explained.abstract_variables
    run.model = dataclasses.replace(explained.model, linear_head=linear_head)
    return run


@pytest.fixture
def with_head(explained):
    """The same run, whose network says that its head is a pool and a linear layer."""
    return again(explained, lambda variables: (variables["classifier"], variables["bias"]))


def census_of(run):
    return ranking.census(run.array("assignments"), run.dataset.labels, K, CLASSES)


def left_out(run, folder, *sets):
    directory = RunDirectory(folder)
    directory.quiet = True
    return rank.left_out(directory, run, sets)


def test_a_head_that_is_not_known_to_be_linear_is_read_by_its_contributions(explained, with_head):
    found = [rank.evidence_of(run, census_of(run)) for run in (again(explained, None), with_head)]
    np.testing.assert_allclose(*found, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(explained.arrays("ranking")["evidence"], found[0][-1], rtol=1e-3, atol=1e-5)
    assert found[0].shape == (4, K, CLASSES)
    assert found[0].max() > 0.1


def test_without_a_pool_nothing_is_left_out(data, tmp_path):
    model = i2x_jax.OwnModel(plain_features, lambda held, maps: jnp.tanh(plain_head(held, maps)))
    explained = i2x_jax.explain(model, CHECKPOINTS[:2], data, SETTINGS, tmp_path / "run")
    assert explained.arrays("ranking")["gained"].shape == (0, K)
    assert explained.ranking[0].drop == {}
    assert not left_out(explained, tmp_path, explained.splits.validation)["samples"].size
    assert {row["drop_validation"] for row in explained.records("prototypes")} == {None}


@pytest.mark.parametrize("batch_size", [7, 64])
def test_an_audit_set_has_the_second_row(with_head, tmp_path, batch_size):
    audit = planted(30, seed=5)
    with_head.config = dataclasses.replace(
        with_head.config, explain=dataclasses.replace(with_head.config.explain, batch_size=batch_size)
    )
    validation = with_head.splits.validation
    assert rank.sets_of(with_head.splits._replace(audit=audit)) == [validation, audit]
    assert rank.sets_of(with_head.splits) == [validation]
    found = left_out(with_head, tmp_path, validation, audit)
    assert found["samples"].tolist() == [len(validation.labels), 30]
    variables, prototypes = with_head.variables(with_head.steps[-1]), with_head.arrays("prototypes")
    for row, dataset in enumerate((validation, audit)):
        predicted = rank.predictions_without(with_head.model, variables, prototypes, dataset, 1000)
        for name, value in ranking.dropped(predicted, dataset.labels).items():
            np.testing.assert_array_equal(found[name][row], value)
        whole = np.argmax(with_head.model.head(variables, with_head.model.features(variables, dataset.images)), -1)
        np.testing.assert_array_equal(predicted[:, K], whole)
    assert (found["gained"] + found["lost"]).any(1).all()


def test_all_places_of_one_prototype_leave_the_bias(with_head):
    variables, prototypes = with_head.variables(with_head.steps[-1]), with_head.arrays("prototypes")
    images = Dataset(planted(6).images, np.zeros(6, np.int32), with_head.dataset.class_names)
    same = prototypes | {"centroids": 0 * prototypes["centroids"]}
    predicted = rank.predictions_without(with_head.model, variables, same, images, 6)
    # Equally near, the first prototype has them all.
    assert (predicted[:, 0] == np.argmax(variables["bias"])).all()
    assert (predicted[:, 1:] == predicted[:, -1:]).all()
