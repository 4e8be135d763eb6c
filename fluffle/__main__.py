"""``python -m fluffle``."""

from fluffle.cli import main

if __name__ == "__main__":
    main()
