"""MNIST (60,000 images of 28x28; LeCun, Cortes, Burges) and a small CNN with maps of 7x7.

    python run.py --config=experiments/mnist_cnn.py

Measured on 2 cores of an AMD EPYC, hardly anything else running, 2026-11-22, revision 7a97118: 98.70 % on test.
Training 171 s, explaining 181 s (all 54,000 images), refining by 11 strategies 397 s, report 11 s: 12 min 54 s in all,
with start-up and compilation; 2.4 GB of memory at most.

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
    config.model.name = "cnn"
    config.model.stem = "imagenet"
    config.model.width = 32
    config.model.tap = ""
    config.model.dtype = "float32"
    config.model.init_from = ""
    config.model.allow_1x1 = False

    config.train = ConfigDict()
    config.train.epochs = 4
    config.train.batch_size = 128
    config.train.optimizer = "adamw"
    config.train.learning_rate = 2e-3
    config.train.weight_decay = 1e-2
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
    config.explain.max_pairs = 45
    config.explain.batch_size = 512

    config.refine = ConfigDict()
    config.refine.pair = ()
    config.refine.seeds = 1
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
