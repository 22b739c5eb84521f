"""Flows: what crosses rooms (demo, pack, provision). Only the command line imports it."""
