"""Engines that hold a running model; each back end is imported in its constructor only."""
