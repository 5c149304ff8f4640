"""Everything that knows torch and transformers: load, describe, measure and simulate a model.

The stages above read numbers and packed bytes; this package turns a checkpoint into them.
"""

import logging

# torchao comes along with LiteRT's converter; transformers imports it if it is there, and it then complains on stderr
# of GPU libraries that nobody asked for.
for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)
