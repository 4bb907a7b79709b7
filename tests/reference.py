"""What a run writes after its evidence, computed once more the plain way (DESIGN 2.5 to 2.9): no part of the package.

Rows are taken out and put in one by one, models are fitted to the rows themselves, and every penalty, fold, permutation
and resample is tried in turn. Only what is random or another library's is shared with the package: the seeded draws,
made by the same calls of NumPy's Generator, and scikit-learn's HDBSCAN, which sees the same rows in the same order.

`mapping`, `curated`, `explanation` and `refinement` are named after the files whose content they return.
"""

import itertools
import json
import pathlib

import numpy as np
import scipy.stats
from sklearn.cluster import HDBSCAN
from sklearn.linear_model import Ridge
from sklearn.metrics import confusion_matrix, roc_auc_score

FOLDS, FRACTIONS = 5, np.logspace(1, -5, 9)
PERMUTATIONS = RESAMPLES = 200
FOLD_STREAM, NULL_STREAM, BOOTSTRAP_STREAM = range(3)
NOTHING_TO_EXPLAIN = 1e-4  # confidence squared, per held-out row
STILL, STEP = 1e-3, 1e-3  # of confidence: what is no change, and what two changes must differ by
ALIVE = 1e-6  # deviation of a column that has one, as a share of its root mean square


class Arrays:
    """The arrays of a run up to its evidence, and its settings.

    Attributes:
      folder: of the run.
      names: of the classes.
      settings: the member `config` of config.json.
    """

    def __init__(self, folder: pathlib.Path, names):
        self.folder, self.names = folder, list(names)
        self.settings = json.loads((folder / "config.json").read_text())["config"]
        self.seed, self.explain = self.settings["seed"], self.settings["explain"]
        for name in ("labels", "steps", "assignments", "intensity", "confidence"):
            setattr(self, name, np.load(folder / f"{name}.npy"))
        self.contributions = np.load(folder / "contributions.npz")["mean"].astype(float)
        self.centroids = np.load(folder / "prototypes.npz")["centroids"].astype(float)
        held_out = np.load(folder / "validation.npz")
        self.held_labels, self.held = held_out["labels"], held_out["confidence"].astype(float)
        self.classes, self.prototypes = range(len(self.names)), range(self.intensity.shape[2])
        self.intervals = range(len(self.steps) - 1)
        self.area = np.array([[np.sum(places == k) for k in self.prototypes] for places in self.assignments])
        self.dP, self.dY = (
            [values[t + 1].astype(float) - values[t].astype(float) for t in self.intervals]
            for values in (self.intensity, self.confidence)
        )
        self.folds = folds(self.labels, self.seed)


def folds(labels, seed):
    """Each class dealt over the folds by a draw of its own."""
    result = np.zeros(len(labels), int)
    for c in np.unique(labels):
        rows = np.flatnonzero(labels == c)
        dealt = np.random.default_rng([seed, FOLD_STREAM, int(c)]).permutation(np.arange(len(rows)) % FOLDS)
        result[rows] = dealt
    return result


# Groups, DESIGN 2.5


def group(dY, explain):
    """Ids of one set of rows, and how HDBSCAN had to be helped."""
    size = explain["min_cluster_size"] or max(5, len(dY) // 100)
    ids = np.array([-1 if np.max(np.abs(row)) >= STILL else -2 for row in dY], int)
    changed = np.flatnonzero(ids == -1)
    if len(changed) < size:
        return ids, "none"
    if len(changed) < 2 * size:
        ids[changed] = 0
        return ids, "too_few"
    steps = [tuple(int(step) for step in np.rint(dY[i] / STEP)) for i in changed]
    distinct = sorted(set(steps))
    copies = [min(steps.count(row), max(size, explain["min_samples"])) for row in distinct]
    seen = [row for row, count in zip(distinct, copies, strict=True) for _ in range(count)]
    for single, name in ((False, ""), (True, "single"), (True, "all")):
        cluster = HDBSCAN(
            min_cluster_size=size,
            min_samples=min(explain["min_samples"], len(seen)),
            allow_single_cluster=single,
            copy=True,
        )
        clusters = [0] * len(seen) if name == "all" else cluster.fit_predict(np.array(seen) * STEP).tolist()
        label = {}
        for row in distinct:
            votes = [c for c, other in zip(clusters, seen, strict=True) if other == row]
            label[row] = min(set(votes), key=lambda c, votes=votes: (-votes.count(c), c))
        if sum(label[row] >= 0 for row in steps) >= size:
            break
    sizes = {c: sum(label[row] == c for row in steps) for c in set(label.values()) if c >= 0}
    first = {c: min(row for row in distinct if label[row] == c) for c in sizes}
    number = {c: n for n, c in enumerate(sorted(sizes, key=lambda c: (-sizes[c], first[c])))}
    ids[changed] = [number.get(label[row], -1) for row in steps]
    return ids, name


def group_all(dY, labels, names, explain):
    """Ids of all rows, and texts on the fallbacks: class by class, or all together."""
    if explain["group_by"] == "global":
        ids, fallback = group(dY, explain)
        return ids, [f"all: {fallback}"] * (fallback != "")
    ids, fallbacks = np.full(len(dY), -1), []
    for c, name in enumerate(names):
        rows = np.flatnonzero(labels == c)
        ids[rows], fallback = group(dY[rows], explain)
        fallbacks += [f"{name}: {fallback}"] * (fallback != "")
    return ids, fallbacks


def groups(run):
    """groups.npy, and the fallbacks of each interval."""
    found = [group_all(dY, run.labels, run.names, run.explain) for dY in run.dY]
    return np.array([ids for ids, _ in found]), [fallbacks for _, fallbacks in found]


def group_members(ids, labels, group_by):
    """The rows of each group: those of one class with one id, or with one id if groups are global."""
    keys = [(int(c) if group_by == "class" else 0, int(i)) for c, i in zip(labels, ids, strict=True) if i >= 0]
    return [np.flatnonzero((ids == i) & ((labels == c) | (group_by == "global"))) for c, i in sorted(set(keys))]


# Mapping, DESIGN 2.6


def fit_means(dP, dY, members, penalty):
    """The paper's fit, on means of groups: coefficients and penalty, NaN without a group."""
    if not members:
        return np.full((dP.shape[1], dY.shape[1]), np.nan), np.nan
    pi, changes = (np.array([values[rows].mean(0) for rows in members]) for values in (dP, dY))
    penalty = penalty or 0.01 * np.mean([row @ row for row in pi])
    if penalty == 0:
        return np.zeros((dP.shape[1], dY.shape[1])), 0.0
    return Ridge(penalty, fit_intercept=False, solver="svd").fit(pi, changes).coef_.T, penalty


def fit_groups(run, t, ids, keep):
    """The paper's fit to some rows of an interval."""
    rows = np.flatnonzero(keep)
    members = group_members(ids[rows], run.labels[rows], run.explain["group_by"])
    return fit_means(run.dP[t][rows], run.dY[t][rows], members, run.explain["ridge_lambda"])


def groups_of_folds(run, t):
    """Ids from the training rows of each fold alone; -1 for those held out."""
    found = np.full((FOLDS, len(run.labels)), -1)
    for f in range(FOLDS):
        train = run.folds != f
        found[f, train] = group_all(run.dY[t][train], run.labels[train], run.names, run.explain)[0]
    return found


def r2_groups(run, t, ids_of_folds, keep):
    """Held-out R2 of the paper's fit to some rows, with the groups of the training rows."""
    sse = sst = scored = 0
    for f, ids in enumerate(ids_of_folds):
        train, held = keep & (run.folds != f), keep & (run.folds == f)
        beta, _ = fit_groups(run, t, ids, train)
        if np.isnan(beta).any():
            continue
        for i in np.flatnonzero(held):
            sse += np.sum((run.dY[t][i] - run.dP[t][i] @ beta) ** 2)
            sst += np.sum((run.dY[t][i] - run.dY[t][train].mean(0)) ** 2)
            scored += 1
    return 1 - sse / sst if scored and sst >= NOTHING_TO_EXPLAIN * scored else np.nan


def remainder(values, parts, total, train):
    """What a mean, and a slope on `total` if given, of the training rows of each part leave of all its rows."""
    left = values.copy()
    for part in np.unique(parts):
        rows = np.flatnonzero(parts == part)
        fitted = rows[train[rows]]
        if not len(fitted):
            continue
        mean = values[fitted].mean(0)
        left[rows] -= mean
        if total is not None:
            about = total[fitted] - total[fitted].mean()
            if np.sqrt(about @ about) > ALIVE * np.sqrt(np.sum((total[fitted] - total[rows].mean()) ** 2)):
                slope = about @ (values[fitted] - mean) / (about @ about)
                left[rows] -= np.outer(total[rows] - total[fitted].mean(), slope)
    return left


def errors_of(dP, dY, parts, total, train, helds):
    """For each set of held-out rows, SSE [A,Q] of the ridge of every penalty and [Q] without dP; dY is [n,Q,M]."""
    n, versions, outputs = dY.shape
    x = remainder(dP, parts, total, train)
    y = remainder(dY.reshape(n, -1), parts, total, train)
    deviation = np.sqrt(np.mean(x[train] ** 2, axis=0))
    alive = deviation > ALIVE * np.sqrt(np.mean((dP - dP.mean(0))[train] ** 2, axis=0))
    x = x[:, alive] / deviation[alive]
    gram, products = x[train].T @ x[train], x[train].T @ y[train]
    fits = [np.linalg.solve(gram + q * train.sum() * np.eye(len(gram)), products) for q in FRACTIONS]

    def sse(error):
        return np.sum(error.reshape(-1, versions, outputs) ** 2, axis=(0, 2))

    return [(np.array([sse(y[held] - x[held] @ weights) for weights in fits]), sse(y[held])) for held in helds]


def nested(dP, dY, parts, total, of_fold):
    """Held-out SSE [Q] with dP, its penalty chosen inside the training folds, and without; the best fraction of dY."""
    versions = dY.shape[1]
    with_dP, without, outer, inner = np.zeros(versions), np.zeros(versions), 0.0, {}
    for f, g in itertools.combinations(range(FOLDS), 2):
        train = (of_fold != f) & (of_fold != g)
        (inner[g, f], _), (inner[f, g], _) = errors_of(dP, dY, parts, total, train, [of_fold == f, of_fold == g])
    for f in range(FOLDS):
        ((held, alone),) = errors_of(dP, dY, parts, total, of_fold != f, [of_fold == f])
        chosen = np.argmin(sum(inner[f, g] for g in range(FOLDS) if g != f), axis=0)
        with_dP += held[chosen, np.arange(versions)]
        without += alone
        outer = outer + held[:, 0]
    return with_dP, without, FRACTIONS[np.argmin(outer)]


def permuted(dY, run):
    """dY [N,M] and what the null makes of it, rows exchanged within the class: [N,1+PERMUTATIONS,M]."""
    versions = np.repeat(dY[:, None], PERMUTATIONS + 1, axis=1)
    for c in run.classes:
        rows = np.flatnonzero(run.labels == c)
        by_fold = np.concatenate([rows[run.folds[rows] == f] for f in range(FOLDS)])
        rng = np.random.default_rng([run.seed, NULL_STREAM, c])
        draws = rng.permuted(np.tile(np.arange(len(rows)), (PERMUTATIONS + 1, 1)), axis=1)
        for version in range(1, PERMUTATIONS + 1):
            versions[by_fold, version] = dY[by_fold[draws[version]]]
    return versions


def fit_rows(x, y, penalty):
    """Ridge on columns of unit deviation: coefficients in the units of x, intercept, and which have a deviation."""
    mean, deviation = x.mean(0), x.std(0)
    alive = deviation > ALIVE * np.sqrt(np.mean(x**2, axis=0))
    scaled = (x - mean)[:, alive] / deviation[alive]
    weights = np.linalg.solve(scaled.T @ scaled + penalty * np.eye(alive.sum()), scaled.T @ (y - y.mean(0)))
    beta = np.zeros((x.shape[1], y.shape[1]))
    beta[alive] = weights / deviation[alive, None]
    return beta, y.mean(0) - mean @ beta, alive


def ratio(sse, reference, sst, rows):
    """The share of `reference` that is explained; NaN where there was next to nothing to explain."""
    return 1 - sse / reference if sst[0] / rows >= NOTHING_TO_EXPLAIN else np.full(np.shape(sse), np.nan)


def summary(null):
    """Mean, 95th and 99th percentile."""
    return np.array([null.mean(), *np.percentile(null, [95, 99])])


def fit_samples(run, dP, dY, versions, subset):
    """Our fit to the samples of some classes, beside their mean alone: the figures of one interval by name."""
    rows = np.flatnonzero(np.isin(run.labels, subset))
    sse, sst, fraction = nested(dP[rows], versions[rows], np.zeros(len(rows)), None, run.folds[rows])
    beta, intercept, estimable = fit_rows(dP[rows], dY[rows], fraction * len(rows))
    r2 = ratio(sse, sst, sst, len(rows))
    return {
        **{"beta": beta, "intercept": intercept, "estimable": estimable, "ridge_lambda": fraction * len(rows)},
        **{"r2": r2[0], "r2_null": summary(r2[1:]), "sst": sst},
    }


def gains(run, dP, versions, subset, fit):
    """What prototypes explain of what the class leaves open, and of what class and total saliency do."""
    rows = np.flatnonzero(np.isin(run.labels, subset))
    total = np.array([sum(dP[i, k] * run.area[i, k] for k in run.prototypes) for i in rows])
    labels, of_fold, x, y = run.labels[rows], run.folds[rows], dP[rows], versions[rows]
    sst = fit["sst"]
    sse_beside, sse_total, _ = nested(x, y[:, :1], labels, total, of_fold)
    over_total = {
        "r2_total": ratio(sse_total[0], sst[0], sst, len(rows)),
        "gain_total": ratio(sse_beside[0], sse_total[0], sst, len(rows)),
    }
    if len(subset) == 1:
        # The mean of the class is the mean.
        return over_total | {"gain": fit["r2"], "gain_null": fit["r2_null"]}
    sse_within, sse_class, _ = nested(x, y, labels, None, of_fold)
    gain = ratio(sse_within, sse_class, sst, len(rows))
    return over_total | {
        "r2_class": ratio(sse_class[0], sst[0], sst, len(rows)),
        "gain": gain[0],
        "gain_null": summary(gain[1:]),
    }


def bootstrap(run, dP, dY, subset, penalty):
    """Coefficients [R,K,M] refitted to rows drawn with replacement within each class."""
    rngs = {c: np.random.default_rng([run.seed, BOOTSTRAP_STREAM, c]) for c in subset}
    refits = []
    for _ in range(RESAMPLES):
        drawn = []
        for c, rng in rngs.items():
            rows = np.flatnonzero(run.labels == c)
            drawn += rows[rng.integers(len(rows), size=len(rows))].tolist()
        refits.append(fit_rows(dP[drawn], dY[drawn], penalty)[0])
    return np.array(refits)


def mapping_of_samples(run, t):
    """The members of mapping.npz that our fit gives, of one interval."""
    dP, dY = run.dP[t], run.dY[t]
    versions, everybody = permuted(dY, run), tuple(run.classes)
    fits = [fit_samples(run, dP, dY, versions, subset) for subset in (everybody, *((c,) for c in run.classes))]
    for fit, subset in zip(fits, (everybody, *((c,) for c in run.classes)), strict=True):
        fit |= gains(run, dP, versions, subset, fit)
    fit, *by_class = fits
    refits = bootstrap(run, dP, dY, everybody, fit["ridge_lambda"])
    agree = np.mean([np.sign(refit) == np.sign(fit["beta"]) for refit in refits], axis=0)
    names = ("beta", "intercept", "ridge_lambda", "estimable", "r2", "r2_class", "r2_total", "gain", "gain_total")
    of_classes = ("beta", "intercept", "ridge_lambda", "r2", "gain_total", "gain_null")
    return {
        **{name: fit[name] for name in (*names, "gain_null")},
        **{f"{name}_by_class": np.array([each[name] for each in by_class]) for name in of_classes},
        "sign_agreement": np.where(fit["beta"] == 0, 0, agree),
    }


def mapping_of_groups(run, t, ids):
    """The members of mapping.npz that the paper's fit gives, of one interval."""
    keeps = [np.full(len(run.labels), True), *(run.labels == c for c in run.classes)]
    ids_of_folds = groups_of_folds(run, t)
    fits = [fit_groups(run, t, ids, keep) for keep in keeps]
    ratios = [r2_groups(run, t, ids_of_folds, keep) for keep in keeps]
    return {
        "beta_groups": fits[0][0],
        "beta_groups_by_class": np.array([beta for beta, _ in fits[1:]]),
        "ridge_lambda_groups": fits[0][1],
        "ridge_lambda_groups_by_class": np.array([penalty for _, penalty in fits[1:]]),
        "r2_groups": ratios[0],
        "r2_groups_by_class": np.array(ratios[1:]),
    }


def mapping(run, ids):
    """mapping.npz."""
    of_interval = [mapping_of_samples(run, t) | mapping_of_groups(run, t, ids[t]) for t in run.intervals]
    return {name: np.array([each[name] for each in of_interval]) for name in of_interval[0]}


# Pairs, DESIGN 2.8


def soft_confusion(run):
    """Mean final confidence in each class over the validation samples of each class."""
    return np.array([[run.held[-1][run.held_labels == a, b].mean() for b in run.classes] for a in run.classes])


def ranked_pairs(run):
    """All pairs, most confused first."""
    confusion = soft_confusion(run)
    pairs = itertools.combinations(run.classes, 2)
    return sorted(pairs, key=lambda pair: -(confusion[pair] + confusion[pair[::-1]]))


def refined_pair(run):
    """The pair that is named, or else most confused."""
    named = sorted(run.names.index(name) for name in run.settings["refine"]["pair"])
    return tuple(named) if named else ranked_pairs(run)[0]


def pair_scores(run, pair):
    """How each prototype moved confidence between two classes: figures by name, of all intervals."""
    a, b = pair
    rows = np.flatnonzero(np.isin(run.labels, pair))
    found = {name: [] for name in ("s", "ci", "stable", "r2", "r2_null")}
    for t in run.intervals:
        dP = run.dP[t].copy()
        if run.explain["pair_target"] == "margin":
            margins = np.load(run.folder / "pair_intensity.npy").astype(float)
            dP[rows] = margins[t + 1] - margins[t]
        fit = fit_samples(run, dP, run.dY[t], permuted(run.dY[t], run), pair)
        deviation = dP[rows].std(0)
        s = deviation * (fit["beta"][:, a] - fit["beta"][:, b])
        refits = bootstrap(run, dP, run.dY[t], pair, fit["ridge_lambda"])
        refits = deviation * (refits[:, :, a] - refits[:, :, b])
        found["s"].append(s)
        found["ci"].append(np.percentile(refits, [5, 95], axis=0).T)
        found["stable"].append((np.mean(np.sign(refits) == np.sign(s), axis=0) >= 0.9) & (s != 0))
        found["r2"].append(fit["r2"])
        found["r2_null"].append(fit["r2_null"][1])
    found = {name: np.array(values) for name, values in found.items()}
    return found | {"counted": found["r2"] > found["r2_null"]}


def all_scores(run):
    """The scores of every pair that is analysed."""
    pair, ranked = refined_pair(run), ranked_pairs(run)
    if run.explain["pair_target"] == "margin":
        return {pair: pair_scores(run, pair)}
    return {key: pair_scores(run, key) for key in {pair, *ranked[: run.explain["max_pairs"]]}}


def wavering(scores, k):
    """Score of a prototype, and how often its sign turned over all intervals."""
    s, score, flips = scores["s"][:, k], 0.0, 0
    sure = [s[t] for t in range(len(s)) if scores["counted"][t] and scores["stable"][t, k]]
    for before, after in itertools.pairwise(sure):
        score += min(abs(before), abs(after)) if before * after < 0 else 0
    for before, after in itertools.pairwise(value for value in s if value != 0):
        flips += before * after < 0
    return score, flips


def saliency_share(run, t):
    """Each prototype's share of the saliency of each sample [N,K]; 0 where there is none."""
    mass = np.abs(run.intensity[t].astype(float)) * run.area
    return np.array([row / row.sum() if row.sum() > 0 else 0 * row for row in mass])


def curated(run, scores):
    """curated.npz."""
    pair = refined_pair(run)
    own, share = scores[pair], saliency_share(run, -1)
    score = {k: wavering(own, k)[0] for k in run.prototypes}
    taken, skipped, left_out = [], [], set()
    for k in sorted((k for k in score if score[k] > 0), key=lambda k: -score[k]):
        contain = {i for i, label in enumerate(run.labels) if label in pair and share[i, k] >= 0.15}
        lost = [sum(run.labels[i] == c for i in left_out | contain) / np.sum(run.labels == c) for c in pair]
        if max(lost) > run.settings["refine"]["max_left_out"]:
            skipped.append(k)
        else:
            taken.append(k)
            left_out |= contain
    return {
        "pair": np.array(pair),
        **{
            f"pair_{name}": own[key] for name, key in (("s", "s"), ("s_ci", "ci"), ("r2", "r2"), ("r2_null", "r2_null"))
        },
        "prototypes": np.array(taken, int),
        "scores": np.array([score[k] for k in taken]),
        "left_out": np.array(sorted(left_out), int),
        "skipped": np.array(skipped, int),
    }


# Explanation, DESIGN 2.7


def salient(run, t):
    """Which prototypes stand out in which samples, bool [N,K]."""
    share = saliency_share(run, t)
    of_area = run.area / run.area.sum(1, keepdims=True)
    # A share of exactly one and a half times that of the area counts, however it is rounded.
    return (share > 0.05) & (share >= 1.5 * of_area * (1 - 1e-12)) & (share > 0)


def specialised(run, ids, c):
    """Records of one class on prototypes that tell two of its groups apart."""
    records = []
    for t in run.intervals:
        own = run.labels == c
        found = sorted(set(ids[t][own & (ids[t] >= 0)].tolist()))
        if len(found) < 2:
            continue
        stands_out = salient(run, t + 1)
        for k in run.prototypes:
            shares = {g: np.mean(stands_out[own & (ids[t] == g), k]) for g in found}
            most, least = max(found, key=lambda g: (shares[g], -g)), min(found, key=lambda g: (shares[g], g))
            if shares[most] >= 0.6 and shares[least] <= 0.2:
                records.append(
                    {
                        **{"interval": t, "prototype": k, "most": most, "most_share": shares[most]},
                        **{"least": least, "least_share": shares[least]},
                    }
                )
    return records


def supports(run, mapped, c):
    """Records of one class on prototypes whose change moved its confidence, with a sign that is sure."""
    records = []
    beta = mapped["beta" if run.explain["fit"] == "samples" else "beta_groups"][:, :, c]
    for t in run.intervals:
        of_interval = []
        for k in run.prototypes:
            # In float32, as intensity is kept.
            support = (run.intensity[t + 1, :, k] - run.intensity[t, :, k]).std(dtype=float) * beta[t, k]
            same = beta[t, k] * mapped["beta"][t, k, c] > 0
            agreement = mapped["sign_agreement"][t, k, c] if same else 0.0
            if np.isnan(mapped["r2"][t]) or np.isnan(support) or support == 0 or agreement < 0.9:
                continue
            # What hardly an image of the class has, one in twenty, does not support it.
            if np.mean(run.area[run.labels == c, k] > 0) < 0.05:
                continue
            after, before = run.contributions[t + 1, c, k, c], run.contributions[t, c, k, c]
            of_interval.append(
                {
                    **{"interval": t, "prototype": k, "support": support, "agreement": agreement},
                    **{
                        "contribution": after,
                        "change": after - before,
                        "disagrees": support * after < 0 and abs(after) >= 0.01,
                    },
                }
            )
        records += sorted(of_interval, key=lambda record: -abs(record["support"]))[:12]
    return records


def prototype_record(run, k):
    """What explanation.json says of one prototype."""
    distance = [np.sqrt(np.sum((run.centroids[k] - other) ** 2)) for other in run.centroids]
    nearest = sorted((j for j in run.prototypes if j != k), key=lambda j: distance[j])[:3]
    evidence = [run.contributions[-1, c, k, c] for c in run.classes]
    best = sorted((c for c in run.classes if evidence[c] > 0), key=lambda c: -evidence[c])[:3]
    return {
        "id": k,
        "count": run.area[:, k].sum(),
        "share": run.area[:, k].sum() / run.area.sum(),
        "supports": [{"name": run.names[c], "contribution": evidence[c]} for c in best],
        "nearest": [{"prototype": j, "distance": distance[j]} for j in nearest],
    }


def told_apart(run, a, b):
    """The step from which the validation samples of two classes are told apart to the end; None if they are not."""
    rows = np.isin(run.held_labels, (a, b))
    apart = None
    for step, held in reversed(list(zip(run.steps.tolist(), run.held, strict=True))):
        if roc_auc_score(run.held_labels[rows] == a, held[rows, a] - held[rows, b]) < 0.95:
            break
        apart = step
    return apart


def pair_record(run, pair, scores):
    """What explanation.json says of two classes."""
    a, b = pair
    soft, taken = soft_confusion(run), run.held[-1].argmax(1)
    evidence = run.contributions[-1]
    separating = [
        {"prototype": k, "evidence_a": evidence[a, k, a] - evidence[a, k, b]}
        | {"evidence_b": evidence[b, k, b] - evidence[b, k, a]}
        for k in run.prototypes
    ]
    separating.sort(key=lambda each: -abs(each["evidence_a"]) - abs(each["evidence_b"]))
    record = {
        "a": run.names[a],
        "b": run.names[b],
        "told_apart": told_apart(run, a, b),
        "soft_confusions": [soft[a, b], soft[b, a]],
        "confusions": [np.sum((run.held_labels == c) & (taken == other)) for c, other in (pair, pair[::-1])],
        "separating": separating[:5],
        **dict.fromkeys(("uncertain", "counted", "r2", "r2_null")),
    }
    if pair not in scores:
        return record
    own = scores[pair]
    uncertain = []
    for k in run.prototypes:
        score, flips = wavering(own, k)
        if score > 0:
            values = {"s": own["s"][:, k].tolist(), "stable": own["stable"][:, k].tolist()}
            uncertain.append({"prototype": k, "score": score, "flips": flips} | values)
    uncertain.sort(key=lambda each: -each["score"])
    return record | {"uncertain": uncertain} | {name: own[name].tolist() for name in ("counted", "r2", "r2_null")}


def interval_record(run, t, ids, fallbacks, mapped):
    """What explanation.json says of one interval."""
    null = mapped["gain_null"][t]
    return {
        "from": run.steps[t],
        "to": run.steps[t + 1],
        "groups": len(group_members(ids, run.labels, run.explain["group_by"])),
        "noise": np.sum(ids == -1),
        "unchanged": np.sum(ids == -2),
        "fallbacks": sorted(set(fallbacks)),
        **{name: mapped[name][t] for name in ("r2", "r2_class", "r2_total", "r2_groups", "gain", "gain_total")},
        "null": null.tolist(),
        "above_null": mapped["gain"][t] > null[1],
    }


def explanation(run, ids, fallbacks, mapped, scores):
    """explanation.json, unrounded, with NaN for what is null there."""
    final = salient(run, -1)
    return {
        "schema": 1,
        "classes": run.names,
        "steps": run.steps.tolist(),
        "group_by": run.explain["group_by"],
        "fit": run.explain["fit"],
        "prototypes": [prototype_record(run, k) for k in run.prototypes],
        "per_class": [
            {
                "name": name,
                "samples": np.sum(run.labels == c),
                "shared": [k for k in run.prototypes if np.mean(final[run.labels == c, k]) >= 0.8],
                "specialised": specialised(run, ids, c),
                "support": supports(run, mapped, c),
            }
            for c, name in enumerate(run.names)
        ],
        "pairs": [pair_record(run, pair, scores) for pair in ranked_pairs(run)],
        "intervals": [interval_record(run, t, ids[t], fallbacks[t], mapped) for t in run.intervals],
    }


# What deserves a look first, DESIGN 2.12


def evidence_per_location(features, weights, places):
    """What one location of a prototype adds to each logit, less the mean over the classes: [T][K,M]."""
    found = []
    for sums, head in zip(features["sums"].astype(float), weights, strict=True):
        logits = [(total / count / places) @ head for total, count in zip(sums, features["counts"], strict=True)]
        found.append(np.array([each - np.mean(each) for each in logits]))
    return np.array(found)


def ranking(run, evidence):
    """The members of ranking.npz that no image is looked at anew for, from evidence [T,K,M]."""
    final, found = evidence[-1], {}
    label = [int(np.argmax(row)) for row in final]
    course = np.array([[at[k, label[k]] for k in run.prototypes] for at in evidence])
    found["evidence"], found["course"], found["label"] = final, course, label
    found["ranked"] = [run.area[:, k].sum() / run.assignments.size >= 0.0005 for k in run.prototypes]
    of_class = [run.area[run.labels == c] for c in run.classes]
    rates = np.array([area.mean(0) for area in of_class]).T
    found["exclusivity"] = [max(rate) / sum(rate) for rate in rates]
    found["exclusive_label"] = [int(np.argmax(rate)) for rate in rates]
    found["present"] = np.array([(area > 0).mean(0) for area in of_class]).T
    by_place = [np.sum(run.assignments == k, axis=0).ravel() for k in run.prototypes]
    found["entropy"] = [scipy.stats.entropy(each) / np.log(len(each)) for each in by_place]
    stays = [[all(course[t:, k] >= course[-1, k] / 2) for t in range(len(course))] for k in run.prototypes]
    found["since"] = [each.index(True) for each in stays]
    scores = [max(final[k]) for k in run.prototypes if found["ranked"][k]]
    return found | {"top_over_median": max(scores) / np.median(scores)}


def right_without(features, places, prototypes, weights, bias, labels):
    """Whether each image [n] is right with each prototype left out of the mean, and last with none: bool [n,K+1]."""
    found = np.zeros((len(labels), prototypes + 1), bool)
    for i, (image, where, label) in enumerate(zip(features, places, labels, strict=True)):
        for k in range(prototypes + 1):
            kept = image[where != k]
            found[i, k] = np.argmax((kept.mean(0) @ weights if len(kept) else 0) + bias) == label
    return found


# Refinement, DESIGN 2.9


def outcome(confusion, names, pair):
    """What follows from a confusion matrix."""
    confusion = np.array(confusion)
    recall = [row[c] / row.sum() if row.sum() else 0.0 for c, row in enumerate(confusion)]
    a, b = pair
    return {
        "accuracy": sum(confusion[c, c] for c in range(len(names))) / confusion.sum(),
        "pair_confusions": confusion[a, b] + confusion[b, a],
        "worst_class": {"class": names[int(np.argmin(recall))], "accuracy": min(recall)},
        "confusion": confusion.tolist(),
    }


def measures(seeds):
    """The measures of every seed, by name."""
    return {
        "accuracy": np.array([seed["accuracy"] for seed in seeds]),
        "pair_confusions": np.array([seed["pair_confusions"] for seed in seeds], float),
        "worst_class": np.array([seed["worst_class"]["accuracy"] for seed in seeds]),
    }


def interval_of(values):
    """Mean and 95 % interval by Student's t, if there is one, and the smallest difference of a power of 80 %.

    There are fewer seeds here than p-values are told of.
    """
    assert len(values) < 6
    untold = {"p": None, "holm": None}
    if len(values) < 2 or len(set(values.tolist())) == 1:
        return {"mean": values.mean(), "low": None, "high": None, "detectable": None} | untold
    error = scipy.stats.sem(values)
    low, high = scipy.stats.t.interval(0.95, len(values) - 1, loc=values.mean(), scale=error)
    seen = (high - low) / 2 + scipy.stats.t.ppf(0.8, len(values) - 1) * error
    return {"mean": values.mean(), "low": low, "high": high, "detectable": seen} | untold


def refinement(run, confusions, curated):
    """refinement.json from the confusion matrices [M][M] of every seed, by strategy that was run.

    `curated` is what `curated` says of the run's own pair.
    """
    left_out = curated["left_out"]
    pair = refined_pair(run)
    test = np.load(run.folder / "test.npz")
    before = confusion_matrix(test["labels"], test["confidence"][-1].argmax(1), labels=list(run.classes))
    table = {}
    for name in run.settings["refine"]["strategies"]:
        seeds = [
            {"seed": seed} | outcome(confusion, run.names, pair) for seed, confusion in enumerate(confusions[name])
        ]
        values = measures(seeds)
        table[name] = {
            "applicable": True,
            "phases": 1 + name.count(">"),
            "seeds": seeds,
            "mean": {measure: value.mean() for measure, value in values.items()},
            "std": {measure: np.sqrt(np.sum((v - v.mean()) ** 2) / (len(v) - 1)) for measure, v in values.items()},
        }
    rows = []
    for name, entry in table.items():
        for other in ("full", "random") if ">" not in name else ("full>full", "random>full"):
            if other in table and other != name:
                one, two = measures(entry["seeds"]), measures(table[other]["seeds"])
                rows.append(
                    {"strategy": name, "against": other, "phases": entry["phases"]}
                    | {measure: interval_of(one[measure] - two[measure]) for measure in one}
                )
    return {
        "schema": 1,
        "settings": run.settings["refine"],
        "pair": [run.names[c] for c in pair],
        "curated": {name: list(curated[name]) for name in ("prototypes", "scores", "left_out", "skipped")},
        "seeds": run.settings["refine"]["seeds"],
        "before": outcome(before, run.names, pair),
        "strategies": table,
        "differences": rows,
        "left_out": {run.names[c]: sum(run.labels[i] == c for i in left_out) for c in pair},
    }
