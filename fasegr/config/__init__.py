"""Configuration: keys and defaults, reading YAML, names of released files, validation."""

from fasegr.config.load import add_fasegr_config, load_cfg

__all__ = ["add_fasegr_config", "load_cfg"]
