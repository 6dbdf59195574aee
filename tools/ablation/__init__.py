"""The ablation study of the paper's tables: their rows, the training runs of the rows, and reports of the results."""
