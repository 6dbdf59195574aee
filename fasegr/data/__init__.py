"""From files to samples: `datasets` registers, `dataset_mappers` read and augment one image, `build` makes loaders."""
