"""MNIST (60,000 images of 28x28; LeCun, Cortes, Burges) and ResNet-50 (He et al. 2016), small stem, maps of 4x4.

    python run.py --config=experiments/mnist_resnet50.py

The paper refined such a network by the pair 2/7: --config.refine.pair=2,7 asks for that one instead of the most
confused.

Time and accuracy: not yet measured here; a GPU is needed. On a CPU, with 8 channels instead of 64 in its
first stage, it learns digits enlarged to 16x16 by heart (tests/test_experiments.py).

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
    config.data.image_size = 0
    config.data.augment = "shift"

    config.model = ConfigDict()
    config.model.name = "resnet50"
    config.model.stem = "cifar"
    config.model.width = 0
    config.model.tap = ""
    config.model.dtype = "float32"
    config.model.init_from = ""
    config.model.allow_1x1 = False

    config.train = ConfigDict()
    config.train.epochs = 4
    config.train.batch_size = 128
    config.train.optimizer = "sgd"
    config.train.learning_rate = 0.1
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
    config.explain.batch_size = 128

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
    config.refine.learning_rate = 0.01
    config.refine.max_left_out = 0.3
    return config
