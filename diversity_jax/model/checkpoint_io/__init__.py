"""Weights in other programs' formats: Hugging Face folders, safetensors and GGUF files."""
