"""Entry point of ``mpfast`` and ``python -m mpfast``."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line, or say in one line which packages it lacks."""
    try:
        from mpfast.cli import main as run
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("typer", "rich", "click"):
            raise
        from mpfast.support import package_missing

        print(package_missing("the command line", "typer", "rich", extra="cli"), file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("mpfast: interrupted", file=sys.stderr)
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
