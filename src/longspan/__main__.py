"""`python -m longspan`."""

from longspan.entrypoints.cli import main

main()
