"""What several test files share: one finished run, and the compiled programs of all processes."""

import pytest
from test_run import run


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """The folder of this session; compiled programs are kept in it."""
    return tmp_path_factory.getbasetemp()


@pytest.fixture(scope="session")
def finished(base):
    """A run made by run.py to its end, not to be changed."""
    run(base, base / "finished")
    return base / "finished"
