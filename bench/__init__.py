"""Side-by-side measurements on the shapes checkpoint: `make bench`. Each module has `run() -> str`, its table."""
