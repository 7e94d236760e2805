"""A package as pip installs it; `program.py` is what it runs."""
