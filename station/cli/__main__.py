"""`python -m station.cli`, the same as the command `flawline`."""

from station.cli.main import main

if __name__ == "__main__":
    main()
