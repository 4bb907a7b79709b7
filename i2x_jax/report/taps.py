"""The places where a config's network can be cut, as a table."""

from i2x_jax import models
from i2x_jax.config import Config
from i2x_jax.data import sources
from i2x_jax.data.pictures import reading_of
from i2x_jax.data.planted import planted_channels


def tap_table(config: Config, data_dir: str | None) -> str:
    """A line for each tap: its map, what one location sees, and whether it is the one that the config chooses.

    Images are not read: their shape comes from the settings and the description of the set.

    Raises:
      InputError: the data set, the network or the tap is unknown, or the images are too small for the network.
    """
    image_shape, num_classes = sources.describe(config.data.name, data_dir, reading_of(config.data))
    image_shape = (*image_shape[:2], planted_channels(config.data, image_shape[2]))
    model = config.model
    places = models.taps(
        model.name,
        num_classes=num_classes,
        image_shape=image_shape,
        width=model.width,
        stem=model.stem,
        patch=model.patch,
        depth=model.depth,
        pool=model.pool,
    )
    chosen = models.find_tap(model.name, model.tap, places)
    lines = [
        f"Taps of {model.name} for images of {'x'.join(map(str, image_shape))}; set --config.model.tap",
        f"  {'tap':<10} {'map h x w x d':>15} {'locations an image':>19} {'receptive field':>16}",
    ]
    for place in places:
        h, w, _ = place.feature_shape
        notes = ["chosen"] if place == chosen else []
        if h * w == 1:
            notes.append("1x1: " + ("allowed by" if model.allow_1x1 else "refused without") + " model.allow_1x1")
        line = (
            f"  {place.name:<10} {' x '.join(map(str, place.feature_shape)):>15} {h * w:>19}"
            f" {place.places.side:>13} px  {', '.join(notes)}"
        )
        lines.append(line.rstrip())
    return "\n".join(lines)
