"""The plots of a report, each with the sentence that it shows."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, PercentFormatter

from recsys_batch.report.drawing import FIRST, GRID, INK, MUTED, SECOND, THIRD, WARN, make_axes, to_svg
from recsys_batch.report.facts import RunFacts
from recsys_batch.tables.run_manifest import STEP_NAMES

_TUNING_METRIC = re.compile(r"tuning\.recall\.nprobe_(\d+|None)\.overfetch_([\d.]+)")
_POPULARITY_BANDS = ((0.0, 0.01, "top 1 %"), (0.01, 0.05, "1 to 5"), (0.05, 0.2, "5 to 20"), (0.2, 0.5, "20 to 50"), (0.5, 1.0, "rest"))


@dataclass(frozen=True)
class Plot:
    """An <svg> element, its title, and a sentence that says what it shows."""

    title: str
    svg: str
    caption: str


class _TuningPoint(NamedTuple):
    """A setting of the search that tuning measured; ``nprobe`` as the metric's name has it."""

    nprobe: str
    overfetch: float
    cost_ms: float
    recall: float


def draw_plots(facts: RunFacts) -> list[Plot]:
    """Draw the plots that the run has data for."""
    kinds = (_plot_timeline, _plot_tuning, _plot_scores, _plot_reach, _plot_lorenz, _plot_bands, _plot_churn, _plot_segments)
    return [plot for plot in (draw(facts) for draw in kinds) if plot is not None]


def _plot_timeline(facts: RunFacts) -> Plot | None:
    """Plot the steps one after the other, split into Python, writing, and the rest (Spark, the driver)."""
    metrics = facts.run.metrics
    done = [step for step in STEP_NAMES if f"{step}.seconds" in metrics]
    if not done:
        return None
    seconds = {step: metrics[f"{step}.seconds"] for step in done}
    total = sum(seconds.values())
    with make_axes(2.6) as (figure, plot):
        start = 0.0
        for row, step in enumerate(done):
            parts = _split_seconds(metrics, step)
            left = start
            for (name, part), colour in zip(parts.items(), (FIRST, SECOND, GRID), strict=True):
                plot.barh(row, part, left=left, height=0.62, color=colour, label=name if row == 0 else None)
                left += part
            _label_bar(plot, row, start, start + seconds[step], total, _format_seconds(seconds[step]))
            start += seconds[step]
        plot.set_yticks(range(len(done)), done)
        plot.tick_params(axis="y", length=0, labelcolor=INK)
        plot.invert_yaxis()
        plot.set_xlim(0, total * 1.08)
        plot.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _format_seconds(value)))
        plot.grid(visible=False, axis="y")
        figure.legend(loc="outside upper left", ncols=3, handlelength=1.0, columnspacing=1.2)
    longest = max(done, key=lambda step: seconds[step])
    caption = f"{_format_seconds(total)} in all; {longest} took {seconds[longest] / total:.0%} of it"
    return Plot("Where the night's time went", to_svg(figure, "timeline"), caption)


def _label_bar(plot: Axes, row: int, begin: float, end: float, total: float, text: str) -> None:
    """Label a bar: behind it where there is room, else before it, else at its end within."""
    if end < 0.8 * total:
        plot.text(end, row, f" {text}", va="center", color=INK)
    else:
        plot.text(begin if begin > 0.2 * total else end, row, f"{text} ", va="center", ha="right", color=INK)


def _split_seconds(metrics: Mapping[str, float], step: str) -> dict[str, float]:
    """Split a step's seconds: in Python, writing files, and the rest; the first two are spread over the cores that worked."""
    total, cores = metrics[f"{step}.seconds"], max(metrics.get(f"{step}.cores", 1.0), 1.0)
    python = min(metrics.get(f"{step}.python_seconds", 0.0) / cores, total)
    writing = min(metrics.get(f"{step}.write_seconds", 0.0) / cores, total - python)
    return {"Python": python, "writing": writing, "Spark and the driver": total - python - writing}


def _plot_tuning(facts: RunFacts) -> Plot | None:
    """Plot recall of sampled users over the time of a search, a line per over-fetch in order of cost."""
    metrics = facts.run.metrics
    points = [
        _TuningPoint(match[1], float(match[2]), 1000 * metrics[key.replace("tuning.recall", "tuning.seconds_per_1000_users")], recall)
        for key, recall in metrics.items()
        if (match := _TUNING_METRIC.fullmatch(key))
    ]
    if len(points) < 2:
        return None
    overfetches = sorted({point.overfetch for point in points})
    with make_axes() as (figure, plot):
        for overfetch in overfetches:
            line = sorted((point for point in points if point.overfetch == overfetch), key=lambda point: point.cost_ms)
            label = f"over-fetch {overfetch:g}" if len(overfetches) > 1 else None
            plot.plot([point.cost_ms for point in line], [point.recall for point in line], marker="o", label=label)
            for point in (line[0], line[-1]):
                at = (point.cost_ms, point.recall)
                plot.annotate(point.nprobe, at, (5, -10), textcoords="offset points", color=MUTED, fontsize=8)
        if "limit.knn_recall" in metrics:
            plot.axhline(metrics["limit.knn_recall"], color=WARN, linestyle="--", linewidth=1.2, label="the gate")
        for point in points:
            if point.nprobe == f"{metrics.get('nprobe', -1):.0f}" and point.overfetch == metrics.get("overfetch"):
                label = f"chosen: {point.nprobe} lists, recall {point.recall:.3f}"
                ring = {"markersize": 12, "markerfacecolor": "none", "markeredgecolor": INK}
                plot.plot(point.cost_ms, point.recall, "o", label=label, **ring)  # type: ignore[arg-type]
        plot.set(xlabel="ms of one core per 1,000 users", ylabel="recall against exact search", xscale="log", ylim=(-0.03, 1.06))
        # Every tick of a decade has no room for its number.
        plot.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        plot.xaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "235" else ""))
        figure.legend(loc="outside upper left", ncols=2, columnspacing=1.2)
    lists = f" by {metrics['nprobe']:.0f} of {metrics['nlist']:.0f} lists" if metrics.get("nlist") else ""
    caption = f"recall {metrics.get('knn_recall', float('nan')):.4f}{lists}"
    return Plot("Recall, and what it costs", to_svg(figure, "tuning"), caption + "; numbers at the points are lists searched")


def _plot_scores(facts: RunFacts) -> Plot | None:
    """Plot scores by rank: the middle 80 % of users."""
    ranks, scores = np.asarray(facts.sample["rank"]), np.asarray(facts.sample["score"], dtype=np.float64)
    order = np.argsort(ranks, kind="stable")
    distinct_ranks, starts = np.unique(ranks[order], return_index=True)
    bands = np.array([np.quantile(part, (0.1, 0.5, 0.9)) for part in np.split(scores[order], starts[1:])])
    with make_axes() as (figure, plot):
        plot.fill_between(distinct_ranks, bands[:, 0], bands[:, 2], color=FIRST, alpha=0.18, linewidth=0, label="middle 80 % of users")
        plot.plot(distinct_ranks, bands[:, 1], color=FIRST, label="median")
        plot.set(xlabel="rank", ylabel="score", xlim=(1, max(int(distinct_ranks[-1]), 2)))
        plot.legend()
    caption = f"the median falls from {bands[0, 1]:.2f} at rank 1 to {bands[-1, 1]:.2f} at rank {distinct_ranks[-1]}"
    return Plot("Scores along the list", to_svg(figure, "scores"), caption)


def _plot_reach(facts: RunFacts) -> Plot | None:
    """Plot how far back in the order of retrieval the ranker found what it put in front."""
    is_known = np.asarray(facts.sample["candidate_rank"].is_valid())
    ranks = np.asarray(facts.sample["rank"])[is_known]
    candidate_ranks = np.asarray(facts.sample["candidate_rank"].drop_null(), dtype=np.int64)
    if not len(candidate_ranks):
        return None
    far = int(candidate_ranks.max())
    with make_axes() as (figure, plot):
        for upto, colour in ((1, FIRST), (10, SECOND), (int(ranks.max()), THIRD)):
            reached = np.sort(candidate_ranks[ranks <= upto])
            label = f"rank 1 to {upto}" if upto > 1 else "rank 1"
            plot.step(reached, np.arange(1, len(reached) + 1) / len(reached), where="post", color=colour, label=label)
        plot.set(xlabel="place in the order of retrieval", ylabel="share of places", xlim=(1, max(far, 2)), ylim=(0, 1.02))
        plot.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        plot.legend(loc="lower right")
    first = candidate_ranks[ranks == 1]
    caption = f"the ranker's first item was retrieval's number {np.median(first):.0f} for the median user, and beyond number 20 for "
    return Plot("How far the ranker reaches", to_svg(figure, "reach"), caption + f"{np.mean(first > 20):.0%}")


def _plot_lorenz(facts: RunFacts) -> Plot | None:
    """Plot Lorenz curves over the catalogue, the least listed items first."""
    if not facts.listed.sum():
        return None
    with make_axes() as (figure, plot):
        plot.plot((0, 1), (0, 1), color=MUTED, linewidth=1, linestyle=":", label="all items alike")
        for counts, name, colour in ((facts.listed, "lists", FIRST), (facts.taken, "what users took", SECOND)):
            if counts is not None and counts.sum():
                shares = np.concatenate([[0.0], np.cumsum(np.sort(counts)) / counts.sum()])
                item_shares = np.linspace(0, 1, len(shares))
                chosen = np.unique(np.linspace(0, len(shares) - 1, 400).astype(int))
                plot.plot(item_shares[chosen], shares[chosen], color=colour, label=f"{name}, Gini {gini_coefficient(counts):.2f}")
        plot.set(xlabel="items, least first", ylabel="share of places", xlim=(0, 1), ylim=(0, 1.02))
        for axis in (plot.xaxis, plot.yaxis):
            axis.set_major_formatter(PercentFormatter(1, decimals=0))
        plot.legend(loc="upper left")
    in_lists = int(np.count_nonzero(facts.listed[facts.available]))
    n_available = max(int(facts.available.sum()), 1)
    half = items_with_half_of_lists(facts.listed)
    caption = f"{in_lists:,} of {n_available:,} available items are in somebody's list ({in_lists / n_available:.0%}); "
    return Plot(
        "Coverage of the catalogue",
        to_svg(figure, "lorenz"),
        caption + f"half of all places go to {half:,} of them",
    )


def gini_coefficient(counts: np.ndarray) -> float:
    """Compute the Gini coefficient, 0 (all alike) to nearly 1 (one has all): sum((2 i - n - 1) x_i) / (n sum(x)), x ascending."""
    ordered = np.sort(counts).astype(np.float64)
    n = len(ordered)
    return float(np.sum((2 * np.arange(1, n + 1) - n - 1) * ordered) / (n * ordered.sum()))


def items_with_half_of_lists(counts: np.ndarray) -> int:
    """Count the fewest items that together have half of all places."""
    return int(np.searchsorted(np.cumsum(np.sort(counts)[::-1]), counts.sum() / 2)) + 1


def _plot_bands(facts: RunFacts) -> Plot | None:
    """Plot bands of popularity: their share of the lists beside their share of what users took."""
    if facts.taken is None or not facts.taken.sum() or not facts.listed.sum():
        return None
    order = np.argsort(-facts.taken, kind="stable")
    edges = [(int(low * len(order)), int(high * len(order))) for low, high, _ in _POPULARITY_BANDS]
    listed, taken = ([float(counts[order[a:b]].sum()) / float(counts.sum()) for a, b in edges] for counts in (facts.listed, facts.taken))
    with make_axes() as (figure, plot):
        positions = np.arange(len(_POPULARITY_BANDS))
        plot.bar(positions - 0.2, listed, 0.38, color=FIRST, label="lists")
        plot.bar(positions + 0.2, taken, 0.38, color=SECOND, label="what users took")
        plot.set_xticks(positions, [name for _, _, name in _POPULARITY_BANDS])
        plot.set(xlabel="items, most popular first", ylabel="share of places")
        plot.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        plot.grid(visible=False, axis="x")
        plot.legend()
    caption = f"the most popular 1 % of items take {listed[0]:.0%} of the lists, and had {taken[0]:.0%} of what users took"
    return Plot("Popular and rare items", to_svg(figure, "bands"), caption)


def _plot_churn(facts: RunFacts) -> Plot | None:
    """Plot how much of their earlier lists users keep."""
    if facts.churn is None:
        return None
    jaccard = facts.churn.comparison.jaccard
    with make_axes() as (figure, plot):
        plot.hist(jaccard, bins=np.linspace(0, 1, 26).tolist(), color=FIRST, weights=np.full(len(jaccard), 1 / len(jaccard)))
        plot.axvline(float(jaccard.mean()), color=INK, linewidth=1.2)
        plot.annotate(f"mean {jaccard.mean():.2f}", (float(jaccard.mean()), 0.95), (4, 0), "axes fraction", textcoords="offset points")
        plot.set(xlabel="Jaccard of a user's items now and before", ylabel="share of users", xlim=(0, 1))
        plot.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    caption = f"against run {facts.churn.run_id}: {np.mean(jaccard == 1):.0%} of {len(jaccard):,} users have the same items as before"
    return Plot("What changed since the night before", to_svg(figure, "churn"), caption)


def _plot_segments(facts: RunFacts) -> Plot | None:
    """Plot NDCG@10 by segment on held-out interactions, with twice the standard error."""
    judged = [segment for segment in facts.segments if segment.ndcg is not None and segment.error is not None]
    if not judged:
        return None
    with make_axes(0.9 + 0.28 * len(judged)) as (figure, plot):
        for row, segment in enumerate(judged):
            assert segment.ndcg is not None and segment.error is not None
            colour = INK if segment.name == "all" else FIRST
            plot.errorbar(segment.ndcg, row, xerr=2 * segment.error, fmt="o", color=colour, capsize=3, elinewidth=1.4)
        plot.set_yticks(range(len(judged)), [f"{segment.name} ({segment.n_judged:,})" for segment in judged])
        plot.axvline(judged[0].ndcg or 0.0, color=MUTED, linewidth=1, linestyle=":")
        plot.invert_yaxis()
        plot.set(xlabel="NDCG@10 on held-out interactions, ± 2 standard errors")
        plot.tick_params(axis="y", length=0, labelcolor=INK)
        plot.grid(visible=False, axis="y")
        plot.set_xlim(left=0)
    caption = f"{judged[0].ndcg:.3f} over {judged[0].n_judged:,} sampled users with held-out interactions; their number beside each segment"
    return Plot("Quality by segment", to_svg(figure, "segments"), caption)


def _format_seconds(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
