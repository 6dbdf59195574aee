"""The paper's tables as things that can be run: what each row is, its runs, what came out."""
