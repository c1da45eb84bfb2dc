"""`python -m vtprune`, such as `accelerate launch -m vtprune sweep ...`."""

from vtprune.cli import main

if __name__ == "__main__":
    main()
