"""Reading the ledger: which prototypes moved a confidence, when, and from which class it was taken (DESIGN 2.10).

NumPy only; the arrays are those of ledger.npz and account.npy (DESIGN section 4).
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from i2x_jax.explanation.rivals import column_of
from i2x_jax.explanation.uncertainty import flips

# Entries that are named one by one, as far as three decimals show them; the rest is one line.
NAMED, SHOWN = 5, 5e-4


@dataclasses.dataclass(frozen=True)
class Entry:
    """What one prototype added to the mean confidence in a class, over the samples of that class.

    Attributes:
      prototype: its id.
      change: in confidence; `seeing` and `weighing` add up to it.
      seeing: because the features at its places changed.
      weighing: because the head changed what it makes of them.
      error: standard error of `change` over the samples, all of one training run.
      rival: name of the class that it was mostly taken from, or given to if `change` is negative.
      taken: what that class lost by it, in confidence; negative if it gained.
      present: share of the class's samples that have the prototype, 0 to 1.
    """

    prototype: int
    change: float
    seeing: float
    weighing: float
    error: float
    rival: str
    taken: float
    present: float


@dataclasses.dataclass(frozen=True)
class IntervalLedger:
    """The ledger of a class between two checkpoints: what its mean confidence was, became, and by what.

    Attributes:
      from_step: where it begins.
      to_step: where it ends.
      before: mean confidence of the class's samples in their class, 0 to 1.
      after: the same at the end; `before`, the entries' changes and `bias` add up to it.
      entries: all K, by the size of their change, largest first.
      bias: what belongs to no place.
    """

    from_step: int
    to_step: int
    before: float
    after: float
    entries: tuple[Entry, ...]
    bias: float

    def __str__(self) -> str:
        """A few lines: the change, the largest entries, and the rest in one."""
        change = self.after - self.before
        verb = "rose" if change >= 0 else "fell"
        steps = f"{self.from_step} to {self.to_step}"
        lines = [f"steps {steps}: {verb} by {abs(change):.3f}, {self.before:.3f} to {self.after:.3f}"]
        named = [each for each in self.entries[:NAMED] if abs(each.change) >= SHOWN]
        for each in named:
            verb = "taken from" if each.taken >= 0 else "given to"
            lines.append(
                f"  {each.change:+.3f} ± {each.error:.3f}  prototype {each.prototype:>3}"
                f"  (seen {each.seeing:+.3f}, weighed {each.weighing:+.3f}; {verb} {each.rival} {abs(each.taken):.3f};"
                f" in {100 * each.present:.0f} % of the images)"
            )
        rest = self.entries[len(named) :]
        lines.append(f"  {sum(each.change for each in rest):+.3f}  {len(rest)} other prototypes")
        lines.append(f"  {self.bias:+.3f}  the bias, which belongs to no place")
        return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class ClassLedger:
    """The ledger of a class: all intervals, one after the other.

    Attributes:
      name: of the class.
      intervals: T-1 of them, or the one that was asked for.
    """

    name: str
    intervals: tuple[IntervalLedger, ...]

    def __str__(self) -> str:
        """The intervals, a few lines each."""
        return "\n".join([f"Mean confidence in {self.name!r} of its own images", *map(str, self.intervals)])

    __repr__ = __str__


@dataclasses.dataclass(frozen=True)
class PairEntry:
    """What one prototype added to the difference of two confidences `Y_a - Y_b`.

    Attributes:
      prototype: its id.
      in_a: over the samples of a, in each interval, in confidence.
      in_b: over the samples of b.
      score: how far it wavered: where its account over the samples of both changed its sign from one interval to the
        next, the smaller of the two amounts, added up.
    """

    prototype: int
    in_a: tuple[float, ...]
    in_b: tuple[float, ...]
    score: float


@dataclasses.dataclass(frozen=True)
class ImageAccount:
    """The account of one image: its confidence in its label, interval by interval.

    Attributes:
      steps: int `[T]`.
      confidence: float `[T]`, of the label.
      account: float `[T-1, K+1]`, by prototype, and last what belongs to no place; adds up to the changes.
    """

    steps: np.ndarray
    confidence: np.ndarray
    account: np.ndarray

    def __str__(self) -> str:
        """A line an interval: the confidence, and the largest entries."""
        lines = [f"step {self.steps[0]}: {self.confidence[0]:.3f}"]
        for t, row in enumerate(self.account):
            largest = np.argsort(-np.abs(row[:-1]), kind="stable")[:NAMED]
            largest = largest[np.abs(row[largest]) >= SHOWN]
            named = ", ".join(f"{row[k]:+.3f} by {k}" for k in largest)
            rest = row.sum() - row[largest].sum()
            reached = f"step {self.steps[t + 1]}: {self.confidence[t + 1]:.3f}"
            lines.append(f"{reached} = {named or 'nothing'}, {rest:+.3f} by the rest")
        return "\n".join(lines)

    __repr__ = __str__


def class_ledger(
    label: int,
    classes: Sequence[str],
    steps: np.ndarray,
    ledger: Mapping[str, np.ndarray],
    kept: np.ndarray,
    confidence: np.ndarray,
    error: np.ndarray,
    present: np.ndarray,
) -> ClassLedger:
    """The ledger of one class.

    Args:
      label: the class.
      classes: M names.
      steps: int [T].
      ledger: `seeing`, `weighing` [T-1,M,K,R] and `bias` [T-1,M,R] of ledger.npz.
      kept: int [R], the rivals of the class.
      confidence: [T], mean confidence in the class over its samples.
      error: [T-1,K] of `account_error`.
      present: [K], share of the class's samples that have each prototype.
    """
    seeing, weighing = (np.asarray(ledger[name][:, label], np.float64) for name in ("seeing", "weighing"))
    both = seeing + weighing
    column, intervals = int(np.flatnonzero(kept == label)[0]), []
    for t in range(len(both)):
        own = both[t, :, column]
        others = both[t].copy()
        others[:, column] = 0
        # What one class gains the others lose: the rival is the one that moved most the other way.
        rivals = np.where(own >= 0, others.argmin(1), others.argmax(1))
        entries = tuple(
            Entry(
                prototype=int(k),
                change=float(own[k]),
                seeing=float(seeing[t, k, column]),
                weighing=float(weighing[t, k, column]),
                error=float(error[t, k]),
                rival=classes[kept[rivals[k]]],
                taken=float(-others[k, rivals[k]]),
                present=float(present[k]),
            )
            for k in np.argsort(-np.abs(own), kind="stable")
        )
        bias = float(ledger["bias"][t, label, column])
        intervals.append(
            IntervalLedger(
                int(steps[t]), int(steps[t + 1]), float(confidence[t]), float(confidence[t + 1]), entries, bias
            )
        )
    return ClassLedger(classes[label], tuple(intervals))


def account_error(account: np.ndarray) -> np.ndarray:
    """Standard errors [T-1,K] of the mean account [T-1,n,K+1] over n samples; 0 of a single one."""
    account = np.asarray(account, np.float64)[:, :, :-1]
    n = account.shape[1]
    return account.std(axis=1, ddof=1) / np.sqrt(n) if n > 1 else np.zeros((len(account), account.shape[2]))


def pair_ledger(
    ledger: Mapping[str, np.ndarray], rivals: np.ndarray, counts: np.ndarray, a: int, b: int
) -> tuple[PairEntry, ...]:
    """Which prototypes moved `Y_a - Y_b`, and which wavered; the largest mean change first.

    Args:
      ledger: `seeing`, `weighing` [T-1,M,K,R].
      rivals: int [M,R].
      counts: int [M], samples of each class.
      a: a class.
      b: another, which is kept of the samples of a, and a of its own.
    """

    def moved(label):
        seeing, weighing = (np.asarray(ledger[name][:, label], np.float64) for name in ("seeing", "weighing"))
        both = seeing + weighing
        return both[:, :, column_of(rivals, label, a)] - both[:, :, column_of(rivals, label, b)]

    of_a, of_b = moved(a), moved(b)  # [T-1,K]
    mean = (counts[a] * of_a + counts[b] * of_b) / max(counts[a] + counts[b], 1)
    size = np.abs(of_a).sum(0) + np.abs(of_b).sum(0)
    return tuple(
        PairEntry(int(k), tuple(of_a[:, k].tolist()), tuple(of_b[:, k].tolist()), wavering(mean[:, k]))
        for k in np.argsort(-size, kind="stable")
    )


def wavering(amounts: np.ndarray) -> float:
    """How far amounts [T-1] waver: at each change of sign, zeros passed over, the smaller of the two is added."""
    moved = amounts[amounts != 0]
    return float(np.where(flips(moved), np.minimum(abs(moved[:-1]), abs(moved[1:])), 0).sum())


def agreement(described: np.ndarray, accounted: np.ndarray) -> tuple[float, float]:
    """How far two rankings of the prototypes agree: Spearman's correlation, and the share of equal signs.

    Args:
      described: [K], say the deviation of a prototype's change times its coefficient.
      accounted: [K], what the ledger says.

    Returns:
      Both NaN where fewer than three prototypes are compared, or one side is the same for all.
    """
    described, accounted = np.asarray(described, np.float64), np.asarray(accounted, np.float64)
    known = np.isfinite(described) & np.isfinite(accounted)
    one, other = described[known], accounted[known]
    if len(one) < 3 or np.ptp(one) == 0 or np.ptp(other) == 0:
        return float("nan"), float("nan")
    from scipy.stats import spearmanr

    return float(spearmanr(one, other).statistic), float((np.sign(one) == np.sign(other)).mean())
