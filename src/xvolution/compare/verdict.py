"""The report's conclusions in words: a sentence for each row, and the headline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from xvolution.training.pages import MINUS

ENOUGH_SEEDS = 3
WORTH = 1.25  # times the baseline's FLOPs, at most, for a gain to be called worth it


def verdict(row: dict[str, Any], baseline: str, rows: Sequence[dict[str, Any]]) -> str:
    """The conclusion for one row of the table, in a sentence."""
    if row["label"] == baseline:
        return "the baseline"
    if row["score"] is None:
        return "not finished"
    found = claimed(row)
    if found is None:
        return f"{baseline} is not finished for the same seeds"
    seeds = found["seeds"]
    if seeds < ENOUGH_SEEDS:
        return f"{difference(found)}: not conclusive with {count(seeds, 'seed')}"
    if found["low"] <= 0 <= found["high"]:
        return f"no significant difference with {seeds} seeds ({difference(found)})"
    if found["high"] < 0:
        return f"{difference(found)}: worse"
    price = f"{difference(found)} at {row['deployed_flops_ratio']:.2f} times the FLOPs"
    better = _beaten_by(row, rows)
    if better is not None:
        return f"{price}; {better} is more accurate at no higher cost"
    if row["deployed_flops_ratio"] > WORTH:
        return f"{price}; better, at a higher cost"
    return f"{price}; worth it"


def claimed(row: dict[str, Any]) -> dict[str, Any] | None:
    """The interval that conclusions about a row or a pair use: over seeds and images if available, else over seeds."""
    return row["bootstrap"] or row["difference"]


def differs(interval: dict[str, Any]) -> bool:
    """Whether enough seeds show a difference, to either side."""
    return interval["seeds"] >= ENOUGH_SEEDS and not interval["low"] <= 0 <= interval["high"]


def headline(rows: Sequence[dict[str, Any]], baseline: str, planned_seeds: int, metric: str) -> str:
    """The headline: whether a variant helps on this data, and what it costs. ``metric`` is the name of the metric on the page."""
    finished = [(row, interval) for row in rows if (interval := claimed(row)) is not None]
    if not finished:
        return f"No variant is finished for the same seeds as {baseline} yet."
    best, found = max(finished, key=lambda each: (_shown(each[1]), each[1]["estimate"]))
    seeds = found["seeds"]
    cost = _cost(best, baseline)
    of = f", the best of {len(finished)}," if len(finished) > 1 else ""
    more = " so far" if seeds < planned_seeds else ""
    if seeds < ENOUGH_SEEDS:
        return (
            f"After {count(seeds, 'seed')}{more}, {best['label']}{of} has {difference(found)} of {metric} "
            f"against {baseline}, {cost}. This is not conclusive: at least {ENOUGH_SEEDS} seeds are needed "
            "to tell a gain from chance."
        )
    if _shown(found):
        caution = ""
        if len(finished) > 1:
            caution = (
                f" It was chosen as the best of {len(finished)}, so the estimate is slightly too high; new "
                "seeds give an unbiased estimate."
            )
        return f"Yes: {best['label']} gains {difference(found)} of {metric} over {baseline}{more}, {cost}.{caution}"
    if all(interval["high"] is not None and interval["high"] < 0 for _, interval in finished):
        return f"No: every variant is worse than {baseline}{more}; the best, {best['label']}, by {difference(found)} of {metric}."
    return (
        f"No variant is significantly better than {baseline} with {seeds} seeds{more}; the best, "
        f"{best['label']}, has {difference(found)} of {metric}, {cost}."
    )


def _shown(interval: dict[str, Any]) -> bool:
    """Whether enough seeds show a gain."""
    return interval["seeds"] >= ENOUGH_SEEDS and interval["low"] > 0


def difference(interval: dict[str, Any]) -> str:
    """``+0.8 ± 0.4 points``."""
    text = f"{100 * interval['estimate']:+.1f}".replace("-", MINUS)
    return f"{text} points" if interval["half"] is None else f"{text} ± {100 * interval['half']:.1f} points"


def count(number: int, noun: str) -> str:
    """``1 seed``, ``2 seeds``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _cost(row: dict[str, Any], baseline: str) -> str:
    latency = row["latency"]
    time = "" if latency is None else f" and {latency['ratio']:.2f} times the latency"
    return (
        f"at {row['deployed_parameters_ratio']:.2f} times the parameters, {row['deployed_flops_ratio']:.2f} times the FLOPs"
        f"{time} once deployed"
    )


def _beaten_by(row: dict[str, Any], rows: Sequence[dict[str, Any]]) -> str | None:
    """The label of the most accurate row that costs no more FLOPs and is better, if any."""
    better = [
        other
        for other in rows
        if other["score"] is not None
        and other["deployed_flops"] <= row["deployed_flops"]
        and other["score"]["estimate"] > row["score"]["estimate"]
    ]
    return max(better, key=lambda other: other["score"]["estimate"])["label"] if better else None
