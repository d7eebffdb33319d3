"""Measurements: every claim of speed in lipjax is a row made here."""
