"""The kernels that compute one block of attention: PyTorch's own and flash-attn's."""
