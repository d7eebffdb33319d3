"""What is known of each primitive, and of each pattern."""

from lipjax.certify.primitives import arithmetic as arithmetic
from lipjax.certify.primitives import complex as complex
from lipjax.certify.primitives import linalg as linalg
from lipjax.certify.primitives import normalization as normalization
from lipjax.certify.primitives import of_rows as of_rows
from lipjax.certify.primitives import powers as powers
from lipjax.certify.primitives import products as products
from lipjax.certify.primitives import reductions as reductions
from lipjax.certify.primitives import scalar as scalar
from lipjax.certify.primitives import scatters as scatters
from lipjax.certify.primitives import shapes as shapes
from lipjax.certify.primitives import softmax as softmax
from lipjax.certify.primitives.record import RECORDS as RECORDS
