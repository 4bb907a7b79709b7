"""What several test files share: two finished runs, and the compiled programs of all processes."""

import own_networks
import pytest
from helpers import planted
from test_run import run

import i2x_jax


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """The folder of this session; compiled programs are kept in it."""
    return tmp_path_factory.getbasetemp()


@pytest.fixture(scope="session")
def finished(base):
    """A run made by run.py to its end, not to be changed."""
    run(base, base / "finished")
    return base / "finished"


@pytest.fixture(scope="session")
def data():
    """Images of three classes, for networks of one's own."""
    return planted(150)


@pytest.fixture(scope="session")
def explained(base, data):
    """The run of a network of one's own in plain JAX, not to be changed."""
    pairs = list(zip(own_networks.STEPS, own_networks.CHECKPOINTS, strict=True))
    return i2x_jax.explain(own_networks.PLAIN, pairs, data, own_networks.SETTINGS, base / "explained")
