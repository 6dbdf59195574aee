"""Makes `import fasegr` and the program `fasegr` work from any folder: pip install -e . --no-deps (what they need is in
requirements.txt), or pip install ., which needs the checkout no longer."""

import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent


class BuildWithScripts(build_py):
    """Copies what `fasegr_programs` runs, laid out as in the checkout, and the configs, into the wheel."""

    def run(self):
        super().run()
        if self.editable_mode:  # everything is where it always is
            return
        programs, package = (Path(self.build_lib) / name for name in ("fasegr_programs", "fasegr"))
        ignore = shutil.ignore_patterns("__pycache__")
        for folder, target in (("demo", programs), ("tools", programs), ("configs", package)):
            shutil.rmtree(target / folder, ignore_errors=True)  # of an earlier build
            shutil.copytree(ROOT / folder, target / folder, ignore=ignore)
        for script in ROOT.glob("*.py"):
            if script.name != "setup.py":
                shutil.copy2(script, programs)


setup(
    name="fasegr",
    version="0.1.0",
    description="FASeg: semantic segmentation with dynamic focus-aware positional queries, as a Detectron2 extension",
    license="Apache-2.0",
    python_requires=">=3.10,<3.14",
    packages=find_packages(include=["fasegr", "fasegr.*", "fasegr_programs"]),
    package_data={"": ["*.txt", "*.json"]},  # class names of datasets
    cmdclass={"build_py": BuildWithScripts},
    entry_points={"console_scripts": ["fasegr = fasegr_programs:main"]},
    # What the code can run with; the sets that are tested are pinned in requirements*.txt.
    install_requires=[
        "torch>=2.6,<2.16",
        "torchvision>=0.21,<0.30",
        "numpy>=2.2",
        "scipy",
        "pillow",
        "opencv-python-headless>=4.10",
        "matplotlib",
        "contourpy",
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
    extras_require={
        "timm": ["timm>=1.0.20"],  # other backbones; the first that has DINOv3
        "wandb": ["wandb>=0.17"],  # TRACKERS
        "mlflow": ["mlflow-skinny>=2.14"],  # TRACKERS; its client, without the server
        "hub": [
            "huggingface_hub>=0.30,<3"
        ],  # models by name on Hugging Face's hub; requirements-hub.txt has the reason
        "serve": ["starlette>=1.0", "uvicorn>=0.40"],  # requirements-serve.txt has the reasons
        "export": ["onnx>=1.18", "onnxscript>=0.5", "onnxruntime>=1.20"],  # requirements-export.txt has the reasons
    },
)
