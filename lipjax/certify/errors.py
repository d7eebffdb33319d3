"""What cannot be bounded says so, and says what to write instead."""


class CertifyError(ValueError):
  """A function of which no Lipschitz bound is known."""
