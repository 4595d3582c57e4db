"""What every test worker shares: one torch thread (pytest -n starts one worker per core)."""

import torch

torch.set_num_threads(1)
