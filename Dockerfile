# SVG2 Lab on a CPU: a Hugging Face Docker Space, or `docker build -t svg2-lab . && docker run -p 7860:7860 svg2-lab`.
# It writes to /tmp alone, so that `docker run --read-only --tmpfs /tmp` works too.
FROM python:3.11-slim

# Spaces run as user 1000.
RUN useradd --create-home --uid 1000 user
USER user
WORKDIR /home/user/app
ENV PATH=/home/user/.local/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PIP_NO_CACHE_DIR=1 \
    GRADIO_ANALYTICS_ENABLED=False \
    GRADIO_SERVER_NAME=0.0.0.0 \
    GRADIO_SERVER_PORT=7860

# torch goes in alone and from the CPU index, so that no CUDA libraries come with it.
COPY --chown=user requirements.txt .
RUN grep '^torch' requirements.txt | pip install --user -r /dev/stdin --index-url https://download.pytorch.org/whl/cpu \
    && pip install --user -r requirements.txt

COPY --chown=user . .
EXPOSE 7860
# Without the proxies of the environment, which lead elsewhere.
HEALTHCHECK --interval=30s --timeout=10s --start-period=120s CMD ["python", "-c", "import os, urllib.request as u; u.build_opener(u.ProxyHandler({})).open('http://127.0.0.1:' + os.environ['GRADIO_SERVER_PORT'] + '/health', timeout=5)"]
CMD ["python", "app.py"]
