"""python -m shortflow: the command line, for launchers of several processes."""

from shortflow.cli import main

if __name__ == "__main__":
    main()
