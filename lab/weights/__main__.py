"""`python -m lab.weights`: write weights.toml anew, after a training."""

from . import TABLE, table

if __name__ == "__main__":
    TABLE.write_text(table())
