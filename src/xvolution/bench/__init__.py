"""Measuring: time against each other, operations, parameters."""

from xvolution.conversion.summary import count_flops, count_parameters
from xvolution.deploy.latency import Latency, LatencyComparison, measure_latency

__all__ = ["Latency", "LatencyComparison", "count_flops", "count_parameters", "measure_latency"]
