# fasegr in a container; the program is the entry point:
#
#   docker build -t fasegr .                                  for a CPU
#   docker build -t fasegr:cuda --build-arg TORCH=cu130 .     for NVIDIA GPUs; TORCH is a folder of download.pytorch.org/whl
#   ... --build-arg TORCH=cu126 --build-arg REQUIREMENTS=requirements-v100.txt .     another set of pins
#   docker build -t fasegr:v100 --build-arg TORCH=cu126 .     for V100 and drivers older than 580
#   docker run --rm -v $PWD:/work fasegr train --config-file quickstart/faseg_scenes.yaml
#   docker run --rm --gpus all --shm-size 8g -v $PWD:/work -v /data:/datasets fasegr:cuda train --config-file CONFIG --num-gpus 8
#
# /work is the working directory (OUTPUT_DIR is in it), /datasets is DETECTRON2_DATASETS.

ARG PYTHON=3.11
FROM python:${PYTHON}-slim

# Triton's kernels and torch.compile build their launchers when they first run
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*

ARG TORCH=cpu
WORKDIR /fasegr
COPY requirements.txt requirements-common.txt ./
# fvcore and iopath come as source: they are built with these versions instead of the newest ones. A version with a
# local part, as 2.11.0+cpu of this index, goes before the same one without.
RUN pip install --no-cache-dir setuptools==81.0.0 wheel==0.48.0 \
    && pip install --no-cache-dir --no-build-isolation --extra-index-url https://download.pytorch.org/whl/${TORCH} \
        -r ${REQUIREMENTS}
COPY . .
RUN pip install --no-cache-dir --no-build-isolation --no-deps . && rm -rf /fasegr

ENV DETECTRON2_DATASETS=/datasets
WORKDIR /work
ENTRYPOINT ["fasegr"]
CMD ["--help"]
