"""Experiments: what each constraint does to a network, one command each."""
