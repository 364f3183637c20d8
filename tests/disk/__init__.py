"""Tests of memvm.disk."""
