# Only downloads: any image with Python 3.10 or newer.
ARG PYTHON_IMAGE=python:3.12-slim
# What serves: your own image, whatever its server is.
ARG SERVE_IMAGE=${PYTHON_IMAGE}

# A stage of its own: neither Python packages nor credentials reach the image.
FROM ${PYTHON_IMAGE} AS download
# Where the script runs; nothing of it is copied but the model.
WORKDIR /build
# Before the script, so that an edit to it installs nothing again.
COPY requirements.txt ./
# The pinned versions, without a cache that nobody would use again.
RUN pip install --no-cache-dir --requirement requirements.txt
# By its name, so that an edit to any other file downloads nothing again.
COPY download_model.py ./
# Not given, each of these is unset, and the script's own default holds.
ARG MODEL_ID
# The one that is an option of the script, not a variable: blank is master.
ARG MODEL_REVISION
# A draft model for speculative decoding; none unless named.
ARG SPEC_DRAFT_MODEL_ID
# A branch, a tag or a commit of the draft model.
ARG SPEC_DRAFT_MODEL_REVISION
# 1: the image is built without a draft model when that one fails.
ARG SPEC_DRAFT_OPTIONAL
# A mirror, or a hub of your own.
ARG MODELSCOPE_ENDPOINT
# The token is a file in memory, and so is the login the SDK makes of it: no layer ever holds them.
RUN --mount=type=secret,id=modelscope_token --mount=type=tmpfs,target=/login \
    set -eu; \
    if [ -e /run/secrets/modelscope_token ]; then \
        MODELSCOPE_API_TOKEN=$(cat /run/secrets/modelscope_token); export MODELSCOPE_API_TOKEN; \
    fi; \
    # A file in place of a pipe, which would hide the exit code.
    code=0; MODELSCOPE_HOME=/login python download_model.py \
        --revision "${MODEL_REVISION-}" --cache_dir cache >log || code=$?; \
    cat log; [ "$code" = 0 ] || exit "$code"; \
    mkdir /weights; \
    mv "$(sed -n 's/^Resolved model_dir: //p' log)" /weights/main; \
    draft=$(sed -n 's/^\[spec\] Resolved draft_model_dir: //p' log); \
    if [ -n "$draft" ]; then mv "$draft" /weights/draft; fi; \
    # The rest is locks, and what a failed draft model left.
    rm -r cache; \
    # Whatever user serves can read them.
    chmod -R u=rwX,go=rX /weights; \
    # The same files make the same layer, whenever they were downloaded.
    find /weights -exec touch -d @0 {} +

# An image to mount, or to copy from: the model folders and nothing else.
FROM scratch AS weights
# The parent folder, as there may be no draft model.
COPY --from=download /weights/ /

# Last, so that it is what a build without --target makes.
FROM ${SERVE_IMAGE}
# A layer of its own: a registry moves it once. Not from `weights`, which need not be built then.
COPY --from=download /weights/ /app/model/
# Where the model is, and that libraries ask no hub for it.
ENV MODEL_DIR=/app/model/main HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1
