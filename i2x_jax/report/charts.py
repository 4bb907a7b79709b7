"""The charts of the report as Vega-Lite specifications; the page fills in the rows of those that follow a choice.

Text and lines take the colour of the page (`currentColor`), so that the same chart serves light, dark and paper.
"""

from collections.abc import Sequence
from typing import Any

import altair as alt

ROWS = alt.NamedData(name="rows")
# Okabe and Ito (2008), without the yellow that paper swallows; each series also has a shape of its own.
PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
MUTED = "#8a8f98"
Spec = dict[str, Any]


def learning(rows: Sequence[dict], steps: Sequence[str]) -> Spec:
    """Accuracy and mean confidence at the checkpoints: rows of step, series, value in 0..1."""
    return _lines(rows, steps, "share, 0 to 1", "Accuracy and mean confidence in the label at each checkpoint")


def changes(rows: Sequence[dict], intervals: Sequence[str]) -> Spec:
    """How many samples changed: rows of interval, kind (grouped, noise, unchanged), samples, groups."""
    kinds = ["in a group", "noise", "unchanged"]
    bars = (
        _chart(rows)
        .mark_bar()
        .encode(
            x=_x("interval", intervals, "steps from–to"),
            y=alt.Y("samples:Q", title="training images"),
            color=alt.Color(
                "kind:N",
                scale=alt.Scale(domain=kinds, range=[PALETTE[0], PALETTE[4], "#c9ccd1"]),
                legend=_legend(),
            ),
            order=alt.Order("order:Q"),
            tooltip=["interval:N", "kind:N", "samples:Q", "groups:Q"],
        )
    )
    return _finished(bars, "Images in a group, in none, and unchanged, in each interval", height=220)


def apart(rows: Sequence[dict], classes: Sequence[str], steps: Sequence[str]) -> Spec:
    """When pairs of classes were told apart: rows of a, b, step (or 'never'), link."""
    axis = {"labelLimit": 90}
    cells = (
        _chart(rows)
        .mark_rect(cursor="pointer", stroke="currentColor", strokeOpacity=0.2)
        .encode(
            x=alt.X("a:N", sort=list(classes), title=None, axis=alt.Axis(orient="top", labelAngle=0, **axis)),
            y=alt.Y("b:N", sort=list(classes), title=None, axis=alt.Axis(**axis)),
            color=alt.Color(
                "step:O",
                sort=[*steps, "never"],
                # Light is early and dark late; what was never told apart stands out from the scale.
                scale=alt.Scale(domain=[*steps, "never"], range=[*_viridis(len(steps)), "#D55E00"]),
                legend=_legend("told apart from step", columns=5),
            ),
            tooltip=["a:N", "b:N", "step:N"],
        )
    )
    return _finished(
        cells, "The step from which each pair of classes is told apart", height=max(200, 26 * len(classes))
    )


def fidelity(rows: Sequence[dict], intervals: Sequence[str]) -> Spec:
    """Gains beside the null: rows of interval, series, value."""
    series = ["gain over class mean", "gain over total saliency", "null of the first, 95 %"]
    base = _chart(rows).encode(
        x=_x("interval", intervals, "steps from–to"),
        y=alt.Y("value:Q", title="gain (1 = all of the rest explained)"),
        color=alt.Color(
            "series:N",
            sort=series,
            scale=alt.Scale(domain=series, range=[PALETTE[0], PALETTE[1], MUTED]),
            legend=_legend(),
        ),
        shape=alt.Shape(
            "series:N",
            sort=series,
            scale=alt.Scale(domain=series, range=["circle", "diamond", "stroke"]),
            legend=_legend(),
        ),
        tooltip=["interval:N", "series:N", alt.Tooltip("value:Q", format=".3f")],
    )
    chart = alt.layer(_zero(), base.mark_point(filled=False, size=110, opacity=1, strokeWidth=3))
    return _finished(chart, "Gain of the prototypes in each interval, beside its null", height=230)


def refinement(rows: Sequence[dict], strategies: Sequence[str]) -> Spec:
    """Accuracy less that of the random control: rows of strategy, mean, low, high in percentage points (or None)."""
    y = alt.Y("strategy:N", sort=list(strategies), title=None, axis=alt.Axis(labelLimit=140))
    x = alt.X("mean:Q", title="accuracy less the control's, percentage points", axis=alt.Axis(tickCount=6))
    figures = [alt.Tooltip(f"{name}:Q", format="+.2f") for name in ("mean", "low", "high")]
    zero = alt.Chart(_values([{"zero": 0}])).mark_rule(strokeDash=[4, 3], color="currentColor").encode(x="zero:Q")
    means = _chart(rows).mark_point(filled=True, size=90, opacity=1, color=PALETTE[0])
    layers = [zero, means.encode(x=x, y=y, tooltip=["strategy:N", "against:N", *figures])]
    # A single seed has no interval, and a layer without figures would spoil the scale.
    if known := [row for row in rows if row["low"] is not None]:
        layers.insert(1, _chart(known).mark_rule(strokeWidth=2, color=PALETTE[0]).encode(x="low:Q", x2="high:Q", y=y))
    description = "Accuracy of each strategy less that of its random control, with 95 % intervals"
    return _finished(alt.layer(*layers), description, height=30 * len(strategies))


def accuracies(rows: Sequence[dict], strategies: Sequence[str], before: float) -> Spec:
    """Test accuracy of every seed and its mean: rows of strategy, seed, accuracy in per cent, mean."""
    y = alt.Y("strategy:N", sort=list(strategies), title=None, axis=alt.Axis(labelLimit=140))
    base = _chart(rows)
    x = alt.X("accuracy:Q", title="test accuracy, %", scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=6))
    chart = alt.layer(
        alt.Chart(_values([{"before": before}]))
        .mark_rule(strokeDash=[4, 3], color="currentColor")
        .encode(x="before:Q"),
        base.mark_tick(color=MUTED, thickness=2).encode(x=x, y=y, tooltip=["strategy:N", "seed:O", "accuracy:Q"]),
        base.transform_filter("datum.seed == 0")
        .mark_point(filled=True, size=80, opacity=1, color=PALETTE[0])
        .encode(x=alt.X("mean:Q"), y=y, tooltip=["strategy:N", alt.Tooltip("mean:Q", format=".2f")]),
    )
    return _finished(
        chart, "Test accuracy after each strategy, every seed and the mean; dashed: before", height=26 * len(strategies)
    )


def over_time(steps: Sequence[str], title: str, description: str) -> Spec:
    """Lines over the checkpoints, to be filled with rows of step, series, value."""
    return _lines(None, steps, title, description)


def heat(times: Sequence[str], time_title: str, title: str, description: str) -> Spec:
    """Prototypes by time, to be filled with rows of time, prototype, order, value, faint, mark, note."""
    base = alt.Chart(ROWS)
    x = _x("time", times, time_title)
    y = alt.Y(
        "prototype:N", sort=alt.EncodingSortField("order", op="min"), title="prototype", axis=alt.Axis(labelLimit=120)
    )
    cells = base.mark_rect(stroke="currentColor", strokeOpacity=0.12).encode(
        x=x,
        y=y,
        color=alt.Color(
            "value:Q",
            # The square root lets small effects show beside large ones.
            scale=alt.Scale(scheme="blueorange", type="sqrt"),
            legend=alt.Legend(title=title, orient="top", gradientLength=160, titleLimit=260),
        ),
        opacity=alt.condition("datum.faint", alt.value(0.3), alt.value(1)),
        tooltip=[alt.Tooltip("prototype:N"), alt.Tooltip("time:N"), alt.Tooltip("value:Q", format="+.4f"), "note:N"],
    )
    marks = (
        base.transform_filter("datum.mark")
        .mark_point(shape="diamond", size=70, filled=True, opacity=1, color="black", stroke="white", strokeWidth=1)
        .encode(x=x, y=y)
    )
    return _finished(alt.layer(cells, marks), description, height=20)


def waterfall() -> Spec:
    """What was added to a confidence, one entry after the other: to be filled with rows of label, order, start, end.

    And of `value`, what the tooltip says, and `kind`: rise, fall, or sum for the last.
    """
    kinds = {"rise": PALETTE[1], "fall": PALETTE[0], "sum": MUTED}
    bars = (
        alt.Chart(ROWS)
        .mark_bar(stroke="currentColor", strokeOpacity=0.5, strokeWidth=0.5)
        .encode(
            x=alt.X("start:Q", title="change of confidence", axis=alt.Axis(tickCount=5)),
            x2="end:Q",
            y=alt.Y(
                "label:N",
                sort=alt.EncodingSortField("order", op="min"),
                title=None,
                axis=alt.Axis(labelLimit=190),
            ),
            color=alt.Color("kind:N", scale=alt.Scale(domain=list(kinds), range=list(kinds.values())), legend=None),
            tooltip=["label:N", alt.Tooltip("value:Q", format="+.3f")],
        )
    )
    return _finished(alt.layer(bars), "What was added to a confidence, one entry after the other", height=20)


def stacked(steps: Sequence[str]) -> Spec:
    """A confidence at each checkpoint as a stack of what was added so far: rows of step, series, order, value."""
    bars = (
        alt.Chart(ROWS)
        .mark_bar(stroke="currentColor", strokeOpacity=0.25, strokeWidth=0.5)
        .encode(
            x=_x("step", steps, "step"),
            y=alt.Y("value:Q", title="confidence", stack="zero"),
            color=alt.Color("series:N", sort=None, scale=alt.Scale(domain=[], range=PALETTE), legend=_legend()),
            order=alt.Order("order:Q"),
            tooltip=["series:N", "step:N", alt.Tooltip("value:Q", format="+.3f")],
        )
    )
    return _finished(alt.layer(bars, _zero()), "What prototypes had added to the confidence by each checkpoint", 240)


def _lines(rows, steps, title, description):
    # Equal domains let the two legends be one.
    series = list(dict.fromkeys(row["series"] for row in rows or ()))
    base = (alt.Chart(ROWS) if rows is None else _chart(rows)).encode(
        x=_x("step", steps, "step"),
        y=alt.Y("value:Q", title=title),
        color=alt.Color("series:N", sort=None, scale=alt.Scale(domain=series, range=PALETTE), legend=_legend()),
        shape=alt.Shape("series:N", sort=None, scale=alt.Scale(domain=series), legend=_legend()),
        tooltip=["series:N", "step:N", alt.Tooltip("value:Q", format=".3f")],
    )
    lines = alt.layer(base.mark_line(strokeWidth=2), base.mark_point(filled=True, size=60, opacity=1))
    return _finished(lines, description, height=240)


def _chart(rows):
    return alt.Chart(_values(rows))


def _values(rows):
    return alt.InlineData(values=list(rows))


def _zero():
    return alt.Chart(_values([{"zero": 0}])).mark_rule(color="currentColor", opacity=0.5).encode(y="zero:Q")


def _x(field, order, title):
    return alt.X(
        f"{field}:O", sort=list(order), scale=alt.Scale(domain=list(order)), title=title, axis=alt.Axis(labelAngle=0)
    )


def _legend(title=None, columns=3):
    return alt.Legend(title=title, orient="top", columns=columns, labelLimit=200, symbolOpacity=1)


def _finished(chart, description, height) -> Spec:
    ink = {f"{part}Color": "currentColor" for part in ("label", "title", "domain", "tick", "grid")}
    chart = chart.properties(width="container", height=height, description=description).configure(
        background="transparent",
        font="system-ui, sans-serif",
        view=alt.ViewConfig(stroke=None),
        axis=alt.AxisConfig(
            **ink,
            gridOpacity=0.12,
            domainOpacity=0.4,
            tickOpacity=0.4,
            labelFontSize=12,
            titleFontSize=12,
            titleFontWeight="normal",
        ),
        legend=alt.LegendConfig(
            labelColor="currentColor",
            titleColor="currentColor",
            labelFontSize=12,
            titleFontSize=12,
            titleFontWeight="normal",
        ),
        autosize=alt.AutoSizeParams(type="fit-x", contains="padding"),
    )
    with alt.data_transformers.enable("default", consolidate_datasets=False, max_rows=None):
        spec = chart.to_dict()
    # Which release of the schema: the bundled library says the same, and an address would only look like a request.
    spec.pop("$schema")
    return spec


def _viridis(count):
    """Colours of the scale `viridis` (light first), which people with any colour vision can order."""
    anchors = [
        "#fde725",
        "#b5de2b",
        "#6ece58",
        "#35b779",
        "#1f9e89",
        "#26828e",
        "#31688e",
        "#3e4989",
        "#482878",
        "#440154",
    ]
    return [anchors[round(place * (len(anchors) - 1) / max(count - 1, 1))] for place in range(count)]
