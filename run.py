"""Trains a classifier, explains how it learned to decide, and refines it by what the explanation found.

For example:

    python run.py
    python run.py --config=experiments/mnist_cnn.py --workdir=runs/mine --config.train.epochs=30
    python run.py --workdir=runs/mine --stage=report

The command is i2x_jax/command.py, which is installed as `i2x-jax`; --help says more.
"""

from i2x_jax.command import main

if __name__ == "__main__":
    main()
