"""Every CUDA backend against the signatures of its operators, on fake tensors and so without a GPU.

Shape legend: K key heads, N query heads per key head, Q queries, T keys, C head channels.
"""

import importlib.util

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from mrsp_engine.attention.backends.base import AttentionBackend, Block, load_backends
from mrsp_engine.attention.backends.flash_attn import _FlashAttentionBackend
from mrsp_engine.attention.backends.torch_fused import CudaEfficientBackend, CudaFlashBackend

K, N, C = 2, 3, 64
CUDA_BACKENDS = {
    name: backend
    for name, backend in load_backends().items()
    if isinstance(backend, CudaFlashBackend | CudaEfficientBackend | _FlashAttentionBackend)
}


def skip_if_missing(backend: AttentionBackend) -> None:
    if isinstance(backend, _FlashAttentionBackend):
        package = backend.module.partition(".")[0]
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")


def test_there_are_backends_for_cuda() -> None:
    assert {type(backend).__name__ for backend in CUDA_BACKENDS.values()} == {
        "CudaFlashBackend",
        "CudaEfficientBackend",
        "FlashAttention2Backend",
        "FlashAttention3Backend",
    }


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("name", CUDA_BACKENDS)
def test_operators_take_and_return_what_the_backend_expects(name: str, causal: bool) -> None:
    backend = CUDA_BACKENDS[name]
    skip_if_missing(backend)
    num_queries, num_keys = (40, 40) if causal else (24, 50)
    with FakeTensorMode():
        device = torch.device("cuda")
        query = torch.empty(K, N, num_queries, C, dtype=torch.bfloat16, device=device)
        key, value = torch.empty(2, K, num_keys, C, dtype=torch.bfloat16, device=device).unbind(0)
        block = Block(query=query, key=key, value=value, causal=causal, scale=C**-0.5)
        output, logsumexp = backend.forward(block)
        assert (output.shape, output.dtype, output.device.type) == (query.shape, query.dtype, "cuda")
        assert (logsumexp.shape, logsumexp.dtype) == ((K, N, num_queries), torch.float32)
        gradients = backend.backward(block, torch.empty_like(output), output, logsumexp)
        assert [gradient.shape for gradient in gradients] == [query.shape, key.shape, value.shape]
        assert {gradient.dtype for gradient in gradients} == {torch.bfloat16}
