# SVG2 Lab on a CPU: a Hugging Face Docker Space, or `docker build -t svg2-lab . && docker run -p 7860:7860 svg2-lab`.
FROM python:3.11-slim

# Spaces run as user 1000; the app writes only below its home and the temporary folder.
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
RUN pip install --user "$(grep '^torch' requirements.txt)" --index-url https://download.pytorch.org/whl/cpu \
    && pip install --user -r requirements.txt

COPY --chown=user . .
EXPOSE 7860
CMD ["python", "app.py"]
