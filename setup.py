"""Makes `import fasegr` work from any folder: pip install -e . --no-deps (what it needs is in requirements.txt)."""

from setuptools import find_packages, setup

setup(
    name="fasegr",
    version="0.1.0",
    description="FASeg: semantic segmentation with dynamic focus-aware positional queries, as a Detectron2 extension",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["fasegr", "fasegr.*"]),
    package_data={"": ["*.txt", "*.json"]},  # class names of datasets
    # The oldest that the code can run with; what is tested is pinned in requirements.txt.
    install_requires=[
        "torch>=2.11",
        "torchvision>=0.26",
        "numpy>=2.2",
        "scipy",
        "pillow",
        "matplotlib",
        "markupsafe",
        "fvcore>=0.1.5,<0.1.6",
        "iopath>=0.1.9,<0.1.10",
        "PyYAML",
        "safetensors",
        "pycocotools",
        "tensorboard",
        "tqdm",
        "tabulate",
        "termcolor",
    ],
    extras_require={"timm": ["timm>=1.0"]},  # other backbones
)
