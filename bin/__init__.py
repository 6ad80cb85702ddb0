"""Command line, wiring and supervisor: the only place that knows everyone."""
