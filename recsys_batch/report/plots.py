"""The pictures of a report, each with the sentence that it shows."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, PercentFormatter

from recsys_batch.report.drawing import FIRST, GRID, INK, MUTED, SECOND, THIRD, WARN, make_axes, to_svg
from recsys_batch.report.facts import RunFacts
from recsys_batch.tables.run_manifest import STEP_NAMES

_POINT = re.compile(r"tuning\.recall\.nprobe_(\d+|None)\.overfetch_([\d.]+)")
_BANDS = ((0.0, 0.01, "top 1 %"), (0.01, 0.05, "1 to 5"), (0.05, 0.2, "5 to 20"), (0.2, 0.5, "20 to 50"), (0.5, 1.0, "rest"))


@dataclass(frozen=True)
class Plot:
    """An <svg> element, its title, and in words what it shows."""

    title: str
    svg: str
    says: str


def draw_plots(facts: RunFacts) -> list[Plot]:
    """Those that the run has data for."""
    made = [draw(facts) for draw in (_timeline, _tuning, _scores, _reach, _lorenz, _bands, _churn, _segments)]
    return [plot for plot in made if plot is not None]


def _plot(name: str, title: str, figure: Figure, says: str) -> Plot:
    return Plot(title, to_svg(figure, name), says)


def _timeline(facts: RunFacts) -> Plot | None:
    """Steps one after the other: when Python, writing, and everything else (Spark, the driver) were at work."""
    metrics = facts.run.metrics
    done = [step for step in STEP_NAMES if f"{step}.seconds" in metrics]
    if not done:
        return None
    seconds = {step: metrics[f"{step}.seconds"] for step in done}
    total = sum(seconds.values())
    with make_axes(2.6) as (figure, plot):
        start = 0.0
        for place, step in enumerate(done):
            parts = _shares(metrics, step)
            at = start
            for (name, part), colour in zip(parts.items(), (FIRST, SECOND, GRID), strict=True):
                plot.barh(place, part, left=at, height=0.62, color=colour, label=name if place == 0 else None)
                at += part
            _label(plot, place, start, start + seconds[step], total, _time(seconds[step]))
            start += seconds[step]
        plot.set_yticks(range(len(done)), done)
        plot.tick_params(axis="y", length=0, labelcolor=INK)
        plot.invert_yaxis()
        plot.set_xlim(0, total * 1.08)
        plot.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _time(value)))
        plot.grid(visible=False, axis="y")
        figure.legend(loc="outside upper left", ncols=3, handlelength=1.0, columnspacing=1.2)
    longest = max(done, key=lambda step: seconds[step])
    says = f"{_time(total)} in all; {longest} took {seconds[longest] / total:.0%} of it"
    return _plot("timeline", "Where the night's time went", figure, says)


def _label(plot: Axes, place: int, begin: float, end: float, total: float, text: str) -> None:
    """Behind the bar where there is room, else before it, else at its end within."""
    if end < 0.8 * total:
        plot.text(end, place, f" {text}", va="center", color=INK)
    elif begin > 0.2 * total:
        plot.text(begin, place, f"{text} ", va="center", ha="right", color=INK)
    else:
        plot.text(end, place, f"{text} ", va="center", ha="right", color=INK)


def _shares(metrics: Mapping[str, float], step: str) -> dict[str, float]:
    """Seconds of a step: in Python, writing files, and the rest; the two first are spread over the cores that worked."""
    total, cores = metrics[f"{step}.seconds"], max(metrics.get(f"{step}.cores", 1.0), 1.0)
    python = min(metrics.get(f"{step}.python_seconds", 0.0) / cores, total)
    writing = min(metrics.get(f"{step}.write_seconds", 0.0) / cores, total - python)
    return {"Python": python, "writing": writing, "Spark and the driver": total - python - writing}


def _tuning(facts: RunFacts) -> Plot | None:
    """Recall of sampled users over the time of a search."""
    metrics = facts.run.metrics
    points = []
    for key, recall in metrics.items():
        found = _POINT.fullmatch(key)
        if found:
            seconds = metrics[key.replace("tuning.recall", "tuning.seconds_per_1000_users")]
            points.append((found[1], float(found[2]), seconds * 1000, recall))
    if len(points) < 2:
        return None
    chosen = [p for p in points if p[0] == f"{metrics.get('nprobe', -1):.0f}" and p[1] == metrics.get("overfetch")]
    with make_axes() as (figure, plot):
        for overfetch in sorted({p[1] for p in points}):
            line = sorted((p for p in points if p[1] == overfetch), key=lambda p: int(p[0]) if p[0] != "None" else 0)
            label = f"over-fetch {overfetch:g}" if len({p[1] for p in points}) > 1 else None
            plot.plot([p[2] for p in line], [p[3] for p in line], marker="o", label=label)
            for point in (line[0], line[-1]):
                plot.annotate(f"{point[0]}", point[2:], (5, -10), textcoords="offset points", color=MUTED, fontsize=8)
        if "limit.knn_recall" in metrics:
            plot.axhline(metrics["limit.knn_recall"], color=WARN, linestyle="--", linewidth=1.2, label="the gate")
        for point in chosen:
            label = f"chosen: {point[0]} lists, recall {point[3]:.3f}"
            plot.plot(*point[2:], "o", markersize=12, markerfacecolor="none", markeredgecolor=INK, label=label)
        plot.set(xlabel="ms of one core per 1,000 users", ylabel="recall against exact search", xscale="log", ylim=(-0.03, 1.06))
        for axis in (plot.xaxis.set_major_formatter, plot.xaxis.set_minor_formatter):
            axis(FuncFormatter(lambda value, _: f"{value:g}"))
        figure.legend(loc="outside upper left", ncols=2, columnspacing=1.2)
    nlist = metrics.get("nlist")
    says = f"recall {metrics.get('knn_recall', float('nan')):.4f}" + (f" by {metrics['nprobe']:.0f} of {nlist:.0f} lists" if nlist else "")
    return _plot("tuning", "Recall, and what it costs", figure, says + "; numbers at the points are lists searched")


def _scores(facts: RunFacts) -> Plot | None:
    """Scores by rank: what the middle 80 % of users have there."""
    ranks, scores = np.asarray(facts.sample["rank"]), np.asarray(facts.sample["score"], dtype=np.float64)
    order = np.argsort(ranks, kind="stable")
    places, starts = np.unique(ranks[order], return_index=True)
    bands = np.array([np.quantile(part, (0.1, 0.5, 0.9)) for part in np.split(scores[order], starts[1:])])
    with make_axes() as (figure, plot):
        plot.fill_between(places, bands[:, 0], bands[:, 2], color=FIRST, alpha=0.18, linewidth=0, label="middle 80 % of users")
        plot.plot(places, bands[:, 1], color=FIRST, label="median")
        plot.set(xlabel="rank", ylabel="score", xlim=(1, max(int(places[-1]), 2)))
        plot.legend()
    says = f"the median falls from {bands[0, 1]:.2f} at rank 1 to {bands[-1, 1]:.2f} at rank {places[-1]}"
    return _plot("scores", "Scores along the list", figure, says)


def _reach(facts: RunFacts) -> Plot | None:
    """How far back in the order of retrieval the ranker found what it put in front."""
    known = np.asarray(facts.sample["candidate_rank"].is_valid())
    ranks = np.asarray(facts.sample["rank"])[known]
    places = np.asarray(facts.sample["candidate_rank"].drop_null(), dtype=np.int64)
    if not len(places):
        return None
    far = int(places.max())
    with make_axes() as (figure, plot):
        for upto, colour in ((1, FIRST), (10, SECOND), (int(ranks.max()), THIRD)):
            mine = np.sort(places[ranks <= upto])
            label = f"rank 1 to {upto}" if upto > 1 else "rank 1"
            plot.step(mine, np.arange(1, len(mine) + 1) / len(mine), where="post", color=colour, label=label)
        plot.set(xlabel="place in the order of retrieval", ylabel="share of places", xlim=(1, max(far, 2)), ylim=(0, 1.02))
        plot.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        plot.legend(loc="lower right")
    first = places[ranks == 1]
    says = f"the ranker's first item was retrieval's number {np.median(first):.0f} for the median user, and beyond number 20 for "
    return _plot("reach", "How far the ranker reaches", figure, says + f"{np.mean(first > 20):.0%}")


def _lorenz(facts: RunFacts) -> Plot | None:
    """Lorenz curves over the catalogue, the least listed items first."""
    if not facts.listed.sum():
        return None
    with make_axes() as (figure, plot):
        plot.plot((0, 1), (0, 1), color=MUTED, linewidth=1, linestyle=":", label="all items alike")
        said = []
        for counts, name, colour in ((facts.listed, "lists", FIRST), (facts.taken, "what users took", SECOND)):
            if counts is not None and counts.sum():
                shares = np.concatenate([[0.0], np.cumsum(np.sort(counts)) / counts.sum()])
                at = np.linspace(0, 1, len(shares))
                chosen = np.unique(np.linspace(0, len(shares) - 1, 400).astype(int))
                gini = gini_coefficient(counts)
                plot.plot(at[chosen], shares[chosen], color=colour, label=f"{name}, Gini {gini:.2f}")
                said.append((name, gini))
        plot.set(xlabel="items, least first", ylabel="share of places", xlim=(0, 1), ylim=(0, 1.02))
        for axis in (plot.xaxis, plot.yaxis):
            axis.set_major_formatter(PercentFormatter(1, decimals=0))
        plot.legend(loc="upper left")
    in_lists = int(np.count_nonzero(facts.listed[facts.available]))
    n_available = max(int(facts.available.sum()), 1)
    half = items_with_half_of_lists(facts.listed)
    says = f"{in_lists:,} of {n_available:,} available items are in somebody's list ({in_lists / n_available:.0%}); "
    return _plot("lorenz", "Coverage of the catalogue", figure, says + f"half of all places go to {half:,} of them")


def gini_coefficient(counts: np.ndarray) -> float:
    """Gini coefficient: 0 where all are alike, near 1 where one has everything. sum((2 i - n - 1) x_i) / (n sum(x)), x ascending."""
    ordered = np.sort(counts).astype(np.float64)
    n = len(ordered)
    return float(np.sum((2 * np.arange(1, n + 1) - n - 1) * ordered) / (n * ordered.sum()))


def items_with_half_of_lists(counts: np.ndarray) -> int:
    """The fewest items that together have half of everything."""
    ordered = np.sort(counts)[::-1]
    return int(np.searchsorted(np.cumsum(ordered), counts.sum() / 2)) + 1


def _bands(facts: RunFacts) -> Plot | None:
    """Bands of popularity: their share of the lists beside that of what users took."""
    if facts.taken is None or not facts.taken.sum() or not facts.listed.sum():
        return None
    order = np.argsort(-facts.taken, kind="stable")
    edges = [(int(low * len(order)), int(high * len(order))) for low, high, _ in _BANDS]
    listed, taken = ([counts[order[a:b]].sum() / counts.sum() for a, b in edges] for counts in (facts.listed, facts.taken))
    with make_axes() as (figure, plot):
        places = np.arange(len(_BANDS))
        plot.bar(places - 0.2, listed, 0.38, color=FIRST, label="lists")
        plot.bar(places + 0.2, taken, 0.38, color=SECOND, label="what users took")
        plot.set_xticks(places, [name for _, _, name in _BANDS])
        plot.set(xlabel="items, most popular first", ylabel="share of places")
        plot.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        plot.grid(visible=False, axis="x")
        plot.legend()
    says = f"the most popular 1 % of items take {listed[0]:.0%} of the lists, and had {taken[0]:.0%} of what users took"
    return _plot("bands", "Popular and rare items", figure, says)


def _churn(facts: RunFacts) -> Plot | None:
    """How much of their earlier lists users keep."""
    if facts.churn is None:
        return None
    jaccard = facts.churn.of.jaccard
    with make_axes() as (figure, plot):
        plot.hist(jaccard, bins=np.linspace(0, 1, 26).tolist(), color=FIRST, weights=np.full(len(jaccard), 1 / len(jaccard)))
        plot.axvline(float(jaccard.mean()), color=INK, linewidth=1.2)
        plot.annotate(f"mean {jaccard.mean():.2f}", (float(jaccard.mean()), 0.95), (4, 0), "axes fraction", textcoords="offset points")
        plot.set(xlabel="Jaccard of a user's items now and before", ylabel="share of users", xlim=(0, 1))
        plot.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    says = f"against run {facts.churn.run_id}: {np.mean(jaccard == 1):.0%} of {len(jaccard):,} users have the same items as before"
    return _plot("churn", "What changed since the night before", figure, says)


def _segments(facts: RunFacts) -> Plot | None:
    """NDCG@10 on what was held out, with twice the standard error."""
    judged = [one for one in facts.segments if one.ndcg is not None and one.error is not None]
    if not judged:
        return None
    with make_axes(0.9 + 0.28 * len(judged)) as (figure, plot):
        for place, one in enumerate(judged):
            assert one.ndcg is not None and one.error is not None
            colour = INK if one.name == "all" else FIRST
            plot.errorbar(one.ndcg, place, xerr=2 * one.error, fmt="o", color=colour, capsize=3, elinewidth=1.4)
        plot.set_yticks(range(len(judged)), [f"{one.name} ({one.n_judged:,})" for one in judged])
        plot.axvline(judged[0].ndcg or 0.0, color=MUTED, linewidth=1, linestyle=":")
        plot.invert_yaxis()
        plot.set(xlabel="NDCG@10 on held-out interactions, ± 2 standard errors")
        plot.tick_params(axis="y", length=0, labelcolor=INK)
        plot.grid(visible=False, axis="y")
        plot.set_xlim(left=0)
    says = f"{judged[0].ndcg:.3f} over {judged[0].n_judged:,} sampled users who have something held out; their number beside each segment"
    return _plot("segments", "Quality by segment", figure, says)


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
