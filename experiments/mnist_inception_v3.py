"""MNIST (60,000 images of 28x28; LeCun, Cortes, Burges) and InceptionV3 (Szegedy et al. 2016), maps of 5x5.

    python run.py --config=experiments/mnist_inception_v3.py

The paper refined such a network by the pair 4/9: --config.refine.pair=4,9 asks for it.

Images are enlarged to 107x107, the smallest that leave 5x5 locations at `mixed_6e`; at `mixed_7c`, the last stage,
there would be 2x2. Behind `mixed_6e` the head is not linear: contributions are counted from the blank image, and the
summary says by how much they missed the logits before that was spread over them.

Time and accuracy: not yet measured here; a GPU is needed. On a CPU, with 4 channels instead of 32 in its
first convolution, it learns digits enlarged to 75x75 by heart (tests/test_experiments.py).

MNIST must be prepared in --data_dir or TFDS_DATA_DIR (BUILD.md, "Data").
"""

from ml_collections import ConfigDict


def get_config():
    """What differs from the defaults (i2x_jax/config.py)."""
    config = ConfigDict()
    config.data = ConfigDict()
    config.data.name = "mnist"
    config.data.validation = 0.1
    config.data.image_size = 107
    config.model = ConfigDict()
    config.model.name = "inception_v3"
    config.model.width = 0
    config.model.tap = "mixed_6e"
    config.train = ConfigDict()
    config.train.epochs = 4
    config.train.batch_size = 128
    config.train.optimizer = "sgd"
    config.train.learning_rate = 0.05
    config.train.weight_decay = 5e-4
    config.explain = ConfigDict()
    config.explain.num_prototypes = 32
    config.explain.max_pairs = 5
    config.refine = ConfigDict()
    config.refine.learning_rate = 0.005
    return config
