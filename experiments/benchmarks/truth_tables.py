"""Tables in Markdown of what `truth.py` has measured."""

import collections
import statistics

from i2x_jax import parts as scenes


def rows_of(header: list[str], rows: list[list]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def listed(values) -> str:
    """Values with commas, a dash for what there is not."""
    return ", ".join("–" if each is None else f"{each:g}" for each in values)


def cues(done: dict) -> str:
    """The table of `cues`: a row for each planted set and strength, its seeds in order."""
    groups = collections.defaultdict(list)
    for each in done.values():
        groups[each["sizes"]["name"], each["plant"], each["strength"]].append(each)
    twins = {(each["sizes"]["name"], each["seed"]): each for each in done.values() if each["plant"] == "twin"}
    header = [
        *("data, cue", "runs", "unbiased accuracy, %", "less the twin's, points", "first is the cue's"),
        *("class right", "rank by evidence", "by uncertainty", "by exclusivity"),
        *("purity", "recall", "alarm with audit", "alarm without", "top over median"),
    ]
    rows = []
    for (name, plant, strength), each in groups.items():
        title = f"{name}, {plant}" + (f" {strength:g}" if strength else "")
        count, top = len(each), listed(round(run["top_over_median"], 1) for run in each)
        if plant == "twin":
            accuracy = listed(round(100 * run["accuracy"]["test"], 1) for run in each)
            alarms = [sum(run["alarms"][kind] > 0 for run in each) for kind in ("audit", "evidence")]
            told = [f"{alarm} of {count} false" for alarm in alarms]
            rows.append([title, count, f"{accuracy} (test)", *["–"] * 8, *told, top])
            continue
        accuracy = [100 * run["accuracy"]["unbiased"] for run in each]
        less = [
            value - 100 * twins[name, run["seed"]]["accuracy"]["test"]
            for value, run in zip(accuracy, each, strict=True)
            if (name, run["seed"]) in twins
        ]
        hits = [sum(run["alarm_hits"][kind] for run in each) for kind in ("audit", "evidence")]
        right = [run["class_right"] for run in each if run["class_right"] is not None]
        rows.append(
            [
                title,
                count,
                listed(round(value, 1) for value in accuracy),
                listed(round(value, 1) for value in less),
                f"{sum(run['first_is_cue'] for run in each)} of {count}",
                f"{sum(right)} of {len(right)}",
                *(listed(run["ranks"][score] for run in each) for score in ("evidence", "uncertainty", "exclusivity")),
                median_of(each, "best_purity"),
                median_of(each, "best_recall"),
                *(f"{hit} of {count}" for hit in hits),
                top,
            ]
        )
    return rows_of(header, rows)


def median_of(runs: list[dict], key: str) -> str:
    """The median of a figure over the runs that have it."""
    values = [run[key] for run in runs if run[key] is not None]
    return f"{statistics.median(values):.2f}" if values else "–"


# Columns of the tables of `parts`, by the key of their figures: of drops one by one, and of what is left of them.
SINGLE = {
    "pooled": "pooled",
    "class_parts": "class parts",
    "r2": "R2",
    "foreign_sign": "foreign sign",
    "own_table": "own cells of the table",
}
CHOSEN = {"kept": "kept by the first three", "removed": "changed without them", "distracted": "on the neutral shape"}
TARGET = {"target_signs": "signs by target"}


def parts(done: dict) -> str:
    """The tables of `parts`: for each network and target a row a claim, its mean over seeds and the range."""
    texts = []
    for network in dict.fromkeys(each["network"] for each in done.values()):
        runs = [each for each in done.values() if each["network"] == network]
        accuracy = listed(round(100 * run["accuracy"], 1) for run in runs)
        title = f"{network}, seeds {listed(run['seed'] for run in runs)}, test accuracy {accuracy} %"
        for target, columns in (("logit", SINGLE), ("margin", SINGLE), ("logit", CHOSEN), ("margin", CHOSEN | TARGET)):
            about = f"drop of the {target}" if columns is SINGLE else f"items chosen by claims about the {target}"
            rows = [
                [claim, *(spread(run[target][claim][column] for run in runs) for column in columns)]
                for claim in runs[0][target]
            ]
            texts += [f"{title}, {about}:\n", rows_of(["claim", *columns.values()], rows), ""]
        right = spread(run["pairs_right"] for run in runs)
        texts += [
            f"{network}: the first separating prototype lies on a part of one class alone: {right} of 45 pairs",
            "",
        ]
        rows = [
            [name, *(spread(run["since"][name][key] for run in runs) for key in ("order", "off"))]
            for name in runs[0]["since"]
        ]
        header = ["claim", "order of the half steps", "median distance, log2"]
        texts += [f"{network}: since when each part counts\n", rows_of(header, rows), ""]
    return "\n".join(texts).rstrip()


def late(done: dict) -> str:
    """The table of `late`: since when the late part counts, and which share of its last value it had before."""
    rows = []
    for each in done.values():
        part = scenes.SHAPES.index(each["late"])
        for name, steps in each["half_steps"].items():
            others = [step for number, step in enumerate(steps) if number != part and step == step]
            rows.append(
                [
                    f"{each['network']} {each['seed']}, {each['late']}, from step {each['from_step']} of "
                    f"{each['last_step']}",
                    name,
                    f"{steps[part]:.0f}",
                    f"{statistics.median(others):.0f}, {max(others):.0f}",
                    f"{100 * each['before'][name]:.0f}",
                ]
            )
    header = ["run, late part", "claim", "half step of the late part", "of the others: median, latest", "before it, %"]
    return rows_of(header, rows)


def spread(values) -> str:
    """The mean, and the least and the most."""
    values = list(values)
    if None in values:
        return "–"
    return f"{statistics.mean(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def runs(done: dict) -> str:
    """The tables of `runs`: deletion by fill, what is left under other weights, and other starts of K-means."""
    texts = []
    for each in done.values():
        name = f"{each['sizes']['name']}, seed {each['seed']}, test accuracy {100 * each['accuracy']:.1f} %"
        claims = list(each["deletion"][0]["agreement"])
        rows = [
            [
                fill["fill"],
                fill["images"],
                *(between(fill["agreement"][claim]) for claim in claims),
                between(fill["given_ink"]),
                *(between(fill["above"][claim]) for claim in ("ink", "intensity")),
            ]
            for fill in each["deletion"]
        ]
        header = ["fill", "images", *claims, "contribution given ink", "less ink", "less intensity"]
        texts += [f"{name}: deletion in the pixels\n", rows_of(header, rows), ""]
        rows = [
            [f"{stage['layers']} of {stage['of']} layers", between(stage["contributions"]), between(stage["maps"])]
            for stage in each["randomisation"]
        ]
        rows.append(["untrained", *(between(each["untrained"][kind]) for kind in ("contributions", "maps"))])
        texts += [
            f"{name}: what is left under other weights\n",
            rows_of(["weights", "contributions", "saliency"], rows),
            "",
        ]
        stable = each["stability"]
        kept = listed(round(min(first["overlaps"]), 2) for first in stable["first"])
        texts += [
            f"{name}: other starts of K-means: adjusted Rand index {listed(round(v, 2) for v in stable['rand'])}, by "
            f"evidence {listed(round(v, 2) for v in stable['rand_by_evidence'])}; places of the first five kept {kept}",
            "",
        ]
    return "\n".join(texts).rstrip()


def between(interval: dict | None) -> str:
    """A mean and its interval."""
    return "–" if interval is None else f"{interval['mean']:.2f} [{interval['low']:.2f}, {interval['high']:.2f}]"


TABLES = {"cues": cues, "parts": parts, "late": late, "runs": runs}
