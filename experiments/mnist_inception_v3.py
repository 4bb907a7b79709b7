"""MNIST (60,000 images of 28x28; LeCun, Cortes, Burges) and InceptionV3 (Szegedy et al. 2016), maps of 5x5.

    python run.py --config=experiments/mnist_inception_v3.py

The paper refined such a network by the pair 4/9: --config.refine.pair=4,9 asks for it.

Images are enlarged to 107x107, the smallest that leave 5x5 locations at `mixed_6e`; at `mixed_7c`, the last stage,
there would be 2x2. Behind `mixed_6e` the head is not linear: contributions are gradient x activation, and the summary
says by how much they miss the logits.

Time and accuracy: not yet measured here; a GPU is needed. On a CPU, with 4 channels instead of 32 in its
first convolution, it learns digits enlarged to 75x75 by heart (tests/test_experiments.py).

MNIST must be prepared in --data_dir or TFDS_DATA_DIR (BUILD.md, "Data").
"""

from ml_collections import ConfigDict


def get_config():
    """Every number of the experiment."""
    config = ConfigDict()
    config.seed = 0

    config.data = ConfigDict()
    config.data.name = "mnist"
    config.data.validation = 0.1
    config.data.max_train = 0
    config.data.image_size = 107
    config.data.augment = "shift"

    config.model = ConfigDict()
    config.model.name = "inception_v3"
    config.model.stem = "imagenet"
    config.model.width = 0
    config.model.tap = "mixed_6e"
    config.model.dtype = "float32"
    config.model.init_from = ""
    config.model.allow_1x1 = False

    config.train = ConfigDict()
    config.train.epochs = 4
    config.train.batch_size = 128
    config.train.optimizer = "sgd"
    config.train.learning_rate = 0.05
    config.train.weight_decay = 5e-4
    config.train.warmup = 0.1
    config.train.checkpoints = "log"
    config.train.num_checkpoints = 8
    config.train.resume_every = 500

    config.explain = ConfigDict()
    config.explain.num_prototypes = 32
    config.explain.pca_dims = 32
    config.explain.max_locations = 0
    config.explain.restarts = 4
    config.explain.cam = "gradcam"
    config.explain.target = "label"
    config.explain.pair_target = "label"
    config.explain.fit = "samples"
    config.explain.group_by = "class"
    config.explain.min_cluster_size = 0
    config.explain.min_samples = 5
    config.explain.ridge_lambda = 0.0
    config.explain.max_pairs = 5
    config.explain.batch_size = 256

    config.refine = ConfigDict()
    config.refine.pair = ()
    config.refine.seeds = 5
    config.refine.strategies = (
        "full",
        "curated",
        "random",
        "ambiguous",
        "hard",
        "full>full",
        "curated>curated",
        "curated>full",
        "random>full",
        "ambiguous>full",
        "hard>full",
    )
    config.refine.learning_rate = 5e-3
    config.refine.max_left_out = 0.3
    return config
