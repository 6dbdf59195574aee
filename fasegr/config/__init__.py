"""Configuration: keys and defaults, reading YAML, names of released files, validation."""

from fasegr.config.defaults import add_fasegr_config
from fasegr.config.load import load_cfg
from fasegr.config.validate import validate

__all__ = ["add_fasegr_config", "load_cfg", "validate"]
