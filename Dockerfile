# hadolint global ignore=DL3002,DL4006
# What downloads: any image with Python 3.10 or newer and pip.
ARG PYTHON_IMAGE=python:3.12-slim
# What serves: your own image, whatever its server is.
ARG SERVE_IMAGE=${PYTHON_IMAGE}

FROM ${PYTHON_IMAGE} AS download
# An image of your own may have another user, who can neither install nor write here.
USER 0
WORKDIR /build
# Before the script, so that a changed script does not install again.
COPY requirements.txt ./
ARG PIP_INDEX_URL
# Two packages only, so that those of the image stay; Debian's Python needs the variable.
RUN PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --no-cache-dir -r requirements.txt
COPY download_model.py ./
# An argument that is not given stays unset, and the script's default holds.
ARG MODEL_ID
ARG MODEL_REVISION
ARG SPEC_DRAFT_MODEL_ID
ARG SPEC_DRAFT_MODEL_REVISION
ARG SPEC_DRAFT_OPTIONAL
ARG MODELSCOPE_ENDPOINT
# A new value makes the build ask the hub again.
ARG REFRESH
# A broken build leaves its files in the cache, for the next one; the login is in memory only.
RUN --mount=type=cache,id=modelscope,target=/build/unfinished,sharing=locked \
    --mount=type=secret,id=modelscope_token --mount=type=tmpfs,target=/login \
    set -eu; \
    if [ -e /run/secrets/modelscope_token ]; then \
        MODELSCOPE_API_TOKEN=$(cat /run/secrets/modelscope_token); export MODELSCOPE_API_TOKEN; \
    fi; \
    cache=unfinished/${MODEL_ID-}@${MODEL_REVISION-}; \
    # The exit code goes through a file, as that of a pipe is tee's.
    download() { \
        { MODELSCOPE_HOME=/login python3 download_model.py --revision "${MODEL_REVISION-}" \
            --cache_dir "$cache" 2>&1 >log || echo $? >code; } | tee warnings; \
        cat log; \
        [ ! -e code ] || exit "$(cat code)"; \
    }; \
    download; \
    # A broken build of an older revision left files that must not be in the image: start over.
    if grep -q '^WARNING: not in this revision' warnings; then rm -r "$cache"; download; fi; \
    mkdir /weights; \
    mv "$(sed -n 's/^Resolved model_dir: //p' log)" /weights/main; \
    draft=$(sed -n 's/^\[spec\] Resolved draft_model_dir: //p' log); \
    [ -z "$draft" ] || mv "$draft" /weights/draft; \
    rm -r "$cache"; \
    # Any user can read them, and the same files make the same layer.
    chmod -R u=rwX,go=rX /weights; find /weights -exec touch -d @0 {} +

# The model folders and nothing else, to mount or to copy from.
FROM scratch AS weights
COPY --from=download /weights/ /

FROM ${SERVE_IMAGE} AS serve
COPY --from=download /weights/ /app/model/
# Without a draft model its folder is missing: [ -d "$DRAFT_DIR" ] tells.
ENV MODEL_DIR=/app/model/main DRAFT_DIR=/app/model/draft HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1
