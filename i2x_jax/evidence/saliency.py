"""Saliency maps, and exact contributions (DESIGN 2.3, 2.4).

Each map is one function of one sample, `cam(head, features, class_index)`, with `head: [h, w, d] -> logits [M]`;
a batch gives what its `jax.vmap` would. Only the head is differentiated.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from i2x_jax.config import SIGNED_CAMS
from i2x_jax.evidence import ledger
from i2x_jax.models.model import Model, Tapped, Variables

Head = Callable[[jax.Array], jax.Array]


def gradcam(head: Head, features: jax.Array, class_index: int, against: int | None = None) -> jax.Array:
    """GradCAM: `relu(sum_d mean_hw(dlogit/dF_d) F_d)`, raw, never normalised.

    Selvaraju et al. 2017, arXiv:1610.02391.

    Args:
      head: `[h, w, d] -> [M]`.
      features: feature map `[h, w, d]` of one sample.
      class_index: the class whose logit is explained.
      against: explain the margin of that logit over this class's instead; the map is then signed, without ReLU.

    Returns:
      `[h, w]`, in logits.
    """
    return _explain(gradcam_rule, head, features, class_index, against)


def gradcam_plus_plus(head: Head, features: jax.Array, class_index: int) -> jax.Array:
    """GradCAM++ (Chattopadhay et al. 2018, arXiv:1710.11063); as `gradcam`, but of one logit only."""
    return _explain(gradcam_plus_plus_rule, head, features, class_index, None)


def hirescam(head: Head, features: jax.Array, class_index: int, against: int | None = None) -> jax.Array:
    """HiResCAM: `relu(sum_d g_d F_d)` (Draelos & Carin 2020, arXiv:2011.08891); arguments as in `gradcam`."""
    return _explain(hirescam_rule, head, features, class_index, against)


def layercam(head: Head, features: jax.Array, class_index: int) -> jax.Array:
    """LayerCAM: `relu(sum_d relu(g_d) F_d)` (Jiang et al. 2021); as `gradcam`, but of one logit only."""
    return _explain(layercam_rule, head, features, class_index, None)


def gradcam_rule(features: jax.Array, gradient: jax.Array) -> jax.Array:
    """Before the ReLU: `[h, w, d]` and its gradient to `[h, w]`; so are the rules below."""
    return features @ gradient.mean(axis=(0, 1))


def hirescam_rule(features: jax.Array, gradient: jax.Array) -> jax.Array:
    """Gradient times activation, location by location."""
    return (features * gradient).sum(-1)


def layercam_rule(features: jax.Array, gradient: jax.Array) -> jax.Array:
    """As HiResCAM, counting only gradients that raise the logit."""
    return (features * jax.nn.relu(gradient)).sum(-1)


def gradcam_plus_plus_rule(features: jax.Array, gradient: jax.Array) -> jax.Array:
    """Channel weights from the second and third powers of the gradient; a location without gradient weighs nothing."""
    square = gradient**2
    denominator = 2 * square + features.sum(axis=(0, 1)) * gradient * square + 1e-6
    alpha = jnp.where(gradient == 0, 0.0, square / jnp.where(gradient == 0, 1.0, denominator))
    return features @ (jax.nn.relu(gradient) * alpha).sum(axis=(0, 1))


RULES = {
    "gradcam": gradcam_rule,
    "gradcam++": gradcam_plus_plus_rule,
    "hirescam": hirescam_rule,
    "layercam": layercam_rule,
}


def saliency_maps(
    model: Model,
    variables: Variables,
    features: jax.Array,
    classes: jax.Array,
    against: jax.Array | None = None,
    cam: str = "gradcam",
    beside: jax.Array | None = None,
) -> jax.Array:
    """Maps of a batch, to be called under `jax.jit`.

    A global-average-pool + linear head has the same gradient `W_c / hw` at every location: nothing is differentiated.

    Args:
      model: whose head is explained.
      variables: of the model.
      features: `[B, h, w, d]`.
      classes: int `[B]`, the class explained of each sample.
      against: int `[B]`, see `gradcam`; None for plain logits.
      cam: one of `RULES`; with `against` one of `config.SIGNED_CAMS`.
      beside: of `Tapped`, held as it is.

    Returns:
      float32 `[B, h, w]`, in logits.

    Raises:
      ValueError: with `against`, a rule that has no signed map.
    """
    if against is not None and cam not in SIGNED_CAMS:
        raise ValueError(f"{cam} has no signed map of a margin; {SIGNED_CAMS} do")
    with jax.default_matmul_precision("highest"):
        if model.linear_head:
            weights = model.linear_head(variables)[0].T / (features.shape[1] * features.shape[2])
            gradients = weights[classes] - (0.0 if against is None else weights[against])
            gradients = jnp.broadcast_to(gradients[:, None, None], features.shape)
        else:
            # Samples do not depend on each other: the gradient of a sum over the batch is that of each sample's logit.
            logits, gradient = jax.vjp(model.head_of(variables, beside), features)
            chosen = jax.nn.one_hot(classes, logits.shape[-1], dtype=logits.dtype)
            if against is not None:
                chosen -= jax.nn.one_hot(against, logits.shape[-1], dtype=logits.dtype)
            (gradients,) = gradient(chosen)
        maps = jax.vmap(RULES[cam])(features, gradients)
        return maps if against is not None else jax.nn.relu(maps)


def contributions(
    model: Model, variables: Variables, tapped: Tapped, blank: jax.Array | None, kept: jax.Array | None = None
) -> jax.Array:
    """Evidence of each location for each class: signed, in logits (DESIGN 2.4).

    Over all locations it sums to the logit less `bias`. For a global-average-pool + linear head it is
    `F_j . dlogit_c/dF_j`; for other heads `ledger.path_evidence`, counted from the blank image.

    Args:
      model: whose head is explained.
      variables: of the model.
      tapped: of the samples.
      blank: `[1, h, w, d]`, features of the blank image; of no account to a linear head.
      kept: int `[B, R]`, the classes wanted of each sample; None for all.

    Returns:
      float32 `[B, h, w, M]`, or `[B, h, w, R]`.
    """
    features = tapped.features
    shape, places = features.shape[:3], features.shape[1] * features.shape[2]
    if model.linear_head:
        with jax.default_matmul_precision("highest"):
            weights = model.linear_head(variables)[0]
            if kept is None:
                return features @ weights / places
            return jnp.einsum("bhwd,brd->bhwr", features, weights.T[kept]) / places
    head = model.head_of(variables, tapped.beside)
    # Each location for itself, as a prototype of its own.
    own = jnp.broadcast_to(jnp.arange(places).reshape(shape[1:]), shape)
    path = ledger.path_evidence(head, features, blank, own, places, ledger.toward(head, features, kept))
    return path.evidence.reshape(*shape, -1)


def bias(model: Model, variables: Variables, blank: Tapped) -> jax.Array:
    """Logits `[M]` of which no location contributes anything: the bias of a linear head, else the blank image's own."""
    return model.linear_head(variables)[1] if model.linear_head else model.logits_of(variables, blank)[0]


def _explain(rule, head, features, class_index, against):
    def target(f):
        logits = head(f)
        return logits[class_index] - (0.0 if against is None else logits[against])

    with jax.default_matmul_precision("highest"):
        signed = rule(features, jax.grad(target)(features))
    return signed if against is not None else jax.nn.relu(signed)
