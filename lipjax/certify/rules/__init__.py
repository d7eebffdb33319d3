"""What is known of each primitive."""

from lipjax.certify.rules import arithmetic as arithmetic
from lipjax.certify.rules import calls as calls
from lipjax.certify.rules import elementwise as elementwise
from lipjax.certify.rules import loops as loops
from lipjax.certify.rules import products as products
from lipjax.certify.rules import reductions as reductions
from lipjax.certify.rules import shapes as shapes
