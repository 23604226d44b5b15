"""Measuring: time against each other, operations, parameters."""

from xvolution.bench.cost import count_flops, count_parameters
from xvolution.bench.latency import Latency, LatencyComparison, measure_latency

__all__ = ["Latency", "LatencyComparison", "count_flops", "count_parameters", "measure_latency"]
