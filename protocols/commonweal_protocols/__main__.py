"""``python -m commonweal_protocols``: the program, for launchers that start a module."""

from commonweal_protocols.cli import main

if __name__ == "__main__":
    main()
