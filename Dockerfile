# Only downloads: any image with Python 3.10 or newer.
ARG PYTHON_IMAGE=python:3.12-slim
# What serves: your own image, whatever its server is.
ARG SERVE_IMAGE=${PYTHON_IMAGE}
# Asked by the last line, on what it stands: whether there is a draft model for certain.
ARG SPEC_DRAFT_MODEL_ID=""
ARG SPEC_DRAFT_OPTIONAL=""

# A stage of its own: neither Python packages nor credentials reach the image.
FROM ${PYTHON_IMAGE} AS download
# Where the script runs; nothing of it is copied but the model.
WORKDIR /build
# Before the script, so that an edit to it installs nothing again.
COPY requirements.txt ./
# An index other than pip's own, such as a mirror; only this stage knows it.
ARG PIP_INDEX_URL
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
# Such as a date: another value than last time, and the hub is asked again.
ARG REFRESH
# An unfinished model stays in the builder, for the next build to go on from. Blank: it doesn't,
# a build that breaks starts anew, and one that doesn't writes the model once less.
ARG KEEP_UNFINISHED=1
# The token is a file in memory, and so is the login the SDK makes of it: no layer ever holds them.
RUN --mount=type=cache,id=modelscope,target=/build/unfinished \
    --mount=type=secret,id=modelscope_token --mount=type=tmpfs,target=/login \
    set -eu; \
    if [ -e /run/secrets/modelscope_token ]; then \
        MODELSCOPE_API_TOKEN=$(cat /run/secrets/modelscope_token); export MODELSCOPE_API_TOKEN; \
    fi; \
    # A folder for each model, and a lock: one build at a time fills it, moves it out, removes it.
    printf '%s\n' "${MODEL_ID-}" "${MODEL_REVISION-}" >key; key=$(sha256sum key); \
    cache=${KEEP_UNFINISHED:+unfinished/}${key%% *}; exec 9>"$cache.lock"; \
    flock -n 9 || { echo "Waiting for another build of this model."; flock 9; }; \
    # Files and a FIFO in place of pipes, which would hide the exit code.
    download() { \
        mkfifo errors; tee warnings <errors >&2 & \
        code=0; MODELSCOPE_HOME=/login python download_model.py --revision "${MODEL_REVISION-}" \
            --cache_dir "$cache" >log 2>errors || code=$?; \
        wait; rm errors; cat log; [ "$code" = 0 ] || exit "$code"; \
    }; \
    download; \
    # A broken build left files that are no longer in the revision: not for this image. Anew.
    if grep -q '^WARNING: not in this revision' warnings; then rm -r "$cache"; download; fi; \
    mkdir /weights; \
    draft=$(sed -n 's/^\[spec\] Resolved draft_model_dir: //p' log); \
    if [ -n "$draft" ]; then mv "$draft" /weights/draft; fi; \
    mv "$(sed -n 's/^Resolved model_dir: //p' log)" /weights/main; \
    # The rest is the SDK's locks, and what a failed draft model left.
    rm -r "$cache"; \
    # Whatever user serves can read them.
    chmod -R u=rwX,go=rX /weights; \
    # The same files make the same layer, whenever they were downloaded.
    find /weights -exec touch -d @0 {} +; \
    for folder in main ${draft:+draft}; do \
        echo "In the image: /app/model/$folder (with --target weights: /$folder)"; \
    done

# An image to mount, or to copy from: the model folders and nothing else.
FROM scratch AS weights
# The parent folder, as there may be no draft model.
COPY --from=download /weights/ /

# What serves.
FROM ${SERVE_IMAGE} AS serve
# A layer of its own: a registry moves it once. Not from `weights`, which need not be built then.
COPY --from=download /weights/ /app/model/
# Where the model is, and that libraries ask no hub for it.
ENV MODEL_DIR=/app/model/main HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1

# An optional draft model may have failed, so nothing is said of where it is.
FROM serve AS serve-draft-optional

# Without this draft model there would be no image.
FROM serve AS serve-draft
# Where the draft model is.
ENV DRAFT_DIR=/app/model/draft

# Last, so that it is what a build without --target makes: the one of the three that is true.
# hadolint ignore=DL3006
FROM serve${SPEC_DRAFT_MODEL_ID:+-draft${SPEC_DRAFT_OPTIONAL:+-optional}}
