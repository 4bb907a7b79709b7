"""`Run`: a run directory opened for reading, finished or not (DESIGN section 4).

Nothing here needs JAX until a model or its weights are asked for, so that looking at a finished run is quick.
"""

import dataclasses
import functools
import importlib
import os
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from i2x_jax.config import ACTIONS, OWN, Config, InputError, printable
from i2x_jax.data import part, planted
from i2x_jax.data.dataset import Dataset, Splits, load_splits
from i2x_jax.data.pictures import reading_of
from i2x_jax.explanation import account, degenerate, ranking, uncertainty
from i2x_jax.explanation.account import ClassLedger, ImageAccount, PairEntry
from i2x_jax.explanation.ranking import Alarm, Ranked
from i2x_jax.explanation.rivals import column_in_confidence, confidence_in_label, is_narrow, mutual, widened
from i2x_jax.explanation.types import Explanation, Prototype
from i2x_jax.explanation.types import from_json as explanation_from_json
from i2x_jax.results import asked, comparison, findings, summary, tables
from i2x_jax.results import story as stories
from i2x_jax.results.arrays import ARRAYS, read_array, read_arrays
from i2x_jax.results.comparison import Compared
from i2x_jax.results.files import (
    ACCOUNT,
    ACCOUNTED,
    CHECKPOINTS,
    CONFIG,
    CONTACT_SHEET,
    EXPLANATION,
    LEDGER,
    METRICS,
    PICTURES,
    RANKING,
    REFINEMENT,
    REPAIRED,
    REPORT,
    TRUST,
    file_state,
    read,
    read_config,
    read_header,
    read_json,
    read_metrics,
    refinement_file,
    refinement_names,
    repaired_folder,
)
from i2x_jax.results.story import Crops, Story, ToldApart

if TYPE_CHECKING:
    import altair
    import pandas
    from PIL import Image

    from i2x_jax.models.model import Model

# Arrays of which some axis holds the kept classes only.
KEPT_ONLY = ("confidence", "contributions", "ledger", "mapping")
# What an image of a story can be a row of: of a split, or of the data that were handed over, before they were split.
SPLITS, GIVEN = ("train", "validation", "test"), "given"


class Run:
    """Reading side of a run directory; everything is opened when asked for, large arrays as memory maps.

    Attributes:
      path: the directory.
      config: how the run was made.
      TABLES: what `to_frame` can be asked for.
    """

    TABLES: ClassVar[tuple[str, ...]] = tuple(tables.TABLES)

    def __init__(self, path: str | os.PathLike[str], data_dir: str | None = None) -> None:
        if not isinstance(path, (str, os.PathLike)):
            raise InputError(f"the run directory is {asked.shown(path)}; allowed: a path; name the workdir of a run")
        self.path: pathlib.Path = pathlib.Path(path).absolute()
        if not (self.path / CONFIG).exists():
            raise InputError(f"{self.path} is not a run directory: no {CONFIG} in it; allowed: the workdir of a run")
        self.config: Config = read_config(self.path)
        self._data_dir = data_dir
        self._opened: dict[str, tuple[Any, np.ndarray]] = {}

    def __repr__(self) -> str:
        """A few lines: what was explained, and how far the run has got."""
        own = {"data": "your images", "model": "your network"}
        data, model = (
            own[group] if getattr(self.config, group).name == OWN else getattr(self.config, group).name for group in own
        )
        there = [name for name in (EXPLANATION, REFINEMENT, REPORT) if (self.path / name).exists()]
        lines = [
            f"Run({str(self.path)!r})",
            f"  {printable(model)} on {printable(data)}, {self.config.explain.num_prototypes} prototypes",
            f"  there: {', '.join(there) or 'no explanation yet'}",
        ]
        return "\n".join(lines)

    def array(self, name: str) -> np.ndarray:
        """A .npy file by its name without ending: steps, labels, rows, assignments, intensity, confidence, groups."""
        path, sizes = self._known(name, ".npy"), self._sizes(name)
        # Every value is checked, once as long as the file is the same.
        key = file_state(path), sizes
        if name not in self._opened or self._opened[name][0] != key:
            self._opened[name] = key, read_array(path, sizes)
        return self._opened[name][1]

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """A .npz file: prototypes, contributions, validation, test, audit, unbiased, ranking, mapping, curated."""
        return read_arrays(self._known(name, ".npz"), self._sizes(name))

    def _known(self, name, ending):
        known = [each.removesuffix(ending) for each in ARRAYS if each.endswith(ending)]
        if isinstance(name, str) and name not in known:
            for other, ask in ((".npy", "array"), (".npz", "arrays")):
                if f"{name}{other}" in ARRAYS:
                    which = "one array" if ask == "array" else "several arrays"
                    raise InputError(f"{name!r} is {which}; allowed here: {', '.join(known)}; use {ask}({name!r})")
        return self.path / f"{asked.one_of(name, 'array of a run', known)}{ending}"

    def _sizes(self, name):
        """The symbols of `arrays.Spec` that are known without opening the array of that name."""
        k = self.config.explain.num_prototypes
        sizes = {"K": k, "A": k + 1, "D": self.config.explain.pca_dims}
        # Data and model are looked at where they are at hand: opening an array must not read a data set.
        if "splits" in vars(self):
            symbols = {"train": "N", "validation": "V", "test": "E", "audit": "G", "unbiased": "B"}
            sizes |= {symbols[name]: len(each.labels) for name, each in self.splits.sets().items()}
            sizes["N"] = len(self.dataset.labels)
            sizes["M"] = len(self.dataset.class_names)
        elif name not in ("steps", "labels", "rows", "rivals"):
            sizes["N"] = len(self.array("labels"))
        if "model" in vars(self):
            sizes |= dict(zip("hwd", self.model.feature_shape, strict=True))
        if name not in ("steps", "labels", "rows"):
            sizes |= {"T": len(self.steps), "I": len(self.steps) - 1, "J": len(self.steps) - 2}
        if name in KEPT_ONLY and (self.path / "rivals.npy").exists():
            m, r = self.rivals.shape
            sizes |= {"M": m, "R": r, "Y": r + 1 if is_narrow(self.rivals) else m}
        return sizes

    @functools.cached_property
    def steps(self) -> np.ndarray:
        """Steps of the analysed checkpoints, int32 `[T]`."""
        return np.array(self.array("steps"))

    @functools.cached_property
    def rivals(self) -> np.ndarray:
        """The classes that are kept of each class's samples, int `[M, R]` (DESIGN 2.4); all, where none are stored."""
        if (self.path / "rivals.npy").exists():
            return np.array(self.array("rivals"))
        num_classes = self.array("confidence").shape[2]
        return np.tile(np.arange(num_classes, dtype=np.int32), (num_classes, 1))

    @functools.cached_property
    def own_confidence(self) -> np.ndarray:
        """Every training sample's confidence in its own class, float32 `[T, N]`."""
        return confidence_in_label(self.array("confidence"), np.asarray(self.array("labels")), self.rivals)

    @functools.cached_property
    def splits(self) -> Splits:
        """Train (as analysed), validation and test, and where there are any audit and unbiased."""
        self._refuse_own()
        return dataset_of(self.config, self._data_dir, self.path / PICTURES)

    @functools.cached_property
    def dataset(self) -> Dataset:
        """The N training samples that are explained, in the order of every array of the run.

        They are `splits.train`, unless `explain.classes` or `explain.max_images` leave some out.
        """
        return part.explained(self.splits.train, self.config.explain, self.config.seed)

    @property
    def explained_rows(self) -> np.ndarray:
        """Where the samples of `dataset` stand in `splits.train`, int64, ascending."""
        return part.explained_rows(self.splits.train, self.config.explain, self.config.seed)

    @property
    def part(self) -> str:
        """Which part of the training images was explained, in words; '' where it was all of them."""
        images = read_header(self.path)["provenance"].get("images", {})
        if images.get("explained") == images.get("train"):
            return ""
        settings, classes = self.config.explain, len(self.explanation.classes)
        which = [f"{len(settings.classes)} of {classes} classes"] if settings.classes else []
        which += [f"at most {settings.max_images:,}"] if settings.max_images else []
        return f"{images['explained']:,} of {images['train']:,} training images ({', '.join(which)})"

    def truth(self, split: str = "train") -> np.ndarray:
        """Where the cue is that `data.plant` drew into the images (DESIGN 2.11); needs the data.

        Args:
          split: 'train', 'validation', 'test', 'audit' or 'unbiased'.

        Returns:
          bool `[N, H, W]`, True in the square of the cue; rows are those of the run's arrays. An image without the cue
          is False everywhere. Images are as they are stored: training shifts them and its cues with them.

        Raises:
          InputError: no such split, or nothing was planted.
        """
        asked.one_of(split, "split", Splits._fields)
        if not self.config.data.plant:
            raise InputError(
                f"nothing was planted into the images of {self.path}; allowed: a run with data.plant; set "
                "--config.data.plant and another workdir"
            )
        masks = planted.masks(getattr(self.splits, split))
        return masks[self.explained_rows] if split == "train" else masks

    @functools.cached_property
    def explanation(self) -> Explanation:
        """The structured explanation."""
        path = self.path / EXPLANATION
        return read(path, lambda path: explanation_from_json(path.read_text(encoding="utf-8")))

    @functools.cached_property
    def ranking(self) -> tuple[Ranked, ...]:
        """All prototypes in the order in which they deserve a look, by evidence per location (DESIGN 2.12).

        Raises:
          InputError: a run that was made before prototypes were ranked, or is not that far.
        """
        return ranking.ranked_prototypes(self._ranking, self.explanation.classes, self.steps)

    @property
    def alarms(self) -> tuple[Alarm, ...]:
        """The prototypes that ask for more than a look (`explanation.ranking.alarms`). Errors: `ranking`."""
        return ranking.alarms(self._ranking)

    @property
    def has_ranking(self) -> bool:
        """Whether prototypes were ranked; in runs that were made before, they were not."""
        return (self.path / RANKING).exists()

    @functools.cached_property
    def _ranking(self):
        """The arrays of ranking.npz, of as many classes as the explanation has."""
        if not self.has_ranking:
            raise InputError(
                f"{self.path} has no ranking of its prototypes ({RANKING}): it was made before there was one, or is "
                "not that far; allowed: a run that was explained since; the command that made the run adds it"
            )
        return read_arrays(self.path / RANKING, self._sizes("ranking") | {"M": len(self.explanation.classes)})

    @property
    def prototypes(self) -> list[tuple[Prototype, Ranked | None]]:
        """The prototypes as the explanation and as the ranking have them, those first that deserve a look first.

        Of a run without a ranking by their numbers, with None.
        """
        places = {each.prototype: place for place, each in enumerate(self.ranking)} if self.has_ranking else {}
        ordered = sorted(self.explanation.prototypes, key=lambda each: places.get(each.id, len(places)))
        return [(each, self.ranking[places[each.id]] if each.id in places else None) for each in ordered]

    @property
    def has_trust(self) -> bool:
        """Whether it was measured how far the explanation can be trusted, which is done when it is asked for."""
        return (self.path / TRUST).exists()

    @property
    def trust(self) -> dict[str, Any]:
        """How far the explanation can be trusted, as in trust.json (DESIGN 2.14).

        Raises:
          InputError: that was not measured.
        """
        if not self.has_trust:
            own = "call i2x_jax.explain again, with trust=True"
            raise InputError(
                f"{self.path} has no {TRUST}: how far it can be trusted was not measured; allowed: a run of which it "
                f"was; {own if OWN in (self.config.model.name, self.config.data.name) else 'add --stage=trust'}"
            )
        return read_json(self.path / TRUST, "trust")

    @functools.cached_property
    def refinement(self) -> dict[str, Any]:
        """The refinement table, as in refinement.json."""
        if self.config.model.name == OWN:
            raise InputError(
                f"{self.path} explains a model of your own, which is not refined; allowed: a run of a network that was "
                "trained here; look at .explanation instead"
            )
        if self.config.data.name == OWN and not (self.path / REFINEMENT).exists():
            raise InputError(
                f"{self.path} was not refined; allowed: a run with {REFINEMENT}; call i2x_jax.train again, with "
                "refine=True"
            )
        return read_json(self.path / REFINEMENT, "refinement")

    @functools.cached_property
    def refinements(self) -> dict[str, dict]:
        """All refinement tables by their names; that of refinement.json, called '', comes first if there is one."""
        files = {name: self.path / refinement_file(name) for name in refinement_names(self.path)}
        return {name: read_json(path, "refinement") for name, path in files.items()}

    def refine(
        self, prototypes: Sequence[int], action: str = "swap", name: str = "", **settings: Any
    ) -> dict[str, Any]:
        """Acts on prototypes, beside controls, as another refinement of this run (DESIGN 2.13); needs the data.

        Its table goes to refinements/NAME.json, and the model that the action left is what `repaired(action, name)`
        loads. Asked again, with the same settings, it returns at once.

        Args:
          prototypes: their ids.
          action: 'swap', 'paste', 'balance', 'fill_mean', 'fill_blur' or 'drop'.
          name: of the refinement; '' for the action and the prototypes, such as 'swap-7'.
          **settings: others of the group `refine`, such as `seeds`, `mask` and `phases`.

        Returns:
          The table, as in `refinements`.

        Raises:
          InputError: unknown prototypes or settings, a mask that covers too much, or a model of one's own.
        """
        # What works on a run stands above what reads it, and is looked for when it is asked for.
        refined = importlib.import_module("i2x_jax.api").refine(self, prototypes, action, name, **settings)
        vars(self).pop("refinements", None)
        vars(self).pop("refinement", None)
        return self.refinements[refined]

    def repaired(self, action: str = "swap", name: str = "") -> "tuple[Model, Any]":
        """The model that an action of a refinement left, and its variables; 'drop' is another model with the same.

        `model.head(variables, model.features(variables, images))` are its logits.

        Args:
          action: as in `refine`.
          name: of the refinement; '' for that of refinement.json.

        Raises:
          InputError: no such refinement, or it kept no model of that action.
        """
        from i2x_jax.evidence.dropping import without_prototypes
        from i2x_jax.training.checkpoints import Checkpoints, present_steps

        folder = self.path / repaired_folder(
            asked.one_of(name, "refinement", refinement_names(self.path)), asked.one_of(action, "action", ACTIONS)
        )
        kept = present_steps(folder)
        if not kept:
            there = sorted(path.name for path in (self.path / REPAIRED).glob("*") if path.is_dir())
            raise InputError(
                f"{self.path} keeps no model of {action!r} under the name {name!r}; allowed: "
                f"{printable(', '.join(there)) or 'none'} of {REPAIRED}/; call refine, or look whether it was refused"
            )
        model = self.model
        if action == "drop":
            chosen = self.refinements[name]["repair"]["prototypes"]
            model = without_prototypes(model, self.arrays("prototypes"), chosen)
        with Checkpoints(folder, read_only=True) as checkpoints:
            return model, checkpoints.restore_variables(kept[-1], self.abstract_variables)

    def explain_repaired(
        self, action: str = "swap", name: str = "", workdir: str | os.PathLike[str] | None = None
    ) -> "Run":
        """Explains what a repair changed: from the network as it was trained to the one that an action left.

        The run that it returns has these two checkpoints and prototypes of the repaired network, on the same images.
        `compare(that)` matches prototypes by their places: `change` is what one added over the training, `other_change`
        what its match added in the repair. So where the cue lost, what took its place gained. Needs the data.

        Args:
          action: as in `repaired`; not 'drop', which leaves the weights as they are.
          name: as in `repaired`.
          workdir: as in `i2x_jax.explain`.

        Raises:
          InputError: as `repaired`; or the action is 'drop'.
        """
        return importlib.import_module("i2x_jax.api").explain_repaired(self, action, name, workdir)

    @functools.cached_property
    def metrics(self) -> list[dict]:
        """The lines of metrics.jsonl."""
        return read_metrics(self.path / METRICS)

    @functools.cached_property
    def model(self) -> "Model":
        """The `models.Model`."""
        if self.config.model.name == OWN:
            self._refuse_own()
        return model_of(self.config, self.dataset)

    def _refuse_own(self):
        """What was handed to `i2x_jax.explain` or `i2x_jax.train` is not in its run directory."""
        if OWN in (self.config.model.name, self.config.data.name):
            what, call = "a model and images", "i2x_jax.explain"
            if self.config.model.name != OWN:
                what, call = "images", "i2x_jax.train"
            raise InputError(
                f"{self.path} explains {what} of your own, which it does not hold; allowed: everything that needs "
                f"none of it; for the rest call {call} again, with what it was called with and "
                f"workdir={str(self.path)!r}: it returns at once"
            )

    @functools.cached_property
    def abstract_variables(self) -> Any:
        """A tree like the weights, of shapes and dtypes."""
        import jax

        return jax.eval_shape(self.model.init, jax.random.key(0))

    def variables(self, step: int) -> Any:
        """The weights at an analysed step; those of networks trained here have recomputed BatchNorm statistics.

        Raises:
          InputError: no checkpoint of that step was kept.
        """
        from i2x_jax.training.checkpoints import Checkpoints

        if asked.whole(step, "the step", 0) not in self.steps:
            raise InputError(f"no checkpoint at step {step}; allowed: {', '.join(map(str, self.steps))}; see .steps")
        with Checkpoints(self.path / CHECKPOINTS, read_only=True) as checkpoints:
            return checkpoints.restore_variables(int(step), self.abstract_variables)

    def crops(self, prototype: int, n: int = 16) -> Crops:
        """The places where a prototype is strongest, cut out of their images; needs the model and the data.

        Args:
          prototype: its id, 0 to K-1.
          n: how many at most; fewer where fewer images have the prototype.

        Returns:
          `images` uint8 `[n, side, side, C]`, `rows` int64 `[n]`, `locations` int64 `[n, 2]` and `intensity` float32
          `[n]`, by falling intensity at the last checkpoint (`story.Crops`). Rows are those of the run's arrays;
          `run.dataset.rows[rows]` is where these images stood in the data that were handed over.

        Raises:
          InputError: unknown prototype, or n below 1.
        """
        from i2x_jax.evidence.geometry import crop_size

        assignments, final = self.array("assignments"), self.array("intensity")[-1]
        prototype = asked.whole(prototype, "the prototype", 0, final.shape[1] - 1)
        count = asked.whole(n, "the number of crops n", 1)
        images = self.dataset.pictures
        variables = self.variables(self.steps[-1])
        side = crop_size(self.model, images.shape[1:])
        return stories.crops(
            prototype,
            count,
            images,
            assignments,
            final,
            lambda rows: self.saliency(variables, rows),
            self.model.places,
            side,
        )

    def saliency(self, variables: Any, rows: np.ndarray) -> np.ndarray:
        """Saliency maps float32 `[n, h, w]` of training images int `[n]`, in logits, with these weights (DESIGN 2.3).

        What is explained is the logit that the run explains, of the label or of the predicted class.
        """
        settings, dataset = self.config.explain, self.dataset
        return stories.maps_of(
            self.model, settings.cam, settings.target, variables, dataset.images[rows], dataset.labels[rows]
        )

    def story(self, image: "int | np.ndarray", split: str = "train") -> Story:
        """How the network came to see an image as it does, and why it is taken for what it is (`story.Story`).

        `story(41).why()` names the prototypes by what they add to the logit of the predicted class, `why("4")` to that
        of another one; `story(41).contributions` holds `[T, K, M]` for all checkpoints and classes.

        Args:
          image: a row of the split; or an image that is in none, uint8 `[H, W, C]` (or `[H, W]`, where C is 1), of the
            size that the network was given. It has no label, and what is explained is the logit of the class that is
            predicted at the end. Its prototypes are those nearest to its feature vectors.
          split: 'train' for rows of the run's arrays, 'validation' or 'test'; or 'given' for an index into the data
            set that was handed over (that of `i2x_jax.explain` and `i2x_jax.train`) or loaded, before rows were held
            out of it: whichever split the image went to, it is found. `Story.row` is that index, whatever was asked.

        Raises:
          InputError: no such image or split. What needs the network or the images of an own model says so in one line
            where they are not at hand, in a run that was opened by `Run`.
        """
        if not isinstance(image, (int, np.integer)) and hasattr(image, "__array__"):
            seen = self._seen_own(image)
        else:
            split, row = self._find(image, asked.one_of(split, "split", (*SPLITS, GIVEN)))
            seen = self._seen_in_training(row) if split == "train" else self._seen_held_out(row, split)
        return stories.tell(seen, self.explanation.classes, self.steps, self.arrays("curated"))

    def _find(self, image, split):
        """The split and the row in it."""
        if split == GIVEN:
            image = asked.whole(image, "the image", 0)
            for name in SPLITS:
                rows = self._set(name).rows
                found = [] if rows is None else np.flatnonzero(rows == image)
                if len(found):
                    return name, int(found[0])
            raise InputError(
                f"image {image} of the data that were given is in no split, or was not explained; allowed: an index "
                "into these data, of an image that was not left out; check the number"
            )
        labels = self.array("labels") if split == "train" else self.arrays(split)["labels"]
        return split, asked.whole(image, f"the {split} image", 0, len(labels) - 1)

    def _set(self, split):
        """The images of a split; of the training images those that are explained."""
        return self.dataset if split == "train" else getattr(self.splits, split)

    def _row_of(self, split, image):
        if split == "train" and (self.path / "rows.npy").exists():
            return int(self.array("rows")[image])
        rows = self._set(split).rows
        return image if rows is None else int(rows[image])

    def _seen_in_training(self, row):
        label, assignments = int(self.array("labels")[row]), np.array(self.array("assignments")[row])

        def measure():
            return self._measured(self.dataset.images[row], label, assignments)

        return stories.Seen(
            split="train",
            image=row,
            label=label,
            confidence=self._confidence_of(row, label, measure),
            intensity=np.array(self.array("intensity")[:, row]),
            assignments=assignments,
            measure=measure,
            row=lambda: self._row_of("train", row),
            path=lambda *asked_for: self._path(self.dataset.images[row], assignments, *asked_for),
        )

    def _confidence_of(self, row, label, measure):
        """Confidence of a training sample [T,M]; 0 for classes that are not kept, none of which is predicted."""
        confidence = np.array(self.array("confidence")[:, row])
        if not is_narrow(self.rivals):
            return confidence
        if confidence[-1, -1] > confidence[-1, :-1].max():
            # What is predicted may be among the classes that are not kept.
            return measure().confidence
        return widened(confidence, self.rivals[label], len(self.rivals))

    def _seen_held_out(self, row, split):
        held = self.arrays(split)
        label = int(held["labels"][row])

        def path(*asked_for):
            pixels = getattr(self.splits, split).images[row]
            return self._path(pixels, self._measure_anew(pixels, label)[0], *asked_for)

        seen = stories.Seen(
            split=split,
            image=row,
            label=label,
            confidence=held["confidence"][:, row],
            intensity=None,
            assignments=None,
            measure=lambda: self._measure_anew(getattr(self.splits, split).images[row], label)[1],
            row=lambda: self._row_of(split, row),
            path=path,
        )
        try:
            pixels = getattr(self.splits, split).images[row]
            assignments, measured = self._measure_anew(pixels, label)
        except InputError:
            # Without images or network, what the files hold; asking for the rest tells what is missing.
            return seen
        return seen._replace(intensity=measured.intensity, assignments=assignments, measure=lambda: measured)

    def _seen_own(self, image):
        pixels = asked.pixels(image, self.dataset.images)
        assignments, measured = self._measure_anew(pixels)
        return stories.Seen(
            split="own",
            image=None,
            label=None,
            confidence=measured.confidence,
            intensity=measured.intensity,
            assignments=assignments,
            measure=lambda: measured,
            row=lambda: None,
            path=lambda *asked_for: self._path(pixels, assignments, *asked_for),
        )

    def _measure_anew(self, pixels, label=None):
        """Assignments and evidence of an image that is not among the arrays; no label for the one that is predicted."""
        from i2x_jax.evidence.one_image import place_image

        final = self.variables(self.steps[-1])
        assignments, predicted = place_image(self.model, final, self.arrays("prototypes"), pixels)
        return assignments, self._measured(pixels, predicted if label is None else label, assignments)

    def _measured(self, pixels, label, assignments):
        from i2x_jax.evidence.one_image import measure_image
        from i2x_jax.training.checkpoints import Checkpoints

        model, like = self.model, self.abstract_variables
        # Opening the folder takes longer than reading a small network from it.
        with Checkpoints(self.path / CHECKPOINTS, read_only=True) as kept:
            checkpoints = (kept.restore_variables(int(step), like) for step in self.steps)
            blank = self.arrays("prototypes")["blank"]
            return measure_image(model, checkpoints, pixels, label, assignments, self.config.explain, blank)

    def _path(self, pixels, assignments, toward, prototype):
        """Evidence of an image `[H, W, C]` for weighted logits in its pixels, at the last checkpoint."""
        from i2x_jax.devices.mesh import fetch
        from i2x_jax.evidence.pixels import PixelEvidence, level_of, path_pixels

        held = None
        if prototype is not None:
            held = assignments[None] == asked.whole(prototype, "the prototype", 0, len(self.explanation.prototypes) - 1)
        images = np.asarray(pixels, np.float32)[None]
        model, variables = self.model, self.variables(self.steps[-1])
        try:
            found = fetch(path_pixels(model, variables, level_of(images), images, toward[None], held))
        except TypeError as error:
            # A network of somebody's own, which may do with whole levels what cannot be done with floats.
            raise InputError(
                f"the network takes no images in floats ({str(error).splitlines()[0]}); allowed: `features` of uint8 "
                "and of float32, 0 to 255; cast to float32 in it first"
            ) from None
        evidence, before, after = found[0][0], float(found[1][0]), float(found[2][0])
        if held is None and before != after and not evidence.any():
            raise InputError(
                "no gradient reaches the pixels; allowed: `features` that can be differentiated by images in floats; "
                "do not round them or cast them to whole numbers in it"
            )
        return PixelEvidence(evidence, before, after)

    def ledger(self, name: str, interval: tuple[int, int] | None = None) -> ClassLedger:
        """The ledger of a class: what moved the mean confidence in it, over its own training images (DESIGN 2.10).

        The sums are exact; printed, an interval is a few lines.

        Args:
          name: of the class.
          interval: two neighbouring steps, such as (22, 63) or `steps[4:6]`; None for all.

        Raises:
          InputError: an unknown class or interval, one of which no image was explained, or a run that was made before
            there was a ledger.
        """
        found = self._class_ledger(self._label(name), self._with_ledger)
        if not (self.array("labels") == self._label(name)).any():
            raise InputError(
                f"no image of class {printable(name)!r} was explained; allowed: "
                f"{', '.join(map(printable, self.config.explain.classes))}, those of explain.classes; name one of them"
            )
        if interval is None:
            return found
        intervals = {(each.from_step, each.to_step): each for each in found.intervals}
        if isinstance(interval, np.ndarray):  # two of `steps`
            interval = tuple(interval.tolist())
        if not isinstance(interval, (tuple, list)) or tuple(interval) not in intervals:
            allowed = ", ".join(map(str, intervals))
            raise InputError(f"unknown interval {asked.shown(interval)}; allowed: {allowed}; see .steps")
        return dataclasses.replace(found, intervals=(intervals[tuple(interval)],))

    @functools.cached_property
    def ledgers(self) -> tuple[ClassLedger, ...]:
        """The ledgers of all classes, in their order, as `ledger`; all zeros of one of which no image was explained."""
        found = self._with_ledger
        return tuple(self._class_ledger(label, found) for label in range(len(self.explanation.classes)))

    @functools.cached_property
    def accounted(self) -> np.ndarray:
        """The training samples that the ledger is of, int64, ascending: all, unless `explain.ledger` is a number."""
        if (self.path / ACCOUNTED).exists():
            return np.array(self.array("accounted"))
        return np.arange(len(self.array("labels")))

    def _class_ledger(self, label, found):
        own = np.flatnonzero(self.array("labels")[self.accounted] == label)
        rows = self.accounted[own]
        count = max(len(own), 1)
        return account.class_ledger(
            label,
            self.explanation.classes,
            self.steps,
            found,
            self.rivals[label],
            self.own_confidence[:, rows].sum(1, dtype=np.float64) / count,
            account.account_error(self.array("account")[:, own]),
            (self._area[rows] > 0).sum(0) / count,
        )

    @property
    def has_ledger(self) -> bool:
        """Whether the run has a ledger; those that were made before there was one have none."""
        return all((self.path / name).exists() for name in (LEDGER, ACCOUNT))

    @property
    def _with_ledger(self):
        """The arrays of ledger.npz."""
        self._refuse_without_ledger()
        return self.arrays("ledger")

    def _refuse_without_ledger(self):
        if not self.has_ledger:
            raise InputError(
                f"{self.path} has no ledger ({LEDGER}, {ACCOUNT}): it was made before there was one, or is not that "
                "far; allowed: a run that was explained since; run explain in a new workdir"
            )

    def ledger_of_pair(self, a: str, b: str) -> tuple[PairEntry, ...]:
        """Which prototypes moved the difference of two confidences, over the images of both classes (DESIGN 2.10).

        `score` says how far a prototype wavered. Neither this score nor that of `explanation.pair(a, b).uncertain`
        tells which images fail.

        Raises:
          InputError: as `ledger`.
        """
        counts = np.bincount(self.array("labels")[self.accounted], minlength=len(self.explanation.classes))
        first, second = self._label(a), self._label(b)
        if not mutual(self.rivals, first, second):
            raise InputError(
                f"classes {printable(a)!r} and {printable(b)!r} are not kept of each other's images; allowed: classes "
                "that are confused, or analysed; set explain.max_pairs, explain.rivals or refine.pair in another run"
            )
        return account.pair_ledger(self._with_ledger, self.rivals, counts, first, second)

    def account(self, image: "int | np.ndarray", split: str = "train") -> ImageAccount:
        """The account of one image: what moved its confidence in its label, interval by interval (DESIGN 2.10).

        Args:
          image: as in `story`; of an image of your own the confidence is that in the class predicted at the end.
          split: as in `story`.

        Raises:
          InputError: as `story`, or a run that was made before there was a ledger.
        """
        self._refuse_without_ledger()
        if isinstance(image, (int, np.integer)) and split in SPLITS:
            _, row = self._find(image, split)
            place = np.searchsorted(self.accounted, row)
            if split == "train" and place < len(self.accounted) and self.accounted[place] == row:
                return ImageAccount(self.steps, self.own_confidence[:, row], np.array(self.array("account")[:, place]))
        story = self.story(image, split)
        label = self.explanation.classes.index(story.label or story.predicted)
        pixels = self.splits._asdict()[story.split].images[story.image] if story.split in SPLITS else image
        parts = self._parts(asked.pixels(pixels, self.dataset.images), story.assignments)
        both = np.concatenate([parts.seeing + parts.weighing, parts.bias[:, None]], axis=1)
        return ImageAccount(self.steps, np.asarray(story.confidence)[:, label], both[:, :, label])

    def _parts(self, pixels, assignments):
        from i2x_jax.evidence.one_image import account_image

        checkpoints = [self.variables(step) for step in self.steps]
        blank = self.arrays("prototypes")["blank"]
        return account_image(self.model, checkpoints, pixels, assignments, blank, self.config.explain.num_prototypes)

    def compare(self, other: "Run") -> tuple[Compared, ...]:
        """The ledgers of two runs side by side, over the same images: other seeds, or before and after a repair.

        Prototypes are matched by their places: so that as many locations as possible belong to the same in both.

        Args:
          other: a run whose prototypes are of the same images.

        Raises:
          InputError: the other run is of other images or classes, or either has no ledger.
        """
        if not isinstance(other, Run):
            raise InputError(f"the other run is {asked.shown(other)}; allowed: an i2x_jax.Run; open its directory")
        mine, theirs = (self._for_comparison(), other._for_comparison())
        if mine.classes != theirs.classes or not np.array_equal(mine.labels, theirs.labels):
            raise InputError(
                f"{other.path} is of other images or classes than {self.path}; allowed: a run on the same training "
                "images; compare runs of one data set and one split"
            )
        return comparison.compare(mine, theirs)

    def _for_comparison(self):
        found = self._with_ledger
        return comparison.Side(
            self.explanation.classes, np.array(self.array("labels")), self.array("assignments"), found
        )

    def _label(self, name):
        classes = self.explanation.classes
        return classes.index(asked.one_of(str(name) if isinstance(name, int) else name, "class", classes))

    @functools.cached_property
    def _area(self):
        """Locations of each prototype in each training image, int [N,K]."""
        return uncertainty.prototype_area(self.array("assignments"), self.config.explain.num_prototypes)

    def told_apart(self, a: str, b: str) -> ToldApart:
        """Since when the network tells two classes apart, on validation images: the curve over the checkpoints.

        Args:
          a: name of a class.
          b: name of another.

        Returns:
          `step` from which they are told apart for good, `before`, the checkpoint before, `steps` and `auc`
          (`story.ToldApart`).

        Raises:
          InputError: an unknown class, or one class twice.
        """
        pair, classes = self.explanation.pair(a, b), self.explanation.classes
        names = (pair.a, pair.b) if str(a) == pair.a else (pair.b, pair.a)
        labels = classes.index(names[0]), classes.index(names[1])
        validation = self.arrays("validation")
        return stories.told_apart(names, labels, self.steps, validation["labels"], validation["confidence"])

    def summary(self) -> str:
        """A finished run in one screen of text, as run.py ends with it; of another what there is."""
        explained = (self.path / EXPLANATION).exists()
        tables, skipped = (self.refinements, set()) if explained else ({}, set())
        if tables:
            # A table that does not say what was curated was made by the run's own settings.
            curated = next((t["curated"] for t in tables.values() if "curated" in t), None) or self.arrays("curated")
            skipped = set(np.asarray(curated["skipped"]).tolist())
        places = {"Contact sheet": CONTACT_SHEET, "Report": REPORT}
        there = {what: self.path / name for what, name in places.items() if (self.path / name).exists()}
        return summary.summary(
            self.metrics,
            self.explanation if explained else None,
            self.arrays("contributions")["completeness_error"] if explained else np.zeros(1),
            tables,
            skipped,
            {"Run directory": self.path, **there},
            self.doubts() if explained else (),
            self._told(next(iter(tables.values()))["pair"] if tables else None) if explained else (),
        )

    def _told(self, pair):
        """What was explained, what deserves a look, and how a pair was learned, as far as the run can tell."""
        look = summary.look_first(self.ranking, self.alarms) if self.has_ranking else None
        explained = f"Explained: {self.part}" if self.part else None
        trusted = summary.trusted(findings.trust(self.trust)) if self.has_trust else None
        return [each for each in (explained, look, trusted, self._learned(pair)) if each is not None]

    def _learned(self, pair):
        """`summary.learning_story` of a pair, or of the most confused one; None without a ledger."""
        classes = self.explanation.classes
        if not self.has_ledger or not self.explanation.pairs:
            return None
        told = self.explanation.pair(*pair) if pair else self.explanation.pairs[0]
        a, b = told.a, told.b
        labels, confidence = np.asarray(self.array("labels")), self.array("confidence")
        first, second = classes.index(a), classes.index(b)
        if not ((labels == first).any() and (labels == second).any() and mutual(self.rivals, first, second)):
            return None
        gaps = []
        for label in (first, second):
            own = np.asarray(confidence[:, labels == label], np.float64)
            in_a, in_b = (column_in_confidence(self.rivals, label, other) for other in (first, second))
            gaps.append((own[:, :, in_a] - own[:, :, in_b]).mean(1))
        return summary.learning_story((a, b), list(map(int, self.steps)), gaps, self.ledger_of_pair(a, b))

    def doubts(self) -> list[str]:
        """Where the run has come to nothing, a sentence each: images without saliency, empty prototypes, and so on."""
        found, validation = self.arrays("prototypes"), self.arrays("validation")
        arrays = degenerate.Arrays(
            intensity=np.array(self.array("intensity")[-1]),
            labels=self.array("labels"),
            counts=self._area.sum(0),
            channel_mean=found["mean"],
            groups=self.array("groups"),
            validation_labels=validation["labels"],
            validation_confidence=validation["confidence"][-1],
        )
        return degenerate.degenerate(self.explanation, arrays)

    def conclusions(self) -> list[str]:
        """What may, and what may not, be concluded from the explanation: the sentences of the report."""
        errors = self.arrays("contributions")["completeness_error"]
        return [
            *findings.fidelity(self.explanation),
            *findings.warnings(self.explanation, self.array("assignments").shape[1:], errors),
            *((each.sentence for each in findings.trust(self.trust)) if self.has_trust else ()),
        ]

    def plot_prototype(self, prototype: int, n: int = 10, seed: int = 0) -> "Image.Image":
        """A prototype's strongest crops, the images they are from, and members drawn at random, in three rows.

        In the images the crop is framed in orange, and in blue all that this location of the feature map can see.

        Args:
          prototype: its id, 0 to K-1.
          n: how many of each at most.
          seed: of the draw.

        Raises:
          InputError: as `crops`.
        """
        from i2x_jax.results import plots

        crops = self.crops(prototype, n)
        assignments, images = self.array("assignments"), self.dataset.pictures
        if not len(crops.rows):
            raise InputError(f"no image has prototype {prototype}; allowed: one that occurs; choose another")
        members = np.flatnonzero((assignments == prototype).any((1, 2)))
        drawn = np.random.default_rng(asked.whole(seed, "the seed", 0)).permutation(members)[:n]
        return plots.prototype_picture(crops, images[crops.rows], images[drawn], self.model.places)

    def plot_pair(self, a: str, b: str) -> "altair.VConcatChart":
        """Two classes: how well they are told apart at each checkpoint, and the prototypes that separate them."""
        from i2x_jax.results import plots

        return plots.pair_chart(self.told_apart(a, b), self.explanation.pair(a, b))

    def plot_image(self, image: "int | np.ndarray", split: str = "train") -> "Image.Image":
        """An image beside its strongest prototypes, numbered, and the evidence in its pixels for what it is taken for.

        Evidence is orange where it is for it and blue where it is against (`Story.pixels`). Below is its saliency at
        every checkpoint, on one scale. Arguments and errors are those of `story`; it needs the model and the data.
        """
        from i2x_jax.results import plots

        told = self.story(image, split)
        maps = told.maps
        pixels = (
            self.dataset.shown(asked.pixels(image, self.dataset.images))
            if told.image is None
            else (self._set(told.split).pictures[told.image])
        )
        numbers = [each.prototype for each in told.prototypes if each.share > 0]
        return plots.image_picture(pixels, told.assignments, numbers, maps, told.pixels().evidence, self.model.places)

    def to_frame(self, table: str) -> "pandas.DataFrame":
        """A table of the run as a pandas data frame, one row per record.

        Args:
          table: one of `Run.TABLES`: intervals, prototypes, support, pairs, uncertain, ledger, metrics, refinement.

        Raises:
          InputError: no such table, the stage that makes it has not run, or pandas is not installed.
        """
        return tables.to_frame(self.records(table))

    def records(self, table: str) -> list[dict[str, Any]]:
        """The rows of a table as plain dicts, without pandas; arguments and errors as in `to_frame`."""
        asked.one_of(table, "table", self.TABLES)
        return tables.records(table, getattr(self, tables.SOURCES.get(table, "explanation")))


def dataset_of(config: Config, data_dir: str | None, known: pathlib.Path | None = None) -> Splits:
    """The splits a config asks for; `known` is what a run kept of the files that they are read from."""
    data, known = config.data, None if known is None else os.fspath(known)
    splits = load_splits(data.name, data.validation, data.max_train, config.seed, data_dir, reading_of(data, known))
    return planted.completed(splits, data, config.seed, data_dir, known)


def model_of(config: Config, dataset: Dataset) -> "Model":
    """The `models.Model` a config asks for."""
    from i2x_jax import models

    return models.create(
        config.model.name,
        num_classes=len(dataset.class_names),
        image_shape=dataset.images.shape[1:],
        width=config.model.width,
        stem=config.model.stem,
        tap=config.model.tap,
        dtype=config.model.dtype,
        allow_1x1=config.model.allow_1x1,
        patch=config.model.patch,
        depth=config.model.depth,
        pool=config.model.pool,
    )
