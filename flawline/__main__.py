"""`python -m flawline`, the same as the command `flawline`."""

from flawline.cli import main

if __name__ == "__main__":
    main()
