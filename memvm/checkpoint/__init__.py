"""Checkpoint files: format, staging, save, restore, inspect."""
