"""What an exported model takes along beside its weights: chat template, card, and two files of plain NumPy."""
