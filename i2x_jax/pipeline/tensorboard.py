"""Metrics as TensorBoard event files, for who asks for them; metrics.jsonl stays the record (DESIGN section 4)."""

import importlib.util
import pathlib
import time
from collections.abc import Callable, Iterable

from i2x_jax.config import InputError


def check_installed() -> None:
    """Raises `InputError` where tensorboardX, which only this needs, is not installed."""
    if importlib.util.find_spec("tensorboardX") is None:
        raise InputError(
            "--tensorboard needs the package tensorboardX, which is not installed; allowed: the flag with the package; "
            "pip install tensorboardX, or run without --tensorboard"
        )


class EventFile:
    """One event file, that always holds what metrics.jsonl holds; to be closed.

    A run that goes on begins the file anew with all lines so far: no step stands in it twice, and what a killed process
    left is gone.
    """

    def __init__(self, folder: pathlib.Path, lines: Iterable[dict], learning_rate: Callable[[int], float]):
        """Makes the folder, empties it of older event files and writes `lines`.

        Args:
          folder: `tensorboard` of a run directory.
          lines: of metrics.jsonl.
          learning_rate: of the step that led to this one.
        """
        from tensorboardX.event_file_writer import EventsWriter

        folder.mkdir(exist_ok=True)
        for old in folder.glob("events.out.tfevents.*"):
            old.unlink()
        self._learning_rate = learning_rate
        # The writer that works in this thread: one in a thread of its own could not tell of a full disk.
        self._writer = EventsWriter(str(folder / "events"))
        for line in lines:
            self.add(line)

    def add(self, line: dict) -> None:
        """Writes a line of metrics.jsonl, and for the validation split, measured at each checkpoint, the rate too."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar

        step = line["step"]
        values = {f"{name}/{line['split']}": line[name] for name in ("loss", "accuracy")}
        if line["split"] == "validation":
            values["learning_rate"] = self._learning_rate(step)
        for name, value in values.items():
            event = Event(step=step, summary=scalar(name, value))
            event.wall_time = time.time()
            self._writer.write_event(event)
        self._writer.flush()

    def close(self) -> None:
        """Closes the file."""
        self._writer.close()
