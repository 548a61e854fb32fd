"""Run the notebooks and keep their outputs: ``python -m analysis.notebooks [FILE ...]``."""

import argparse
import sys
import time
from pathlib import Path

from analysis.notebooks import notebooks, run_notebook
from toolkit.errors import SafeNeuronError
from toolkit.files import write_atomically


def main() -> int:
    """Write each notebook back with its outputs; exit code 2 and one line when one fails."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.notebooks", description=(__doc__ or "").partition(":")[0]
    )
    parser.add_argument("notebooks", nargs="*", type=Path, help="all of them when left out")
    for path in parser.parse_args().notebooks or notebooks():
        began = time.monotonic()
        try:
            import nbformat

            write_atomically(path, nbformat.writes(run_notebook(path)) + "\n")
        except (SafeNeuronError, ImportError, OSError) as error:
            sys.stderr.write(f"safeneuron: {' '.join(str(error).split())}\n")
            return 2
        sys.stdout.write(f"{path.name}: {time.monotonic() - began:.0f} s\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
