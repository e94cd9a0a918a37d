"""The kernels of ostinato for NVIDIA GPUs. Private: ``import ostinato`` finds them."""
