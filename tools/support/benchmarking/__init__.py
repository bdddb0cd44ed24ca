"""Behind tools/benchmark.py: one measurement, and the report of many."""
