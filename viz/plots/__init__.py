"""One function per picture, drawn from a result's table.

spectrum, sensitivity, expert_use, alignment, allocation, training, compression, memory, race, tokens (reads, and texts
token by token), attribution, interference, side_effects, rescaling; heatmap (modules by layer and projection, for
several).
"""
