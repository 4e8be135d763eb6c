"""Makes data to try it with: ``python make_data.py`` writes ``data/site-1`` to ``site-3`` and
``data/evaluator``. Real sites have data of their own, and do without this file."""

from pathlib import Path

import numpy as np

HERE = Path(__file__).parent


def main():
    kinds = np.random.default_rng(0).normal(size=(3, 16))
    for number, name in enumerate(["site-1", "site-2", "site-3", "evaluator"]):
        rng = np.random.default_rng(number)
        y = rng.integers(3, size=300)
        x = (kinds[y] + rng.normal(0, 1, (300, 16)) + rng.normal(0, 0.3, 16)).astype("float32")
        folder = HERE / "data" / name
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(folder / "data.npz", x_train=x[60:], y_train=y[60:], x_test=x[:60], y_test=y[:60])


if __name__ == "__main__":
    main()
