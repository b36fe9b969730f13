"""`python -m otter_cli`, which torchrun needs; the same as `otter`."""

from otter_cli.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
