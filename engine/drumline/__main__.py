"""``drumline``, and ``python -m drumline``."""

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line; Ctrl-C while it is being imported is Ctrl-C, too."""
    try:
        from drumline.cli import main as run
    except KeyboardInterrupt:
        sys.stderr.write("drumline: stopped\n")
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
