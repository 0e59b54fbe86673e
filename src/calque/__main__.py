"""`python -m calque` is the command `calque`."""

from calque.cli import main

main()
