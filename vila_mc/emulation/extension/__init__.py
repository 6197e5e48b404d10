"""What stands for the compiled ``transformer_engine_torch``: one module per family, in plain torch.

Each function names the file of Transformer Engine's sources whose meaning it imitates, below
``transformer_engine/``. Arithmetic is exact in fp32 between the roundings that the GPU makes:
inputs to FP8 or bf16, outputs to their type.
"""
