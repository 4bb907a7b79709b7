"""CIFAR-10 (50,000 images of 32x32; Krizhevsky 2009) and ResNet-50 (He et al. 2016), small stem, maps of 4x4.

    python run.py --config=experiments/cifar10_resnet50.py

The paper refined such a network by the pair cat/dog: --config.refine.pair=cat,dog asks for it.

Time and accuracy: not yet measured here; a GPU is needed. On a CPU, with 8 channels instead of 64 in its
first stage, it learns digits enlarged to 16x16 by heart (tests/test_experiments.py).

CIFAR-10 must be prepared in --data_dir or TFDS_DATA_DIR (BUILD.md, "Data").
"""

from ml_collections import ConfigDict


def get_config():
    """What differs from the defaults (i2x_jax/config.py)."""
    config = ConfigDict()
    config.data = ConfigDict()
    config.data.name = "cifar10"
    config.data.validation = 0.1
    config.data.augment = "shift_flip"
    config.model = ConfigDict()
    config.model.name = "resnet50"
    config.model.stem = "cifar"
    config.model.width = 0
    config.train = ConfigDict()
    config.train.epochs = 10
    config.train.batch_size = 128
    config.train.optimizer = "sgd"
    config.train.learning_rate = 0.1
    config.train.weight_decay = 5e-4
    config.explain = ConfigDict()
    config.explain.num_prototypes = 128
    config.explain.max_pairs = 5
    config.explain.batch_size = 128
    config.refine = ConfigDict()
    config.refine.learning_rate = 0.01
    return config
