"""The benchmark's figures as text."""

import statistics


def stages(report: dict) -> str:
    """The table of stages, memory and differences."""
    sides = report["sides"]
    lines = [
        *_machine(report["machine"]),
        f"{sides['ours']['images']} images of {'x'.join(map(str, sides['ours']['image_shape']))}; batches: ours "
        f"{sides['ours']['batch_size']}, baseline {sides['baseline']['batch_size']} (tuned)",
        "",
        f"{'stage':<20} {'ours: cold':>11} {'warm':>9} {'[least, most]':>18} {'baseline: cold':>15} {'warm':>9} "
        f"{'[least, most]':>18} {'ratio':>7}  images/s: ours, baseline",
    ]
    for name, row in report["stages"].items():
        ratio = f"{row['ratio']:.2f}" if row["ratio"] else "-"
        rates = [row.get(f"{side}_images_per_second") for side in ("ours", "baseline")]
        rate = f"  {rates[0]:,.0f}, {rates[1]:,.0f}" if all(rates) else ""
        mark = "" if row["equal_work"] else "*"
        lines.append(
            f"{name + mark:<20} {_times(row, 'ours', 11)} {_times(row, 'baseline', 15)} {ratio:>7}{rate}".rstrip()
        )
    lines += [
        "",
        "seconds; ratio = baseline / ours, medians of the warm runs; * not equal work, see --help",
        "",
        "Parts of explain",
    ]
    for side, parts in report["stages"]["explain"]["parts"].items():
        told = ", ".join(f"{name} {seconds:.2f}" for name, seconds in parts.items())
        lines.append(f"  {side:<9} {told}; {report['stages']['explain']['iterations'][side]} iterations of K-means")
    memory = report["memory"]
    lines += ["", "Peak resident memory in MB"]
    for side, peak in memory["explain"].items():
        lines.append(f"  {side:<9} {peak / 1e6:,.0f} after explain, {memory['at_start'][side] / 1e6:,.0f} before")
    lines += ["", "Differences, given the same upstream outputs (relative to the largest value unless named otherwise)"]
    for name, members in report["differences"].items():
        lines.append(f"  {name:<19} {', '.join(f'{key} {_figure(value)}' for key, value in members.items())}")
    return "\n".join(lines)


def growth(report: dict) -> str:
    """The table of growth."""
    found = report["growth"]
    lines = [
        *_machine(report["machine"]),
        "",
        f"{'images':>8} {'prototypes':>11} {'checkpoints':>12} {'ours s':>9} {'baseline s':>11} {'ratio':>7}",
    ]
    for row in found["explain"]:
        ours, theirs = row["ours"]["explain"], row["baseline"]["explain"]
        lines.append(
            f"{row['images']:>8} {row['prototypes']:>11} {row['checkpoints']:>12} {ours:>9.2f} {theirs:>11.2f} "
            f"{theirs / ours:>7.2f}"
        )
        for side in ("ours", "baseline"):
            parts = {name: seconds for name, seconds in row[side].items() if name != "explain"}
            lines.append(f"{'':>8}   {side}: {', '.join(f'{name} {seconds:.2f}' for name, seconds in parts.items())}")
    lines += [
        "",
        f"PCA of {found['pca'][0]['rows']} rows",
        f"{'channels':>8} {'ours s':>9} {'baseline s':>11} {'ratio':>7}",
    ]
    for row in found["pca"]:
        ratio = row["baseline"] / row["ours"]
        lines.append(f"{row['channels']:>8} {row['ours']:>9.2f} {row['baseline']:>11.2f} {ratio:>7.2f}")
    return "\n".join(lines)


def _machine(machine):
    """Two lines: when, where and with what."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return [
        f"{machine['date']}, {machine['processor']}, {machine['cores']} cores (load {machine['load_before']:.1f})",
        f"revision {(machine['revision'] or 'unknown')[:7]}, {versions}",
    ]


def _times(row, side, width):
    cold, warm = row.get(f"{side}_cold_seconds"), row.get(f"{side}_seconds")
    if cold is None:
        return f"{'-':>{width}} {'':>9} {'':>18}"
    if not warm:
        return f"{cold:>{width}.3f} {'':>9} {'':>18}"
    return f"{cold:>{width}.3f} {statistics.median(warm):>9.3f} {f'[{min(warm):.3f}, {max(warm):.3f}]':>18}"


def _figure(value):
    if isinstance(value, list):
        return "[" + ", ".join(map(_figure, value)) + "]"
    return "undefined" if value is None else f"{value:.3g}"
