"""Handwritten digits of scikit-learn (1,797 images of 8x8) and a small CNN with maps of 4x4.

    python run.py

Measured on 2 CPU cores: 51 to 60 s, test accuracy 99.15 %.

Data: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI 1998.
"""

from ml_collections import ConfigDict


def get_config():
    """Every number of the experiment."""
    config = ConfigDict()
    config.seed = 0

    config.data = ConfigDict()
    config.data.name = "digits"
    config.data.validation = 0.15
    config.data.max_train = 0
    config.data.image_size = 0
    config.data.augment = "shift"

    config.model = ConfigDict()
    config.model.name = "cnn"
    config.model.stem = "imagenet"
    config.model.width = 32
    config.model.tap = ""
    config.model.dtype = "float32"
    config.model.init_from = ""
    config.model.allow_1x1 = False

    config.train = ConfigDict()
    config.train.epochs = 25
    config.train.batch_size = 64
    config.train.optimizer = "adamw"
    config.train.learning_rate = 4e-3
    config.train.weight_decay = 1e-2
    config.train.warmup = 0.1
    config.train.checkpoints = "log"
    config.train.num_checkpoints = 8
    config.train.resume_every = 500

    config.explain = ConfigDict()
    config.explain.num_prototypes = 16
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
    config.explain.max_pairs = 45
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
    config.refine.learning_rate = 5e-4
    config.refine.max_left_out = 0.3
    return config
