"""The adapter for other programs.

export (one folder or file for an engine), uniform_lora (one rank, scaling folded into B), llama_cpp (GGUF),
engines (what each reads), inspect and its inspection (what an adapter's folder holds), verify (an export computes the
same), survival (what quantization leaves of the adapter).
"""
