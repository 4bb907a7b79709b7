"""The stage `train`: images to checkpoints (DESIGN 2.1)."""

import jax
import numpy as np

from i2x_jax import training
from i2x_jax.checkpoints import Checkpoints, present_steps, select_steps
from i2x_jax.config import Config, InputError
from i2x_jax.data import Dataset
from i2x_jax.refinement import phase_steps
from i2x_jax.run_directory import CHECKPOINTS, Run, RunDirectory, progress_bar


def checkpoint_steps(config: Config, train: Dataset) -> tuple[int, ...]:
    """The steps whose checkpoints are kept and analysed."""
    total = phase_steps(len(train.labels), config.train.batch_size) * config.train.epochs
    return select_steps(config.train.checkpoints, config.train.num_checkpoints, total)


def train(directory: RunDirectory, work: Run) -> None:
    """Trains, or goes on training, and writes checkpoints/, metrics.jsonl, labels.npy and steps.npy (DESIGN 2.1)."""
    config, model, splits = work.config, work.model, work.splits
    steps = checkpoint_steps(config, splits.train)
    settings = config.train
    optimizer = training.make_optimizer(
        settings.optimizer, settings.learning_rate, settings.weight_decay, steps[-1], settings.warmup
    )
    calibration = training.batch_norm_images(splits.train, config.seed)
    present = present_steps(directory.path / CHECKPOINTS)
    done = [step for index, step in enumerate(steps) if set(steps[: index + 1]) <= set(present)]
    with Checkpoints(directory.path / CHECKPOINTS) as checkpoints:
        state = training.init_state(model.init(jax.random.key(config.seed)), optimizer)
        if done:
            variables, opt_state = checkpoints.restore(done[-1], state.variables, state.opt_state)
            state = training.TrainState(variables, opt_state, state.step + done[-1])
        directory.cut_metrics(done[-1] if done else -1)

        def keep(step, state):
            variables = training.recompute_batch_norm(model, state.variables, calibration)
            # Train and test are measured once, at the end; validation is what choices are made on.
            for split in ("validation", "train", "test") if step == steps[-1] else ("validation",):
                dataset = getattr(splits, split)
                logits = training.predict(model, variables, dataset, config.explain.batch_size)
                loss, accuracy = training.loss_and_accuracy(logits, dataset.labels)
                # The last step before a checkpoint may ruin the weights after a loss that was still finite.
                if not np.isfinite(loss):
                    raise training.NotFiniteError(step)
                directory.add_metrics(step, split, loss, accuracy)
            checkpoints.save(step, variables, state.opt_state)

        if not done:
            keep(0, state)
            done = [0]
        total = (steps[-1] - done[-1]) * settings.batch_size
        with progress_bar("training", total, "image") as bar:
            for start, stop in zip(steps[len(done) - 1 :], steps[len(done) :], strict=False):
                try:
                    state, totals = training.run_steps(
                        model,
                        optimizer,
                        config.data.augment,
                        state,
                        splits.train,
                        settings.batch_size,
                        config.seed,
                        start,
                        stop,
                        bar.update,
                    )
                    count = int(totals.count)
                    directory.add_metrics(stop, "batches", float(totals.loss) / count, int(totals.correct) / count)
                    keep(stop, state)
                except training.NotFiniteError as error:
                    checkpoints.wait()
                    raise InputError(
                        f"the loss is not finite at step {error.step}; the last good checkpoint is "
                        f"{directory.path / CHECKPOINTS / str(start)}; allowed: a finite loss; train in another "
                        f"--workdir with a lower --config.train.learning_rate than {settings.learning_rate}"
                    ) from None
    with directory.making("train") as folder:
        np.save(folder / "labels.npy", splits.train.labels)
        np.save(folder / "steps.npy", np.array(steps, np.int32))
