"""Runs: configs checked, experiments built, the training loop, checkpoints, the report, and launching."""
