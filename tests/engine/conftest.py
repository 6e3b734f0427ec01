"""One torch thread everywhere: the machine is shared, and OpenMP threads that spin for a core only slow each other."""

import torch

torch.set_num_threads(1)
