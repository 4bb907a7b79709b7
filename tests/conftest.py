"""What several test files share: one finished run, and the compiled programs of all processes."""

import pytest
from test_run import run


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """The folder of this session; compiled programs are kept in it."""
    return tmp_path_factory.getbasetemp()


@pytest.fixture(scope="session", autouse=True)
def kept_programs(base):
    """Processes that tests start leave the user's cache of compiled programs alone."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("XDG_CACHE_HOME", str(base / "cache"))
        yield


@pytest.fixture(scope="session")
def finished(base):
    """A run made by run.py to its end, not to be changed."""
    run(base, base / "finished")
    return base / "finished"
