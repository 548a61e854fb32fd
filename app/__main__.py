"""The command ``safeneuron``, and ``python -m app``: the command line, Ctrl-C heard from the start.

Importing the commands takes a second; Ctrl-C in it ends like Ctrl-C in a command.
"""

import sys


def main() -> None:
    """Import the commands and run one."""
    try:
        from app import cli
    except KeyboardInterrupt:
        # As app.cli has it, which could not be imported.
        sys.stderr.write("safeneuron: stopped\n")
        sys.exit(130)
    cli.main()


if __name__ == "__main__":
    main()
