"""Recovery: what was pruned is trained on, so that it comes nearer to the dense model again."""

import logging

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # on a CPU it names what else could be installed
