"""What is computed on adapters: exact, re-computable arithmetic on numpy and safetensors. No torch."""
