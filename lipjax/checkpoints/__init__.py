"""Checkpoints of other libraries, read leaf by leaf and never unpickled."""
