"""What several test files share: two finished runs, and the compiled programs of all processes.

The tests are dealt over several processes (pytest-xdist). What is made once, the first that needs it makes for all.
"""

import os

import jax
import own_networks
import pytest
from helpers import on_terminal, planted
from programs import cache_settings, command, environment, made_once, one_at_a_time

import i2x_jax

# Each process would take most of a GPU's memory, and leave the others none.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """The folder of this session, the same in all of its processes; compiled programs are kept in it."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@pytest.fixture(scope="session", autouse=True)
def _programs_are_kept(base):
    """This process too reads what it, or one that it started, has compiled before: most of the time goes there.

    The user's cache of compiled programs is left alone.
    """
    for name, value in cache_settings(base).items():
        jax.config.update(name, value)
    with pytest.MonkeyPatch.context() as variables:
        variables.setenv("XDG_CACHE_HOME", str(base / "cache"))
        yield


@pytest.fixture(scope="session")
def shown(base):
    """What run.py showed on a terminal while it made the run `finished`."""

    def make():
        code, text = on_terminal(command(base / "finished"), environment(base))
        assert code == 0, text
        (base / "shown").write_bytes(text.encode())

    made_once(base, "finished", make)
    return (base / "shown").read_bytes().decode()


@pytest.fixture(scope="session")
def finished(base, shown):
    """A run made by run.py to its end, not to be changed."""
    return base / "finished"


@pytest.fixture(scope="session")
def data():
    """Images of three classes, for networks of one's own."""
    return planted(150)


@pytest.fixture(scope="session")
def explained(base, data):
    """The run of a network of one's own in plain JAX, not to be changed."""
    pairs = list(zip(own_networks.STEPS, own_networks.CHECKPOINTS, strict=True))
    # Asked again, it opens what is finished.
    with one_at_a_time(base, "explained"):
        return i2x_jax.explain(own_networks.PLAIN, pairs, data, own_networks.SETTINGS, base / "explained")
