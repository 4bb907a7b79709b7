"""MNIST (60,000 images of 28x28; LeCun, Cortes, Burges) and a small CNN with maps of 7x7.

    python run.py --config=experiments/mnist_cnn.py

Measured on 2 cores of an AMD EPYC, hardly anything else running, 2026-11-22, revision 7a97118: 98.70 % on test.
Training 171 s, explaining 181 s (all 54,000 images), refining by 11 strategies 397 s, report 11 s: 12 min 54 s in all,
with start-up and compilation; 2.4 GB of memory at most.

MNIST must be prepared in --data_dir or TFDS_DATA_DIR (BUILD.md, "Data").
"""

from ml_collections import ConfigDict


def get_config():
    """What differs from the defaults (i2x_jax/config.py)."""
    config = ConfigDict()
    config.data = ConfigDict()
    config.data.name = "mnist"
    config.data.validation = 0.1
    config.train = ConfigDict()
    config.train.epochs = 4
    config.train.batch_size = 128
    config.train.learning_rate = 0.002
    config.explain = ConfigDict()
    config.explain.num_prototypes = 32
    config.explain.batch_size = 512
    config.refine = ConfigDict()
    config.refine.seeds = 1
    return config
