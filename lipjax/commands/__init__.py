"""One module a command of ``python -m lipjax``; they may import Flax, the core does not."""
