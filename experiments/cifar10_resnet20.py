"""CIFAR-10 (50,000 images of 32x32; Krizhevsky 2009) and ResNet-20 (He et al. 2016, section 4.2), maps of 8x8.

    python run.py --config=experiments/cifar10_resnet20.py
    python run.py --config=experiments/cifar10_resnet20.py --config.data.max_train=20000 --workdir=runs/cifar10-20k

Measured on 2 cores of an AMD EPYC that did other work too, 2026-11-22, revision a9ffe61: 80.21 % on test. Training
29 min, explaining 15 min (all 45,000 images), refining by 11 strategies 37 min, report 2 min: 83 min in all, killed
once on the way, and gone on by the same command; 2.8 GB of memory at most.

With 20,000 images, on the same machine, revision bb7616c: 73.29 % on test; training 9.5 min, explaining 6.6 min (all
20,000), refining 17 min, report 18 s: 33 min 49 s in all; 4.1 GB.

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
    config.model.name = "resnet20"
    config.model.width = 0
    config.train = ConfigDict()
    config.train.epochs = 6
    config.train.batch_size = 128
    config.train.optimizer = "sgd"
    config.train.learning_rate = 0.1
    config.train.weight_decay = 5e-4
    config.explain = ConfigDict()
    config.explain.num_prototypes = 128
    config.explain.max_locations = 400_000
    config.explain.max_pairs = 5
    config.explain.batch_size = 512
    config.refine = ConfigDict()
    config.refine.seeds = 1
    config.refine.learning_rate = 0.01
    return config
