"""Benchmarks: `bin/bench` prints ratios against nginx, measured in turn in one run.

CPU time per unit of work and ratios within a run hold on a shared machine; wall-clock does not.
"""
