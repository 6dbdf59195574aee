"""Commands, one in each file, and what they share. Not installed: the commands put the checkout on sys.path."""
