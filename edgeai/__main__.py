"""`python -m edgeai` is the `edgeai` program."""

from edgeai.cli import main

main()
