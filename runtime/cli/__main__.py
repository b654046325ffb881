"""`python -m runtime.cli` is `worldloop`; torchrun starts it this way."""

from runtime.cli import main

main()
