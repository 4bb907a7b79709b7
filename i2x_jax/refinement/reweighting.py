"""The last layer fitted anew on images in which a suspected link is broken, a rival of acting (DESIGN 2.13).

Deep feature reweighting, after Kirichenko, Izmailov, Wilson (2022, arXiv:2204.02937): what a network has learned to see
is kept, only what follows from it is learned again. Theirs has an L1 penalty, chosen on half of the images, and a mean
of ten fits to subsets of equal groups; here the penalty is L2, chosen by cross-validation, and there is one fit, to all
images: of audit images the groups are not known, and the link is broken in them already.
"""

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

# Inverse penalties that are tried, the strongest penalty first: of equal ones it is taken.
STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
FOLDS, LEAST_OF_CLASS = 5, 2
MOST_ITERATIONS = 2000


def last_layer(pooled: np.ndarray, labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights float32 `[d, M]` and bias `[M]` by logistic regression on standardised features.

    Args:
      pooled: `[n, d]`, means over the locations of each image.
      labels: int `[n]`, 0 to M-1, each at least `LEAST_OF_CLASS` times.
      seed: of the folds by whose log-likelihood the penalty is chosen.
    """
    folds = StratifiedKFold(min(FOLDS, np.bincount(labels).min()), shuffle=True, random_state=seed)

    def classifier(strength):
        return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=MOST_ITERATIONS))

    def likelihood(strength):
        return cross_val_score(classifier(strength), pooled, labels, scoring="neg_log_loss", cv=folds).mean()

    scaler, found = (step for _, step in classifier(max(STRENGTHS, key=likelihood)).fit(pooled, labels).steps)
    weights, bias = found.coef_, found.intercept_
    if len(weights) == 1:
        # Of two classes scikit-learn fits the difference.
        weights, bias = (np.concatenate([-half, half]) for half in (weights / 2, bias / 2))
    weights = weights / scaler.scale_
    return np.float32(weights.T), np.float32(bias - weights @ scaler.mean_)
