"""What models of one's own cost: arrays, adapters, each kind of Keras model, and methods for them.

    python benchmarks/models/measure.py                    # all tables, one after the other
    python benchmarks/models/measure.py lora methods       # some
    python benchmarks/models/measure.py lora --search      # the settings that were tried

README.md says what to expect.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

FOLDER = Path(__file__).parent
sys.path[:0] = [str(FOLDER), str(FOLDER.parent)]
#: Where the runs of ``methods`` find their task.
os.environ["FLUFFLE_TASK"] = str(FOLDER)

PARTS = ("arrays", "lora", "speed", "methods")
#: Those that have settings.
SEARCHED = ("lora", "methods")


def measure(part: str, options: argparse.Namespace) -> None:
    """Print one table, or what a search tries for it."""
    if part == "arrays":
        import arrays

        print("\n".join(arrays.measure()))
    elif part == "lora":
        import lora

        lora.search() if options.search else lora.measure(options.seeds)
    elif part == "speed":
        import speed
        import zoo

        speed.measure(options.models or zoo.KINDS, options.rounds)
    else:
        import methods

        if options.search:
            methods.search(options.processes)
        else:
            methods.table(options.seeds, options.processes, FOLDER / "results.json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--search", action="store_true", help="of lora and methods: the settings")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5, help="of speed: updates of each side")
    parser.add_argument("--models", nargs="*", help="of speed: these alone")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="of methods")
    options = parser.parse_args()
    parts = options.parts or [p for p in PARTS if p in SEARCHED or not options.search]
    if unknown := set(parts) - set(SEARCHED if options.search else PARTS):
        parser.error(f"there is no {', '.join(unknown)}")
    for part in parts:
        started = time.perf_counter()
        print(f"\n{part}\n", flush=True)
        measure(part, options)
        print(f"\n{(time.perf_counter() - started) / 60:.1f} minutes", flush=True)


if __name__ == "__main__":
    from fluffle.worker.training.runtime import configure

    configure(1)
    main()
