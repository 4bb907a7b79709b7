"""What a reader of a run should be told first, from its files."""

from typing import TYPE_CHECKING

import numpy as np

from i2x_jax.config import printable
from i2x_jax.explanation.degenerate import Arrays, degenerate

if TYPE_CHECKING:
    from i2x_jax.results.opened_run import Run


def doubts(run: "Run") -> list[str]:
    """Where an explained run has come to nothing, a sentence each (`explanation.degenerate`)."""
    found, validation = run.arrays("prototypes"), run.arrays("validation")
    arrays = Arrays(
        intensity=np.array(run.array("intensity")[-1]),
        labels=run.array("labels"),
        counts=found["counts"],
        channel_mean=found["mean"],
        groups=run.array("groups"),
        validation_labels=validation["labels"],
        validation_confidence=validation["confidence"][-1],
    )
    return degenerate(run.explanation, arrays)


def doubts_in_words(run: "Run") -> list[str]:
    """The same as a part of the summary: no part where there is nothing to say."""
    found = [f"  {printable(each)}" for each in doubts(run)]
    return ["\n".join(["Before anything is read from this run:", *found])] if found else []
