"""The encoder as a class of other tools: TerraTorch, torchgeo-bench, PANGAEA.

Each module imports the tool that it is for, and stands alone in that tool's environment: beside
PyTorch it needs what `terrafm.models` needs, neither Ray nor DeepSpeed.
"""
