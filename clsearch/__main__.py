"""`python -m clsearch` is `clsearch`."""

from clsearch.cli import main

if __name__ == "__main__":
    main()
