"""TensorFlow's process-wide settings, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.tensorflow


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_a_training_has_one_core_and_configuring_twice_changes_nothing() -> None:
    # When TensorFlow is configured twice
    done = run(
        "from fluffle.worker.training.runtime import configure; configure(3); configure(1)\n"
        "import tensorflow as tf; t = tf.config.threading\n"
        "print(t.get_intra_op_parallelism_threads(), t.get_inter_op_parallelism_threads() >= 3)"
    )

    # Then each training has one core, there is a thread for each slot, and nothing is logged
    assert done.stdout.split() == ["1", "True"], done.stderr
    assert done.stderr == ""


@pytest.mark.parametrize(("threads", "said"), [("0", "TensorFlow was in use before"), ("1", "")])
def test_tensorflow_that_was_in_use_before_goes_on_as_it_is(threads: str, said: str) -> None:
    # Given code that has used TensorFlow with its own number of threads, as notebooks do
    done = run(
        "import logging, sys; logging.basicConfig(stream=sys.stdout)\n"
        "import tensorflow as tf\n"
        f"tf.config.threading.set_intra_op_parallelism_threads({threads}); tf.constant(1) + 1\n"
        "from fluffle.worker.training.runtime import configure; configure(1); configure(2)"
    )
    # Then it can be used, and where that may show in results it is said, once
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("TensorFlow was in use before") == bool(said)


def test_keras_is_as_it_comes_whatever_a_machine_says(tmp_path: Path) -> None:
    # Given a user whose Keras has another backend, dtype and order of axes
    told = '{"floatx": "float16", "epsilon": 0.1, "backend": "jax", '
    (tmp_path / "keras.json").write_text(told + '"image_data_format": "channels_first"}')
    script = (
        "from fluffle.worker.training.runtime import configure; configure(1); import keras;"
        "c = keras.config;"
        "print(c.backend(), c.floatx(), c.epsilon(), c.image_data_format())"
    )
    environment = {**os.environ, "KERAS_HOME": str(tmp_path), "KERAS_BACKEND": "torch"}
    # When a worker imports it
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    # Then it is what every other worker has
    assert done.stdout.split() == ["tensorflow", "float32", "1e-07", "channels_last"], done.stderr


def test_a_tensorflow_that_is_not_installed_is_one_line() -> None:
    script = (
        "import importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'tensorflow' else find(name, *a)\n"
        "from fluffle.schemas import UserError\n"
        "from fluffle.worker.training.runtime import configure\n"
        "configure(1)\n"
        "for kind in (UserError, ImportError):\n"
        "    try: import tensorflow\n"
        "    except kind as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    first, second = done.stdout.splitlines()
    assert first == second
    assert first.startswith("training needs tensorflow, which is not installed: pip install")


def test_jax_is_not_imported_with_tensorflow_and_can_still_be() -> None:
    pytest.importorskip("jax", reason="the extra jax is not installed")
    done = run(
        "from fluffle.worker.training.runtime import configure; configure(1)\n"
        "import sys, tensorflow, keras; print('jax' in sys.modules)\n"
        "import jax; print(int(jax.numpy.ones(2).sum()))"
    )
    assert done.stdout.split() == ["False", "2"], done.stderr
