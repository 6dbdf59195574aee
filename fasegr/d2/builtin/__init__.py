"""Stand-in for the part of detectron2 that the program calls: the same names and behaviour over fvcore, iopath, torch.

It is plumbing only. Whatever changes a number (optimizer, schedule, step, augmentation, metrics) lives in `fasegr`.
"""
