# JupyterLab on the project, for CPUs (--build-arg CPU= takes the PyTorch with CUDA):
#   docker build --tag videossl-lab .
#   docker run --rm --publish 127.0.0.1:8888:8888 videossl-lab
FROM python:3.11-slim AS base
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends git make \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home lab
USER lab

FROM base AS lab
# made by its owner; WORKDIR would make it for root
RUN mkdir /home/lab/videossl
WORKDIR /home/lab/videossl
COPY --chown=lab . .
ARG CPU=1
ENV PIP_NO_CACHE_DIR=1 PATH=/home/lab/videossl/.venv/bin:$PATH
RUN make setup LOCK=1 EXTRA=grid CPU="$CPU"
EXPOSE 8888
# all addresses of the container; its log shows the address with the token
CMD ["jupyter", "lab", "--ip=0.0.0.0", "--no-browser", "--LabApp.default_url=/lab/tree/notebooks/tour.ipynb"]
