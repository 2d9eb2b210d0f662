"""`python -m tokenprune`: the command line."""

from tokenprune.cli import main

main()
