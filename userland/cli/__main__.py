"""`python -m llmos.userland.cli`: llmosctl where it is not on the path."""

from llmos.userland.cli.main import main

main()
