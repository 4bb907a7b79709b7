"""Scenes of known parts in which a tag gives one class away: what an explanation looks like when the answer is known.

python run.py --config=experiments/planted.py
"""

from ml_collections import ConfigDict


def get_config():
    """What differs from the defaults (i2x_jax/config.py)."""
    config = ConfigDict()
    config.data = ConfigDict()
    config.data.name = "parts"
    config.data.max_train = 2500
    config.data.augment = "none"
    config.data.plant = "tag"
    config.model = ConfigDict()
    config.model.width = 16
    config.train = ConfigDict()
    config.train.epochs = 10
    config.explain = ConfigDict()
    config.explain.num_prototypes = 32
    config.refine = ConfigDict()
    config.refine.seeds = 2
    config.refine.strategies = ("full", "curated", "random")
    return config
