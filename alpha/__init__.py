"""Alpha: GPT language models from scratch, on numpy or any Vulkan GPU."""

__version__ = "0.1.0"
