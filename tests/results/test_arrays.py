"""What would be refused when it is read is refused before it is written, with what it is about."""

import dataclasses

import jax
import numpy as np
import pytest
from own_networks import CHECKPOINTS, PLAIN, SETTINGS, STEPS, plain_features, plain_head

import i2x_jax
from i2x_jax import Run
from i2x_jax.config import InputError
from i2x_jax.pipeline.directory import RunDirectory
from i2x_jax.pipeline.train import check_finite
from i2x_jax.results.arrays import ARRAYS
from tests.helpers import drawn, one_line, tiny_model

T, N, K, M = 3, 5, 4, 2


def evidence_files(**changed):
    """The files of the step `evidence`, in which everything is as it should be but for what is changed."""
    confidence = np.full((T, N, M), 0.5, np.float32)
    held_out = {"labels": np.zeros(N, np.int32), "confidence": confidence}
    by_interval = np.zeros((T - 1, M, K, M), np.float32)
    files = {
        "rivals.npy": np.tile(np.arange(M, dtype=np.int32), (M, 1)),
        "assignments.npy": np.zeros((N, 2, 2), np.int16),
        "account.npy": np.zeros((T - 1, N, K + 1), np.float32),
        "ledger.npz": {
            **dict.fromkeys(("seeing", "weighing", "seeing_error", "weighing_error"), by_interval),
            "bias": np.zeros((T - 1, M, M), np.float32),
            **dict.fromkeys(("residual", "largest_logit"), np.zeros(T - 1)),
            "path_difference": np.zeros(T - 2),
            "path_error": np.zeros(T),
        },
        "prototype_features.npz": {"counts": np.ones(K, np.int64), "sums": np.zeros((T, K, 6), np.float32)},
        "intensity.npy": np.ones((T, N, K), np.float32),
        "confidence.npy": confidence,
        "contributions.npz": {
            "mean": np.zeros((T, M, K, M), np.float32),
            "std": np.zeros((T, M, K, M), np.float32),
            "bias": np.zeros((T, M), np.float32),
            "completeness_error": np.zeros(T),
            "blank": np.zeros((T, M, K, M), np.float32),
        },
        "validation.npz": held_out,
        "test.npz": held_out,
    }
    return files | changed


def write(folder, files):
    for name, value in files.items():
        if name.endswith(".npz"):
            np.savez(folder / name, **value)
        else:
            np.save(folder / name, value)


def with_value(array, place, value):
    changed = np.array(array)
    changed[place] = value
    return changed


def contributions(name, place, value):
    members = evidence_files()["contributions.npz"]
    return {"contributions.npz": members | {name: with_value(members[name], place, value)}}


HARM = {
    "squares that overflowed": (
        contributions("std", (1, 0, 2, 1), np.inf),
        "the contributions to the logits at step 7 cannot be kept (std is not finite everywhere)",
    ),
    "no error at all": (contributions("completeness_error", 2, np.nan), "the contributions to the logits at step 20"),
    "saliency": (
        {"intensity.npy": with_value(np.ones((T, N, K), np.float32), (0, 1, 1), np.inf)},
        "the saliency at step 0 cannot be kept",
    ),
    "a negative one": (
        {"intensity.npy": with_value(np.ones((T, N, K), np.float32), (0, 1, 1), -1)},
        "the saliency cannot be kept (it is somewhere outside of what it can be",
    ),
    "another type": ({"confidence.npy": np.ones((T, N, M))}, "the confidence cannot be kept (it is float64"),
    "sizes that do not go together": (
        {"intensity.npy": np.ones((T, N + 1, K), np.float32)},
        "the saliency cannot be kept (it is float32 [3 x 6 x 4]",
    ),
    "too few steps": ({"confidence.npy": np.ones((T - 1, N, M), np.float32)}, "the confidence cannot be kept"),
}


@pytest.fixture
def directory(tmp_path):
    np.save(tmp_path / "steps.npy", np.array([0, 7, 20], np.int32))
    return RunDirectory(tmp_path)


def test_files_as_they_should_be_get_their_names(directory):
    with directory.making("evidence") as folder:
        write(folder, evidence_files())
    assert directory.complete("evidence")


@pytest.mark.parametrize(("harm", "words"), HARM.values(), ids=HARM)
def test_a_file_that_would_be_refused_gets_no_name_and_neither_do_the_others(directory, harm, words):
    with pytest.raises(InputError) as error, directory.making("evidence") as folder:
        write(folder, evidence_files(**harm))
    line = one_line(error)
    assert words in line
    assert "look at the weights and images of this run" in line
    assert [path.name for path in directory.path.iterdir()] == ["steps.npy"]


def test_json_that_would_be_refused_is_a_bug_and_not_written(directory):
    with pytest.raises(ValueError, match="is a required property"):
        directory.write_json("refinement.json", {"schema": 1}, "refinement")
    with pytest.raises(ValueError, match="not JSON compliant"):
        directory.write_json("refinement.json", {"schema": np.nan})
    assert [path.name for path in directory.path.iterdir()] == ["steps.npy"]


def test_weights_that_could_not_be_read_again_are_not_kept(tmp_path):
    variables = jax.tree.map(np.array, drawn(tiny_model()))
    check_finite(variables, 3, tmp_path)
    variables["batch_stats"]["conv1"]["norm"]["var"][1] = np.inf
    with pytest.raises(InputError, match=r"batch_stats/conv1/norm/var at step 3 of .* holds NaN or infinity; allowed"):
        check_finite(variables, 3, tmp_path)


def test_a_network_of_huge_logits_is_explained_and_read_again(tmp_path, data):
    """Its logits are finite, the squares of its contributions are not."""
    huge = dataclasses.replace(PLAIN, head=lambda held, features: plain_head(held, features) * 1e20)
    pairs = list(zip(STEPS, CHECKPOINTS, strict=True))
    run = Run(i2x_jax.explain(huge, pairs, data, SETTINGS, tmp_path / "run").path)
    for name in ARRAYS:
        if (run.path / name).exists():
            stem, _, kind = name.partition(".")
            run.array(stem) if kind == "npy" else run.arrays(stem)
    found = run.arrays("contributions")
    assert 1e19 < found["std"].max() < np.inf
    assert run.explanation.prototypes


def test_a_network_of_huge_features_is_refused_with_what_is_huge(tmp_path, data):
    huge = dataclasses.replace(PLAIN, features=lambda held, images: plain_features(held, images) * 1e25)
    with pytest.raises(InputError) as error:
        i2x_jax.explain(huge, CHECKPOINTS, data, SETTINGS, tmp_path / "run")
    assert "features hold non-finite values, or such that their squares are" in one_line(error)
