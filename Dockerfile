# hadolint global ignore=DL3002,DL4006
# Root is only for the download stage; its exit code comes from a file, not from the pipe.
# Image used to download: any with Python 3.10 or newer and pip.
ARG PYTHON_IMAGE=python:3.12-slim
# Base of the final image: your own, whatever its server is.
ARG SERVE_IMAGE=${PYTHON_IMAGE}

FROM ${PYTHON_IMAGE} AS download
# Your own image may have another user, who can neither install packages nor write here.
USER 0
WORKDIR /build
COPY requirements.txt ./
ARG PIP_INDEX_URL
# Only the SDK is pinned, so the image's other packages stay; Debian's pip needs the variable.
RUN PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --no-cache-dir -r requirements.txt
COPY download_model.py ./
# The script's environment, except MODEL_REVISION; one not given stays unset: its default holds.
ARG MODEL_ID
ARG MODEL_REVISION
ARG SPEC_DRAFT_MODEL_ID
ARG SPEC_DRAFT_MODEL_REVISION
ARG SPEC_DRAFT_OPTIONAL
ARG MODELSCOPE_ENDPOINT
# A new value makes the build download again.
ARG REFRESH
# A broken build leaves partial downloads in the cache for the next one; the login is in memory.
RUN --mount=type=cache,id=modelscope,target=/build/unfinished,sharing=locked \
    --mount=type=secret,id=modelscope_token --mount=type=tmpfs,target=/login \
    set -eu; \
    if [ -e /run/secrets/modelscope_token ]; then \
        MODELSCOPE_API_TOKEN=$(cat /run/secrets/modelscope_token); export MODELSCOPE_API_TOKEN; \
    fi; \
    cache=unfinished/${MODEL_ID-}@${MODEL_REVISION-}; \
    # Results go to log; progress and warnings to the screen and to warnings. The exit code goes
    # through a file, because the pipe's own is tee's.
    download() { \
        { MODELSCOPE_HOME=/login python3 download_model.py --revision "${MODEL_REVISION-}" \
            --cache_dir "$cache" 2>&1 >log || echo $? >code; } | tee warnings; \
        cat log; \
        [ ! -e code ] || exit "$(cat code)"; \
    }; \
    download; \
    # Stale files of an older revision must not get in. This downloads the model again in full.
    if grep -q '^WARNING: not in this revision' warnings; then rm -r "$cache"; download; fi; \
    mkdir /weights; \
    mv "$(sed -n 's/^Resolved model_dir: //p' log)" /weights/main; \
    draft=$(sed -n 's/^\[spec\] Resolved draft_model_dir: //p' log); \
    [ -z "$draft" ] || mv "$draft" /weights/draft; \
    rm -r "$cache"; \
    # Every user can read the files, and fixed times give the same files the same layer.
    chmod -R u=rwX,go=rX /weights; find /weights -exec touch -d @0 {} +

# The model folders and nothing else, to mount or to copy from.
FROM scratch AS weights
COPY --from=download /weights/ /

FROM ${SERVE_IMAGE} AS serve
COPY --from=download /weights/ /app/model/
# Never ask the hub at run time. Without a draft model, DRAFT_DIR does not exist.
ENV MODEL_DIR=/app/model/main DRAFT_DIR=/app/model/draft HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1
