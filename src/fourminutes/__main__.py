"""``python -m fourminutes``, the same as the command."""

from fourminutes.cli import main

main()
