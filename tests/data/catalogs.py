"""The catalogs, as a test wants them."""

from contextlib import contextmanager

from fasegr.d2 import DatasetCatalog, MetadataCatalog

ADE20K = tuple(f"ade20k_sem_seg_{split}" for split in ("train", "val", "test"))
CITYSCAPES = tuple(f"cityscapes_fine_sem_seg_{split}" for split in ("train", "val", "test"))


@contextmanager
def without(*names: str):
    """The catalogs without some names, which are put back afterwards."""
    before = {name: (DatasetCatalog.pop(name), MetadataCatalog.pop(name)) for name in names if name in DatasetCatalog}
    try:
        yield
    finally:
        for name in names:
            DatasetCatalog.pop(name, None)
            MetadataCatalog.pop(name, None)
            if name in before:
                DatasetCatalog.register(name, before[name][0])
                MetadataCatalog[name] = before[name][1]
