"""Small helpers that several parts share. They import nothing of the package."""
