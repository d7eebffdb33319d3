"""What is told by more than one primitive: rewrites of the graph before anything is computed."""

from lipjax.certify.patterns.choices import choice_by_sign
from lipjax.certify.patterns.joined import hypotenuse, log_add_exp
from lipjax.certify.patterns.normalization import normalization, row_norms
from lipjax.certify.patterns.softmax import log_softmax, log_sum_exp, softmax

#: The first one that knows a node says what it is.
PATTERNS = (
  softmax, log_softmax, log_sum_exp, log_add_exp, hypotenuse, normalization, row_norms,
  choice_by_sign,
)  # fmt: skip
