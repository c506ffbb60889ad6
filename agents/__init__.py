"""Faust agents: shells that take a batch, ask a protocol core, store and emit."""
