"""MNIST (60,000 images of 28x28; LeCun, Cortes, Burges) and a small vision transformer with maps of 7x7 patches.

    python run.py --config=experiments/mnist_vit.py

MNIST must be prepared in --data_dir or TFDS_DATA_DIR (BUILD.md, "Data").
"""

from ml_collections import ConfigDict


def get_config():
    """What differs from the defaults (i2x_jax/config.py)."""
    config = ConfigDict()
    config.data = ConfigDict()
    config.data.name = "mnist"
    config.data.max_train = 5_000
    config.model = ConfigDict()
    config.model.name = "vit_ti"
    config.model.width = 0
    config.model.patch = 4
    config.model.depth = 2
    config.train = ConfigDict()
    config.train.epochs = 6
    config.train.learning_rate = 0.001
    config.train.weight_decay = 0.05
    config.explain = ConfigDict()
    config.explain.num_prototypes = 32
    config.refine = ConfigDict()
    config.refine.seeds = 1
    return config
