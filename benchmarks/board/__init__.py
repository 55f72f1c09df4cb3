"""Experiments for PEFT's comparison board (``method_comparison/MetaMathQA``), and the two commands that run them there.

The board needs a CUDA GPU with 24 GB and the weights of Llama-3.2-3B. With a clone of PEFT in ``peft``::

    python -m benchmarks.board.prepare peft/method_comparison/MetaMathQA
    python -m benchmarks.board.run peft/method_comparison/MetaMathQA lora/llama-3.2-3B-rank32-captured-lr_0.0004
    python -m benchmarks.board.run peft/method_comparison/MetaMathQA lora/llama-3.2-3B-rank32-lorafa --freeze-a

The first copies ``experiments/`` into the board, calibrates on 32 of its training samples, and gives the experiments
called *captured* their ranks by module and their initial adapter. The second trains with that adapter, `A` frozen. The
third repeats the board's own run of LoRA-FA with `A` frozen throughout. The board writes its results as for any other
experiment.
"""
