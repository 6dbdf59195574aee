"""The checkpoints that FASeg's authors have released, by short names: fasegr://ade20k/faseg_r50."""

import logging

__all__ = ["PREFIX", "RELEASED", "released_url"]

PREFIX = "fasegr://"
RELEASE = "https://github.com/ziplab/FASeg/releases/download/V1/"
RELEASED = {  # the name, which is that of the config under configs/, and the file of the release
    "ade20k/faseg_r50": "ade_faseg_r50.pth",
    "ade20k/faseg_swin_tiny": "ade_faseg_swin_ti.pth",
    "ade20k/faseg_swin_base_IN21k_res640": "ade_faseg_swin_b.pth",
    "ade20k/faseg_swin_large_IN21k_res640": "ade_faseg_swin_l.pth",
    "cityscapes/faseg_r50": "cityscapes_faseg_r50.pth",
}

_logger = logging.getLogger(__name__)


def released_url(path: str) -> str:
    """The URL of the checkpoint called `path`, with PREFIX in front. Logs its licence.

    Raises ValueError for a name that does not exist; the message lists those that do.
    """
    name = path.removeprefix(PREFIX)
    if name not in RELEASED:
        names = ", ".join(PREFIX + known for known in RELEASED)
        raise ValueError(f"weights {path!r}: no released checkpoint has that name; there are: {names}")
    _logger.info(
        "%s: weights of He et al., released at github.com/ziplab/FASeg under CC BY-NC 4.0: name the authors, "
        "and use them for nothing commercial",
        path,
    )
    return RELEASE + RELEASED[name]
