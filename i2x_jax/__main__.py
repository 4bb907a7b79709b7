"""`python -m i2x_jax`: the command, as in run.py."""

from i2x_jax.command import main

if __name__ == "__main__":
    main()
