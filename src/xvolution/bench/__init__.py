"""Measuring: time against each other, operations, parameters."""

from xvolution.deploy.latency import Latency, LatencyComparison, measure_latency
from xvolution.surgery.summary import count_flops, count_parameters

__all__ = ["Latency", "LatencyComparison", "count_flops", "count_parameters", "measure_latency"]
