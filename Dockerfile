# The dashboard and its worker. Results, models and prompt sets live in the volume.
FROM python:3.11-slim-bookworm

ENV PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    SAFENEURON_HOME=/data

RUN useradd --create-home --uid 10001 safeneuron \
    && install --directory --owner=safeneuron /data /app
WORKDIR /app

# The slow layer first: it changes only with the pins.
COPY constraints.txt pyproject.toml README.md LICENSE ./
RUN python -m pip install -c constraints.txt torch

COPY toolkit toolkit
COPY analysis analysis
COPY app app
RUN python -m pip install -c constraints.txt ".[server,redis,postgres]"

USER safeneuron
VOLUME /data
EXPOSE 8501
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8501/_stcore/health', timeout=4)"]
# Refused until sign-in is set up, or --no-sign-in says that only those meant to can reach it.
CMD ["safeneuron", "serve", "--address", "0.0.0.0"]
