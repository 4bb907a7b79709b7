"""What several test files share: one finished run, and the compiled programs of all processes."""

import jax
import pytest
from test_run import cache_settings, run


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """The folder of this session; compiled programs are kept in it."""
    return tmp_path_factory.getbasetemp()


@pytest.fixture(scope="session", autouse=True)
def _programs_are_kept(base):
    """This process too reads what it, or one that it started, has compiled before: most of the time goes there."""
    for name, value in cache_settings(base).items():
        jax.config.update(name, value)


@pytest.fixture(scope="session")
def finished(base):
    """A run made by run.py to its end, not to be changed."""
    run(base, base / "finished")
    return base / "finished"
