"""Acting on uncertain prototypes where no cue is planted: the paper's promise, on its own ground.

    python experiments/benchmarks/repair_pairs.py --measure=choose --workdir=runs/pairs --json=choose.json
    python experiments/benchmarks/repair_pairs.py --measure=test --workdir=runs/pairs --json=test.json

Of one network (--config, experiments/mnist_cnn.py unless given) those pairs of classes are looked at, three unless
--pairs says otherwise, that are confused most on validation images. In each the prototype is acted on that wavered most
between the two, by the paper's score (DESIGN 2.8) or by the ledger's (2.10); one whose mask covers over half of the
image is passed over.

`choose` runs every action with two seeds and reads accuracy on *validation* images alone. What was best, mean over
pairs less plain fine-tuning of as many steps, is `FROZEN` below; `test` runs that with all controls, and beside it the
paper's own way, leaving samples out, with six seeds, and reads the test set, for the first and only time.
"""

import dataclasses
import json
import pathlib
import statistics
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from absl import flags

from experiments.benchmarks import quiet_runs
from experiments.benchmarks.quiet_runs import NOT_HERE, refuse_flags, start
from i2x_jax import Run
from i2x_jax import command as program
from i2x_jax.config import ACTIONS, Config, InputError, RefineConfig
from i2x_jax.data.dataset import Splits
from i2x_jax.devices.compilation import keep_programs
from i2x_jax.pipeline import repair
from i2x_jax.pipeline import stages as pipeline
from i2x_jax.results.opened_run import dataset_of

DEFAULT = pathlib.Path(__file__).resolve().parents[1] / "mnist_cnn.py"
SCORES = ("paper", "ledger")
# What `choose` found best: an action, and the score by which prototypes are taken.
FROZEN = ("balance", "ledger")
# What leaves samples out, and its controls, at one phase.
LEAVING_OUT = ("full", "curated", "random")

_MEASURE = flags.DEFINE_enum("measure", "choose", ("choose", "test"), "What is measured.")
_PAIRS = flags.DEFINE_integer("pairs", 3, "How many pairs of classes, most confused first.", lower_bound=1)
_SEEDS = flags.DEFINE_integer("seeds", 0, "Seeds of each refinement; 0 for 2 to choose, 6 to test.", lower_bound=0)
_JSON = flags.DEFINE_string("json", None, "The file that the figures are written to.")


def most_wavering(run: Run, pair: tuple[str, str], score: str) -> int | None:
    """The prototype that wavered most between two classes and whose mask may be used; None where none did."""
    entries = run.explanation.pair(*pair).uncertain or () if score == "paper" else run.ledger_of_pair(*pair)
    wavered = sorted((each for each in entries if each.score > 0), key=lambda each: -each.score)
    return next((k.prototype for k in wavered if repair.allowed_cues(run, [k.prototype], "pattern")[0]), None)


def called(run: Run, kind: str, pair: tuple[str, str], *more: int) -> str:
    """The name of a refinement; classes by their numbers, because names may hold anything."""
    return "-".join(map(str, (kind, *(run.dataset.class_names.index(name) for name in pair), *more)))


def refined(run: Run, splits: Splits, settings: RefineConfig) -> dict:
    """The table of one more refinement of the run."""
    config = dataclasses.replace(run.config, refine=settings)
    made = quiet_runs.made(config, run.path, splits, pipeline.needed_steps(["refine"]))
    return made.refinements[settings.name]


def less(table: dict, reference: str, measure: str) -> dict[str, dict]:
    """What each strategy reached less one of them: `paired_interval`, by name of the strategy."""
    return {row["strategy"]: row[measure] for row in table["differences"] if row["against"] == reference}


def acted(run: Run, splits: Splits, actions: tuple[str, ...], scores: tuple[str, ...], seeds: int) -> list[dict]:
    """What acting came to: of each pair and score the prototype and the table; one that both name is run once."""
    found = []
    for each in run.explanation.pairs[: _PAIRS.value]:
        pair, done = (each.a, each.b), {}
        for score in scores:
            k = most_wavering(run, pair, score)
            if k is not None and k not in done:
                name = called(run, actions[0] if len(actions) == 1 else "all", pair, k)
                settings = dataclasses.replace(
                    run.config.refine, name=name, pair=pair, prototypes=(k,), actions=actions, seeds=seeds
                )
                done[k] = refined(run, splits, settings)
                print(f"{name} measured", file=sys.stderr, flush=True)
            found.append({"pair": pair, "score": score, "prototype": k, "table": done.get(k)})
    return found


def chosen(run: Run, splits: Splits, seeds: int) -> dict:
    """Every action on validation images; nothing of the test set is kept."""
    tables, found = acted(run, splits, ACTIONS, SCORES, seeds), []
    for each in tables:
        table = each.pop("table")
        if table:
            gained = less(table, "plain", "validation_accuracy")
            each["gained"] = {name: difference["mean"] for name, difference in gained.items()}
            each["before"] = table["before"]["validation_accuracy"]
            each["plain"] = table["strategies"]["plain"]["mean"]["validation_accuracy"]
            each["covered"] = table["repair"]["covered"]
        found.append(each)
    best = {
        f"{action}, {score}": statistics.mean(values)
        for score in SCORES
        for action in ACTIONS
        if (values := [each["gained"][action] for each in found if each["score"] == score and "gained" in each])
    }
    return {"prototypes": found, "best": dict(sorted(best.items(), key=lambda item: -item[1]))}


def tested(run: Run, splits: Splits, seeds: int) -> dict:
    """What was frozen, and leaving samples out, on the test set."""
    action, score = FROZEN
    found = {"acted": acted(run, splits, (action,), (score,), seeds), "left_out": []}
    for each in run.explanation.pairs[: _PAIRS.value]:
        pair = each.a, each.b
        name = called(run, "out", pair)
        settings = dataclasses.replace(run.config.refine, name=name, pair=pair, strategies=LEAVING_OUT, seeds=seeds)
        found["left_out"].append({"pair": pair, "table": refined(run, splits, settings)})
        print(f"{name} measured", file=sys.stderr, flush=True)
    return found


def told_of_choice(found: dict) -> str:
    """The choice as text: points of validation accuracy less plain."""
    lines = ["validation accuracy less plain fine-tuning, points"]
    for each in found["prototypes"]:
        lines.append(f"  {' and '.join(each['pair'])}, {each['score']}: prototype {each['prototype']}")
        if "gained" in each:
            lines[-1] += (
                f", covers {100 * each['covered']:.0f} %; before {100 * each['before']:.2f} %, plain "
                f"{100 * each['plain']:.2f} %"
            )
            lines.append("    " + ", ".join(f"{name} {100 * value:+.2f}" for name, value in each["gained"].items()))
    lines.append(
        "  mean over pairs: " + ", ".join(f"{name} {100 * value:+.2f}" for name, value in found["best"].items())
    )
    return "\n".join(lines)


def told_of_test(found: dict) -> str:
    """The tables as text: test accuracy, and its differences."""
    lines = []
    for part, own in (("acted", (FROZEN[0],)), ("left_out", ("curated",))):
        for each in found[part]:
            table = each["table"]
            lines.append(f"{' and '.join(each['pair'])}, {part}, prototype {each.get('prototype', 'by curation')}")
            if table is None:
                lines.append("  no prototype wavered")
                continue
            lines.append(f"  {'before':<18}{reached(table['before'])}")
            for name, entry in table["strategies"].items():
                lines.append(f"  {name:<18}{reached(entry['mean']) if entry['applicable'] else entry['reason']}")
            for row in table["differences"]:
                if row["strategy"] in own:
                    lines.append(f"    {row['strategy']} less {row['against']}: {in_points(row['accuracy'])}")
    return "\n".join(lines)


def reached(measures: dict) -> str:
    """Accuracy on the test set and confusions of the pair."""
    return f"{100 * measures['accuracy']:.2f} %, {measures['pair_confusions']:.1f} of the pair confused"


def in_points(difference: dict) -> str:
    """A paired difference in points, with what its interval is worth."""
    text = f"{100 * difference['mean']:+.2f}"
    if difference["low"] is None:
        return text
    p = "" if difference["holm"] is None else f", p {difference['holm']:.2g} after Holm"
    span = f"[{100 * difference['low']:+.2f}, {100 * difference['high']:+.2f}]"
    return f"{text} {span}{p}, {100 * difference['detectable']:.2f} would be seen"


def main(_):
    """Trains and explains where that is not done, acts, prints, writes."""
    refuse_flags(NOT_HERE)
    keep_programs("default")
    if not flags.FLAGS["config"].present:
        flags.FLAGS.config = str(DEFAULT)
    config: Config = program.config()
    if not flags.FLAGS.workdir or config.data.plant or config.refine.acts:
        raise InputError(
            f"--workdir is {flags.FLAGS.workdir!r}, data.plant {config.data.plant!r}, refine.pick "
            f"{config.refine.pick!r}; allowed here: a folder, no cue, nothing picked; give --workdir alone"
        )
    splits = dataset_of(config, program.data_dir())
    steps = [step for step in pipeline.needed_steps(["explain"]) if step != "contact_sheet"]
    run = quiet_runs.made(config, pathlib.Path(flags.FLAGS.workdir), splits, steps)
    if _MEASURE.value == "choose":
        found = chosen(run, splits, _SEEDS.value or 2)
        print(told_of_choice(found))
    else:
        found = tested(run, splits, _SEEDS.value or 6)
        print(told_of_test(found))
    if _JSON.value:
        pathlib.Path(_JSON.value).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    start(main, program.parse)
