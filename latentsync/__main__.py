"""The command `latentsync`, and python -m latentsync: the command line, or what to type where packages are missing."""

import sys


def main() -> None:
    from .errors import REQUIREMENTS, missing_package

    try:
        from .cli.main import main as command_line
    except ModuleNotFoundError as error:
        if error.name not in REQUIREMENTS:
            raise
        sys.exit(f"error: {missing_package('The command line', error.name)}")
    command_line()


if __name__ == "__main__":
    main()
