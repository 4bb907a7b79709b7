"""Training a classifier: the jitted step, and the loop that refinement shares (DESIGN 2.1, 2.9)."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from i2x_jax.config import InputError
from i2x_jax.data.dataset import Dataset, batches, training_indices
from i2x_jax.data.source import read_ahead
from i2x_jax.devices.compilation import jit
from i2x_jax.devices.mesh import ahead, divisible, fetch, own_rows_of, replicate, shard, shard_own
from i2x_jax.models.model import Model, Variables

# Images whose statistics BatchNorm is given, and bytes of them: the network sees them all at once.
BATCH_NORM_IMAGES, BATCH_NORM_BYTES = 2048, 2**26
SHIFT_FRACTION = 8  # images are shifted by up to 1/8 of their side
STEPS_BETWEEN_CHECKS = 100
GOOD = np.iinfo(np.int32).max
# Folded into the key of a step for what changes its images: the augmentation is that of a step that changes none.
CHANGES = 1


class TrainState(NamedTuple):
    """What a training step changes.

    Attributes:
      variables: parameters and running BatchNorm statistics.
      opt_state: of the optax transformation.
      step: int32, the number of steps done.
    """

    variables: Variables
    opt_state: Any
    step: jax.Array


class Recipe(NamedTuple):
    """How a network is trained, whatever the samples.

    Attributes:
      model: what is trained.
      optimizer: see `make_optimizer`; one object for the whole training: a fresh one would be traced again.
      augmentation: see `augment`.
      batch_size: samples a step.
      seed: of the order of the samples and of the augmentation.
    """

    model: Model
    optimizer: optax.GradientTransformation
    augmentation: str
    batch_size: int
    seed: int


class Totals(NamedTuple):
    """Sums over training batches, kept on the device.

    Attributes:
      loss: float32, sum over samples.
      correct: int32.
      count: int32, samples seen.
      first_bad: int32, the first step whose loss was not finite; `GOOD` if none.
    """

    loss: jax.Array
    correct: jax.Array
    count: jax.Array
    first_bad: jax.Array


class NotFiniteError(InputError):
    """The loss became NaN or infinite; `step` says when."""

    def __init__(self, step: int):
        super().__init__(f"the loss was not finite at step {step}")
        self.step = step


def make_optimizer(
    name: str, learning_rate: float, weight_decay: float, total_steps: int, warmup: float
) -> optax.GradientTransformation:
    """'sgd' (Nesterov momentum 0.9) or 'adamw', with linear warm-up and cosine decay to zero over `total_steps`.

    Weight decay applies to kernels only, not to biases and BatchNorm. Loshchilov & Hutter 2019 for AdamW.

    Args:
      name: 'sgd' or 'adamw'.
      learning_rate: at its highest.
      weight_decay: factor of the weights; 'sgd' adds it to the gradient, 'adamw' keeps it apart.
      total_steps: steps until the rate is zero.
      warmup: share of them in which it rises, 0 to 1.
    """
    schedule = learning_rate_schedule(learning_rate, total_steps, warmup)

    def kernels(params):
        return jax.tree.map(lambda leaf: leaf.ndim > 1, params)

    if name == "sgd":
        decay = optax.add_decayed_weights(weight_decay, mask=kernels)
        return optax.chain(decay, optax.sgd(schedule, momentum=0.9, nesterov=True))
    return optax.adamw(schedule, weight_decay=weight_decay, mask=kernels)


def learning_rate_schedule(learning_rate: float, total_steps: int, warmup: float) -> optax.Schedule:
    """From the number of steps done to the rate of the next one: linear warm-up, cosine decay to zero.

    Args:
      learning_rate: at its highest.
      total_steps: steps until it is zero.
      warmup: share of them in which it rises, 0 to 1.
    """
    # Rate 0 stands just before the first step and just after the last, so that no step is without effect.
    warmup_steps = min(max(1, round(warmup * total_steps)), total_steps)
    from_zero = optax.warmup_cosine_decay_schedule(0.0, learning_rate, warmup_steps, decay_steps=total_steps + 1)

    def schedule(step):
        return from_zero(step + 1)

    return schedule


def init_state(variables: Variables, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step of a training or of a refinement phase."""
    # A copy: the step donates its state, and the variables may be wanted again.
    variables = jax.tree.map(np.array, fetch(variables))
    return replicate(TrainState(variables, optimizer.init(variables["params"]), np.int32(0)))


def zero_totals() -> Totals:
    """No batches seen yet."""
    return replicate(Totals(np.float32(0), np.int32(0), np.int32(0), np.int32(GOOD)))


@functools.partial(
    jit,
    static_argnames=("model", "optimizer", "augmentation"),
    donate_argnames=("state", "totals"),
)
def train_step(
    model: Model,
    optimizer: optax.GradientTransformation,
    augmentation: str,
    state: TrainState,
    totals: Totals,
    images: jax.Array,
    labels: jax.Array,
    key: jax.Array,
) -> tuple[TrainState, Totals]:
    """One step of cross-entropy descent.

    Args:
      model: what is trained.
      optimizer: see `make_optimizer`.
      augmentation: 'none', 'shift' or 'shift_flip'.
      state: donated.
      totals: donated.
      images: uint8 `[B, H, W, C]`; or a tree of arrays `[B, ...]` whose `changed(key)` gives them, as those of
        refinement/actions: what is changed is changed before it is augmented.
      labels: int32 `[B]`.
      key: of the augmentation, and of what is changed; the step is folded in.
    """
    key = jax.random.fold_in(key, state.step)
    if hasattr(images, "changed"):
        images = images.changed(jax.random.fold_in(key, CHANGES))
    images = augment(images, augmentation, key)

    def loss_of(params):
        logits, stats = model.train_logits({**state.variables, "params": params}, images)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), (logits, stats)

    (loss, (logits, stats)), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.variables["params"])
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.variables["params"])
    params = optax.apply_updates(state.variables["params"], updates)
    step = state.step + 1
    totals = Totals(
        totals.loss + loss * labels.size,
        totals.correct + (logits.argmax(-1) == labels).sum(),
        totals.count + labels.size,
        jnp.minimum(totals.first_bad, jnp.where(jnp.isfinite(loss), GOOD, step)),
    )
    return TrainState({"params": params, "batch_stats": stats}, opt_state, step), totals


def augment(images: jax.Array, augmentation: str, key: jax.Array) -> jax.Array:
    """Random shifts by up to an eighth of the side (edges replicated), and mirrored images for 'shift_flip'.

    Args:
      images: `[B, H, W, C]`.
      augmentation: 'none', 'shift' or 'shift_flip'.
      key: a jax random key; each image draws its own shift.

    Returns:
      Images of the same shape and type.
    """
    if augmentation == "none":
        return images
    count, height, width, channels = images.shape
    reach = max(1, min(height, width) // SHIFT_FRACTION)
    shift_key, flip_key = jax.random.split(key)
    padded = jnp.pad(images, ((0, 0), (reach, reach), (reach, reach), (0, 0)), mode="edge")
    corners = jax.random.randint(shift_key, (count, 2), 0, 2 * reach + 1)

    def crop(image, corner):
        return jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), (height, width, channels))

    images = jax.vmap(crop)(padded, corners)
    if augmentation == "shift_flip":
        mirrored = jax.random.bernoulli(flip_key, shape=(count, 1, 1, 1))
        images = jnp.where(mirrored, images[:, :, ::-1], images)
    return images


def run_steps(
    recipe: Recipe,
    state: TrainState,
    totals: Totals,
    dataset: Dataset,
    start: int,
    stop: int,
    progress: Callable[[int], Any] = lambda count: None,
) -> tuple[TrainState, Totals]:
    """Trains from step `start` to step `stop`, batches drawn by `training_indices`.

    Args:
      recipe: how it is trained.
      state: at `start`; donated.
      totals: added to; donated.
      dataset: what it is trained on.
      start: steps done.
      stop: steps wanted.
      progress: told after every step how many samples it took.

    Returns:
      The state at `stop`, and the totals with these steps added.

    Raises:
      NotFiniteError: the loss was NaN or infinite.
    """
    how, key = recipe[:3], replicate(jax.random.key(recipe.seed))
    own, count, steps = own_rows_of(recipe.batch_size), len(dataset.labels), range(start, stop)
    order = functools.partial(training_indices, count, recipe.batch_size, seed=recipe.seed)
    several = (order(step)[own] for step in steps)
    for step, (_, read) in zip(steps, read_ahead(dataset.images, several), strict=True):
        images = shard_own(read, recipe.batch_size)
        labels = shard(dataset.labels[order(step)])
        state, totals = train_step(*how, state, totals, images, labels, key)
        progress(recipe.batch_size)
        if (step + 1) % STEPS_BETWEEN_CHECKS == 0 or step + 1 == stop:
            first_bad = int(fetch(totals.first_bad))
            if first_bad != GOOD:
                raise NotFiniteError(first_bad)
    return state, totals


@functools.partial(jit, static_argnames="model")
def batch_statistics(model: Model, variables: Variables, images: jax.Array) -> dict:
    """Exact BatchNorm statistics over these images, jitted."""
    return model.batch_statistics(variables, images)


def recompute_batch_norm(model: Model, variables: Variables, images: jax.Array) -> Variables:
    """Replaces running averages by the exact statistics over `images` `[n, H, W, C]` (DESIGN 2.1).

    After a few steps a running average still describes the start of the training; what is analysed must not.
    """
    return {**variables, "batch_stats": batch_statistics(model, variables, images)}


def batch_norm_count(samples: int, image: int) -> int:
    """How many of so many images, of so many bytes each, BatchNorm is given the statistics of."""
    return min(samples, BATCH_NORM_IMAGES, max(BATCH_NORM_BYTES // image, 1))


def batch_norm_images(dataset: Dataset, seed: int) -> np.ndarray:
    """The fixed, seeded subset of up to 2,048 training images (64 MiB) whose statistics BatchNorm is given."""
    count = batch_norm_count(len(dataset.labels), int(np.prod(dataset.images.shape[1:])))
    chosen = np.random.default_rng(seed).choice(len(dataset.labels), count, replace=False)
    return dataset.images[np.sort(chosen)]


@functools.partial(jit, inference=True, static_argnames="model")
def batch_logits(model: Model, variables: Variables, images: jax.Array) -> jax.Array:
    """Logits `[B, M]` in evaluation mode, jitted."""
    return model.logits(variables, images)


def predict(
    model: Model,
    variables: Variables,
    dataset: Dataset,
    batch_size: int,
    progress: Callable[[int], Any] = lambda count: None,
) -> np.ndarray:
    """Logits float32 `[N, M]` of every sample, in evaluation mode.

    Args:
      model: the classifier.
      variables: its weights and BatchNorm statistics.
      dataset: N samples.
      batch_size: samples a batch; the result does not depend on it.
      progress: told after every batch how many samples it held.
    """
    return _of_all(functools.partial(batch_logits, model, variables), dataset, batch_size, progress)


@functools.partial(jit, inference=True, static_argnames="model")
def batch_pooled(model: Model, variables: Variables, images: jax.Array) -> jax.Array:
    """Means of the features over locations `[B, d]` in evaluation mode, jitted."""
    return model.features(variables, images).mean((1, 2))


def pooled_features(model: Model, variables: Variables, dataset: Dataset, batch_size: int) -> np.ndarray:
    """What a global average pool makes of every sample's features, float32 `[N, d]`; arguments as in `predict`."""
    return _of_all(functools.partial(batch_pooled, model, variables), dataset, batch_size)


def _of_all(of_batch, dataset, batch_size, progress=lambda count: None):
    """What a function of images makes of every sample, a batch at a time; each process reads its own rows."""
    count, found = divisible(batch_size), []
    read = batches(dataset, count, own_rows_of(count))
    for part, samples in ahead((of_batch(shard_own(batch.images, count)), batch.mask.sum()) for batch in read):
        found.append(fetch(part))
        progress(int(samples))
    return np.concatenate(found)[: len(dataset.labels)]


def confidence(logits: np.ndarray) -> np.ndarray:
    """Softmax over the last axis, float32."""
    shifted = np.exp(logits - logits.max(-1, keepdims=True), dtype=np.float64)
    return (shifted / shifted.sum(-1, keepdims=True)).astype(np.float32)


def loss_and_accuracy(logits: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Mean cross-entropy in nats, and the fraction of samples whose largest logit is the label's."""
    wide = logits.astype(np.float64)
    log_sum = np.log(np.exp(wide - wide.max(-1, keepdims=True)).sum(-1)) + wide.max(-1)
    losses = log_sum - wide[np.arange(len(labels)), labels]
    return float(losses.mean()), float((logits.argmax(-1) == labels).mean())
