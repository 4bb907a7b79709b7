"""Acting on prototypes, as the stage `refine` does where some are chosen (DESIGN 2.13)."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import save_file

from i2x_jax.config import ACTIONS, CONTROLS, RIVALS, InputError, RefineConfig
from i2x_jax.data.dataset import Dataset, steps_per_pass
from i2x_jax.data.source import ROWS_AT_A_TIME
from i2x_jax.devices.mesh import fetch
from i2x_jax.evidence import prototypes
from i2x_jax.evidence.dropping import without_prototypes
from i2x_jax.models.model import Model, Variables
from i2x_jax.models.networks import with_classifier
from i2x_jax.models.torch_weights import to_torch
from i2x_jax.pipeline.directory import RunDirectory
from i2x_jax.pipeline.prototypes import assigned
from i2x_jax.refinement import actions, reweighting
from i2x_jax.refinement import strategies as refinement
from i2x_jax.refinement.actions import Acted, Masks, Swapped
from i2x_jax.results.files import repaired_folder, repaired_weights
from i2x_jax.results.opened_run import Run
from i2x_jax.training.checkpoints import Checkpoints
from i2x_jax.training.loop import pooled_features

# Accuracy on the audit images that a repair may cost; one that costs more is refused.
MOST_LOST = 0.01
# Share of the cue's mask that the mask of another prototype, the control, may cover.
MOST_SHARED = 0.1
# What `refine.phases=0` chooses between, and what is taken without audit images.
PHASES, PHASES_UNSEEN = (1, 2), 2


class Cue(NamedTuple):
    """What is acted on, and where it is.

    Attributes:
      prototypes: their ids.
      mask: 'pattern' or 'place'.
      covered: share of the image that the mask covers, mean over the images that hold the cue.
      cells: bool `[N, h, w]`, its locations in the training images.
    """

    prototypes: tuple[int, ...]
    mask: str
    covered: float
    cells: np.ndarray


class Plan(NamedTuple):
    """What a refinement runs.

    Attributes:
      names: all strategies that the table tells of.
      reasons: why some of them are not run.
      sets: from a seed's generator to what its phases train on, by name.
      refining: what all share.
      left_out: class name to number of samples that are left out where samples are.
      told: members of the table beside those that all tables have.
      keep: given each strategy of the first seed, and the variables that it reached.
    """

    names: Sequence[str]
    reasons: Mapping[str, str]
    sets: Callable[[np.random.Generator], Mapping[str, Dataset]]
    refining: refinement.Refining
    left_out: Mapping[str, int]
    told: dict[str, Any]
    keep: Callable[[str, Variables], Any] = lambda strategy, variables: None

    def run(self) -> list[str]:
        """The strategies that are run."""
        return [name for name in self.names if name not in self.reasons]


def plan_repair(
    directory: RunDirectory,
    work: Run,
    settings: RefineConfig,
    refining: refinement.Refining,
    uncertain: Sequence[int],
) -> Plan:
    """What is done about the prototypes that were chosen, and what is run beside it.

    Args:
      directory: where repaired models go.
      work: the run.
      settings: of this refinement.
      refining: what all strategies share, so far.
      uncertain: ids of the prototypes that the curation of the pair chose.

    Raises:
      InputError: a prototype that somebody named is in no image, or its mask covers too much of them.
    """
    controls = [name for name in CONTROLS if name != "true_mask" or work.config.data.plant]
    names = [*settings.actions, *controls, *(RIVALS if work.splits.audit is not None else ())]
    chosen, by = chosen_prototypes(work, settings, uncertain)
    allowed, why = allowed_cues(work, chosen, settings.mask)
    # Several may raise an alarm, whose masks together cover too much: then the first of them, as many as may be used.
    while not allowed and by == "alarm" and len(chosen) > 1:
        chosen = chosen[:-1]
        allowed, why = allowed_cues(work, chosen, settings.mask)
    if not allowed and by == "person":
        raise InputError(f"{why}; allowed: prototypes in the training images, on at most half of each; choose others")
    if not allowed:
        told = {"prototypes": list(chosen), "by": by, "ranks": ranks(work, chosen)}
        return Plan(names, dict.fromkeys(names, why), lambda draws: {}, refining, {}, {"repair": told})
    tried = tried_on_audit(work, settings, refining, allowed)
    best = max(tried, key=lambda each: each["audit_accuracy"], default=None)
    cue = next((each for each in allowed if best and each.mask == best["mask"]), allowed[0])
    phases = best["phases"] if best else settings.phases or PHASES_UNSEEN
    refining = refining._replace(phases=phases, judged=judged(work, cue))
    told = {"prototypes": list(chosen), "by": by, "ranks": ranks(work, chosen), "mask": cue.mask, "phases": phases}
    told |= {"covered": cue.covered, "holding": float(cue.cells.any((1, 2)).mean()), "tried": tried}
    left_out = actions.holding_rows(cue.cells, work.dataset.labels, settings.max_left_out)
    counts = np.bincount(work.dataset.labels[left_out], minlength=len(work.dataset.class_names)).tolist()
    counts = {name: count for name, count in zip(work.dataset.class_names, counts, strict=True) if count}
    reasons = {} if counts else dict.fromkeys(("leave_out", "leave_out_random"), "it would leave out no image")
    if not (others := other_prototypes(work, cue)):
        reasons["random_prototype"] = "no other prototype has a mask of at most half the image and leaves the cue alone"
    reasons |= rivals_left_out(work)
    refining = refining._replace(ready=ready(work, cue, [name for name in names if name not in reasons], refining))
    last = int(work.steps[-1]) + phases * steps_per_pass(len(work.dataset.labels), refining.recipe.batch_size)

    def keep(strategy, variables):
        if strategy in settings.actions:
            save(directory, settings.name, strategy, last, variables)
            if strategy != "drop":
                save_weights(directory, repaired_weights(settings.name, strategy), work.config.model.name, variables)

    def sets(draws):
        return sets_of(work, settings, cue, others, draws)

    return Plan(names, reasons, sets, refining, counts, {"repair": told}, keep)


def chosen_prototypes(work: Run, settings: RefineConfig, uncertain: Sequence[int]) -> tuple[tuple[int, ...], str]:
    """The prototypes that are acted on, and who chose them; none where there are none to pick."""
    if settings.prototypes:
        return settings.prototypes, "person"
    if settings.pick == "uncertain":
        return tuple(int(each) for each in uncertain), "uncertain"
    if settings.pick == "alarm":
        return tuple(each.prototype for each in work.alarms if each.by == "audit"), "alarm"
    return tuple(each.prototype for each in work.ranking[:1] if each.rank), "evidence"


def ranks(work: Run, chosen: Sequence[int]) -> list[int | None]:
    """The rank of each prototype by evidence per location; None of those, and of runs, without."""
    found = {each.prototype: each.rank for each in work.ranking} if work.has_ranking else {}
    return [found.get(each) for each in chosen]


def allowed_cues(work: Run, chosen: Sequence[int], mask: str) -> tuple[list[Cue], str]:
    """The cue under each mask that may be used, in the order in which they are preferred; and why there is none."""
    if not chosen:
        return [], "no prototype was found to act on"
    assignments = work.array("assignments")
    absent = [each for each in chosen if not (assignments == each).any()]
    if absent:
        return [], f"prototype {absent[0]} is in no training image"
    cells, found, why = np.isin(assignments, chosen), [], ""
    for each in ("pattern", "place") if mask == "auto" else (mask,):
        covered = covered_share(work, masks_of(work, each, cells))
        if covered <= actions.MOST_COVERED:
            found.append(Cue(tuple(chosen), each, covered, cells))
        else:
            named = f"prototype{'s' * (len(chosen) > 1)} {', '.join(map(str, chosen))}"
            why = why or f"the {each} of {named} covers {100 * covered:.0f} % of the images that have it"
    return found, why


def masks_of(work: Run, mask: str, cells: np.ndarray, trained: np.ndarray | None = None) -> Masks:
    """`actions.masks_of` for images of this run; cells are those of the training images unless these are given too."""
    trained = cells if trained is None else trained
    return actions.masks_of(mask, cells, trained, work.model.places, work.dataset.images.shape[1:])


def covered_share(work: Run, masks: Masks) -> float:
    """The share of the training images that a mask covers, mean over those where it is not empty."""
    count, shares = len(work.dataset.labels), []
    for start in range(0, count, ROWS_AT_A_TIME):
        shares.append(masks(np.arange(start, min(start + ROWS_AT_A_TIME, count))).mean((1, 2)))
    share = np.concatenate(shares)
    return float(share[share > 0].mean())


def other_prototypes(work: Run, cue: Cue) -> list[int]:
    """The prototypes of which the control 'random_prototype' is drawn, ascending.

    Their patterns may be used, and hardly cover the cue's mask: a control that takes the cue away is none. (The places
    of most prototypes are nearly everywhere.)
    """
    rows = np.flatnonzero(cue.cells.any((1, 2)))[:ROWS_AT_A_TIME]
    own, found = masks_of(work, cue.mask, cue.cells)(rows), []
    for each in range(work.config.explain.num_prototypes):
        usable = each not in cue.prototypes and allowed_cues(work, [each], "pattern")[0]
        if usable:
            shared = masks_of(work, "pattern", usable[0].cells)(rows) & own
            if shared.sum() <= MOST_SHARED * own.sum():
                found.append(each)
    return found


def sets_of(
    work: Run, settings: RefineConfig, cue: Cue, others: Sequence[int], draws: np.random.Generator
) -> dict[str, Dataset]:
    """What each action and control trains on, by its name; all of one kind, so that they share one program.

    Args:
      work: the run.
      settings: of this refinement.
      cue: what is acted on.
      others: of `other_prototypes`; as many as the cue has are drawn.
      draws: of the seed.
    """
    train, assignments = work.dataset, work.array("assignments")
    labels, colour = train.labels, work.arrays("prototypes")["blank"]
    masks = masks_of(work, cue.mask, cue.cells)
    area = round(cue.covered * np.prod(train.images.shape[1:3]))

    def acted(kind, masks=None, area=0):
        return train._replace(images=Acted(train.images, kind, masks, colour, area))

    another = np.isin(assignments, draws.permutation(others)[: len(cue.prototypes)])
    left_out = actions.holding_rows(cue.cells, labels, settings.max_left_out)
    at_random = refinement.left_out_sets(left_out, labels, work.own_confidence, draws)["random"]
    plain = acted("plain")
    sets = {kind: acted(kind, masks) for kind in ("swap", "paste", "fill_mean", "fill_blur", "random_patch")}
    sets |= refinement.without(plain, {"leave_out": left_out, "leave_out_random": at_random})
    sets |= {
        "plain": plain,
        "balance": plain.take(actions.balanced_rows(labels, cue.cells.any((1, 2)), draws)),
        "random_prototype": acted("swap", masks_of(work, "pattern", another)),
        "cutout": acted("cutout", area=area),
    }
    if work.splits.audit is not None:
        audit = work.splits.audit
        sets["audit_tune"] = audit._replace(images=Acted(audit.images, "plain", None, colour, 0))
    if work.config.data.plant:
        truth = work.truth()
        sets["true_mask"] = acted("swap", lambda rows: truth[rows])
    return sets


def tried_on_audit(
    work: Run, settings: RefineConfig, refining: refinement.Refining, allowed: Sequence[Cue]
) -> list[dict[str, Any]]:
    """The swap under each mask and after each number of phases that may be chosen, on the audit images.

    Trained with a seed of its own, once. Nothing is tried without audit images, or where there is nothing to choose.
    """
    audit, numbers = work.splits.audit, (settings.phases,) if settings.phases else PHASES
    if audit is None or len(allowed) * len(numbers) < 2:
        return []
    seeds = [int(number) for number in np.random.default_rng((work.config.seed, -1 % 2**32)).integers(2**31, size=10)]
    found = []
    for cue in allowed:
        masks = masks_of(work, cue.mask, cue.cells)
        sets = {"swap": work.dataset._replace(images=Acted(work.dataset.images, "swap", masks))}
        for phases in numbers:
            tried = refining._replace(phases=phases, judged={"audit_accuracy": audit}, test=audit)
            reached = refinement.refine_seed(tried, sets, ["swap"], seeds)["swap"]["audit_accuracy"]
            found.append({"mask": cue.mask, "phases": phases, "audit_accuracy": reached})
    return found


def judged(work: Run, cue: Cue) -> dict[str, Dataset]:
    """The sets on which every strategy is judged beside the test set, by what the outcome calls its accuracy there."""
    splits = work.splits
    found, variables = work.arrays("prototypes"), work.variables(work.steps[-1])
    places = assigned(work, variables, splits.validation, prototypes.pca_of(found), found["centroids"])
    cells = np.isin(places, cue.prototypes)
    masks = masks_of(work, cue.mask, cells, cue.cells)
    donors = np.random.default_rng(work.config.seed).permutation(len(cells))
    swapped = splits.validation._replace(images=Swapped(splits.validation.images, masks, donors))
    sets = {"validation": splits.validation, "swapped": swapped, "audit": splits.audit, "unbiased": splits.unbiased}
    return {f"{name}_accuracy": each for name, each in sets.items() if each is not None}


def rivals_left_out(work: Run) -> dict[str, str]:
    """Why rivals are not run, of those that are not; nothing without audit images, where there are no rivals."""
    if (audit := work.splits.audit) is None:
        return {}
    if work.splits.unbiased is None:
        return dict.fromkeys(RIVALS, "it trains on the audit images, which alone could judge it here")
    if not work.model.linear_head:
        return {"dfr": "the head is no pool and linear layer"}
    counts = np.bincount(audit.labels, minlength=len(audit.class_names))
    if counts.min() < reweighting.LEAST_OF_CLASS:
        few = audit.class_names[int(counts.argmin())]
        return {
            "dfr": f"{counts.min()} of the audit images are of class {few}, and it takes {reweighting.LEAST_OF_CLASS}"
        }
    return {}


def ready(
    work: Run, cue: Cue, names: Sequence[str], refining: refinement.Refining
) -> dict[str, tuple[Model, Variables]]:
    """The networks and variables of those strategies of `strategies.UNTRAINED` that are named."""
    found, variables, audit = {}, refining.variables, work.splits.audit
    if "drop" in names:
        found["drop"] = without_prototypes(work.model, work.arrays("prototypes"), cue.prototypes), variables
    if "dfr" in names:
        pooled = pooled_features(work.model, variables, audit, refining.recipe.batch_size)
        layer = reweighting.last_layer(pooled, audit.labels, work.config.seed)
        found["dfr"] = work.model, with_classifier(variables, *layer)
    return found


def save(directory: RunDirectory, name: str, action: str, step: int, variables: Variables) -> None:
    """Keeps a repaired model as an Orbax checkpoint, in place of any that was there."""
    folder = directory.path / repaired_folder(name, action)
    if directory.main:
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(exist_ok=True)
    directory.barrier(f"{action} made room for")
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(step, variables)


def save_weights(directory: RunDirectory, name: str, network: str, variables: Variables) -> None:
    """Writes variables of a network under torchvision's names into a file, whole or not at all."""
    tensors = to_torch(network, fetch(variables))
    if directory.main:
        with directory.replacing(name) as temporary:
            save_file(tensors, temporary)


def guarded(directory: RunDirectory, name: str, table: dict) -> dict:
    """The table with the actions that cost more than `MOST_LOST` on the audit images refused, and not kept.

    Without audit images, or where nothing was run, nothing is refused.
    """
    before, refused, saved = table["before"].get("audit_accuracy"), [], []
    for action, entry in table["strategies"].items():
        folder = directory.path / repaired_folder(name, action)
        if action not in ACTIONS or not entry["applicable"]:
            continue
        if before is not None and before - entry["mean"]["audit_accuracy"] > MOST_LOST:
            refused.append({"action": action, "before": before, "after": entry["mean"]["audit_accuracy"]})
            if directory.main:
                shutil.rmtree(folder, ignore_errors=True)
                (directory.path / repaired_weights(name, action)).unlink(missing_ok=True)
        else:
            saved.append(action)
    return table | {"repair": table["repair"] | {"refused": refused, "saved": saved}}
