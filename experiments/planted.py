"""Scenes of known parts (`parts`) in which a tag gives one class away, and a small CNN with maps of 8x8.

    python run.py --config=experiments/planted.py

A checker of 3x3 stands in the upper left corner of 98 % of the images of class A, and of hardly any others. On test
images like these nothing seems wrong; on unbiased ones, where the checker stands for nothing, the network is lost. What
it learned, an explanation should say: `Run("runs/planted").truth()` is where the checker is. The refinement swaps the
prototype that is first by evidence between images (DESIGN 2.13), where mask and place are chosen on audit images. The
twin, which never saw a checker: `--config.data.plant= --workdir=runs/twin`.

Measured on 2 cores of an AMD EPYC, 2026-11-26: test accuracy 97.80 %, unbiased 63.60 %, after the swap 91.88 % (2
seeds: 91.50 and 92.25), with the true mask 94.83 %, after its best control 68.80 %. The twin: 97.95 % on its test
images, 95.75 % on the unbiased ones of this run. On the same cores, with three other programs at work, 3 min 54 s in
all, of which 155 s were the processors' own, without kept programs; of the refinement 107 s.
"""

from ml_collections import ConfigDict


def get_config():
    """What differs from the defaults (i2x_jax/config.py)."""
    config = ConfigDict()
    config.data = ConfigDict()
    config.data.name = "parts"
    config.data.max_train = 3000
    config.data.augment = "none"
    config.data.plant = "tag"
    config.data.plant_size = 3
    config.model = ConfigDict()
    config.model.width = 16
    config.train = ConfigDict()
    config.train.epochs = 12
    config.train.learning_rate = 0.008
    config.explain = ConfigDict()
    config.explain.num_prototypes = 32
    config.refine = ConfigDict()
    config.refine.seeds = 2
    config.refine.pick = "evidence"
    config.refine.learning_rate = 0.002
    return config
