"""Serving benches: perf_analyzer, the peer, the floor, overload."""
