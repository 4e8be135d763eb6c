"""TensorFlow's process-wide settings, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys

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


def test_tensorflow_that_was_in_use_before_is_an_error_and_not_another_result() -> None:
    # Given code that has used TensorFlow with its own number of threads
    done = run(
        "import tensorflow as tf; tf.constant(1) + 1\n"
        "from fluffle.worker.training.runtime import configure; configure(1)"
    )

    # Then configuring says so
    assert done.returncode == 1
    assert "RuntimeError" in done.stderr
