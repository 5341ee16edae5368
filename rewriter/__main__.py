"""``python -m rewriter`` is ``graft``."""

from rewriter.cli import main

main()
