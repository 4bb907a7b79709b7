"""What is done without the names of JAX's inside: the plain way, whichever of them is gone."""

import importlib.util
import json
import os
import re
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from programs import ROOT

from i2x_jax.devices import compilation, inside
from i2x_jax.devices.mesh import mesh
from i2x_jax.models import layers
from tests.devices.program_without_inside import NAMES, emptied
from tests.helpers import DEEP

OPTIONS = {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), "precision": jax.lax.Precision.HIGHEST}
SOURCE = ROOT / "i2x_jax" / "devices" / "inside.py"


def loaded(import_module):
    """The module anew, looking for its names with that function."""
    spec = importlib.util.spec_from_file_location("inside_anew", SOURCE)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importlib, "import_module", import_module)
        spec.loader.exec_module(module)
    return module


@pytest.fixture
def fresh():
    def forget():
        compilation.has_onednn.cache_clear()
        compilation.compiler_options.cache_clear()

    forget()
    yield
    forget()


def test_every_name_that_is_looked_for_is_in_the_list_and_there():
    looked_for = re.findall(r'= _found\("([\w.]+)", "(\w+)"\)', SOURCE.read_text())
    assert tuple(looked_for) == NAMES
    assert all(hasattr(importlib.import_module(module), name) for module, name in NAMES)


def test_nothing_else_reaches_inside():
    found = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "i2x_jax").rglob("*.py")
        if re.search(r"jax\._src|jax\.experimental|jax\.extend|make_user_context|ffi_call\(", path.read_text())
    }
    assert found == {"i2x_jax/devices/inside.py", "i2x_jax/devices/onednn.py"}


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("lost", [*NAMES, NAMES], ids=lambda lost: "all" if lost is NAMES else lost[1])
def test_programs_and_their_folder_do_without(lost, monkeypatch, tmp_path):
    gone = loaded(emptied(*(NAMES if lost is NAMES else (lost,))))
    monkeypatch.setattr(compilation, "inside", gone)
    rng = np.random.default_rng(0)
    x, kernel = (rng.normal(size=size).astype(np.float32) for size in ((3, 7, 6, 4), (3, 3, 4, 5)))
    convolve = compilation.jit(
        lambda x: layers.convolution(x, kernel, (1, 1), ((0, 0),) * 2, **OPTIONS), inference=True
    )
    np.testing.assert_allclose(convolve(x), jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", **OPTIONS), **DEEP)
    needed = {"make_user_context", "persistent_cache_min_compile_time_secs", "ffi_call"}
    if lost is NAMES or lost[1] in needed:
        assert not compilation.has_onednn()
        assert not compilation.calls_onednn()
    # The folder of kept programs.
    (tmp_path / "jit_a-cache").write_bytes(b"no program")
    compilation._usable(tmp_path)
    can_tell = lost is not NAMES and lost[1] != "decompress_executable"
    assert (tmp_path / "jit_a-cache").exists() != can_tell


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("kind", ["other arguments", "another thing"])
def test_names_that_have_come_to_mean_something_else(kind, monkeypatch, tmp_path):
    def changed():
        raise AssertionError("nobody calls it without arguments")

    monkeypatch.setattr(inside, "_least_seconds", changed if kind == "other arguments" else 3)
    monkeypatch.setattr(inside, "_decompress", changed if kind == "other arguments" else 3)
    inside.can_infer.cache_clear()
    try:
        assert not compilation.has_onednn()
        assert not compilation.jit(lambda: jnp.bool_(compilation.calls_onednn()), inference=True)()
        (tmp_path / "jit_a-cache").write_bytes(b"cannot be told")
        compilation._usable(tmp_path)
        assert (tmp_path / "jit_a-cache").exists()
    finally:
        inside.can_infer.cache_clear()


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("error", [ValueError, TypeError, jax.errors.JaxRuntimeError])
def test_options_that_nobody_knows_are_not_passed_on(error, monkeypatch):
    original = jax.jit

    def strict(function, **options):
        if "compiler_options" in options:
            raise error("no such option")
        return original(function, **options)

    monkeypatch.setattr(jax, "jit", strict)
    assert compilation.compiler_options() is None
    assert compilation.jit(lambda x: x + 1)(1) == 2


def test_arrays_of_several_devices_come_together():
    gone = loaded(emptied(*NAMES))
    dealt, replicated = (NamedSharding(mesh(), PartitionSpec(*axes)) for axes in (("data",), ()))
    rows = np.arange(6 * jax.device_count()).reshape(-1, 3)
    gone.synchronize("a place", dealt)
    np.testing.assert_array_equal(gone.gather(jax.device_put(rows, dealt), replicated), rows)


def started(module, *arguments):
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("JAX_", "XLA_"))}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.devices.program_without_inside", module, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environment | {"JAX_PLATFORMS": "cpu"},
    )


def test_a_process_without_any_of_them_computes_and_keeps_its_programs(tmp_path):
    process = started("tests.program_with_cache", tmp_path, tmp_path)
    output, errors = process.communicate()
    assert (process.returncode, errors) == (0, "")
    first, second = (json.loads(line) for line in output.splitlines())
    assert second["taken"] > 0
    assert second["written"] == 0
    assert first["digest"] == second["digest"]
    # Without oneDNN, that of the evidence is kept too.
    assert list(tmp_path.glob("jit_batch_tapped*-cache"))


@pytest.mark.slow
def test_two_processes_without_any_of_them_agree_with_one(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    outputs = [tmp_path / f"{i}.npz" for i in range(3)]
    processes = [
        started("tests.programs_on_devices", outputs[0]),
        *(started("tests.programs_on_devices", outputs[i + 1], address, 2, i) for i in range(2)),
    ]
    for process in processes:
        _, errors = process.communicate()
        assert process.returncode == 0, errors
    one, *both = (np.load(path) for path in outputs)
    for each in both:
        for name in ("maps", "logits", "contributions"):
            np.testing.assert_allclose(each[name], one[name], **DEEP)
