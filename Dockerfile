# hadolint global ignore=DL3002,DL3003,DL4006
# Root is only for the download stage; its exit code comes from a file, not from the pipe.
# Image used to download: any with Python 3.10 or newer and pip.
ARG PYTHON_IMAGE=python:3.12-slim
# Base of the final image: your server's image, or scratch for the models and nothing else.
ARG SERVE_IMAGE=${PYTHON_IMAGE}

# On the builder's own platform: a build for several downloads once.
FROM --platform=$BUILDPLATFORM ${PYTHON_IMAGE} AS download
# Your own image may have another user, who can neither install packages nor write here.
USER 0
WORKDIR /build
COPY requirements.txt ./
# Only the SDK is pinned, so the image's other packages stay; Debian's pip needs the variable.
ARG PIP_INDEX_URL PIP_TRUSTED_HOST
RUN PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --no-cache-dir -r requirements.txt
COPY download_model.py .docker/layers.py ./
# The script's environment, except MODEL_REVISION; one not given stays unset: its default holds.
ARG MODEL_ID MODEL_REVISION MODELSCOPE_ENDPOINT
ARG SPEC_DRAFT_MODEL_ID SPEC_DRAFT_MODEL_REVISION SPEC_DRAFT_OPTIONAL
# A new value makes the build download again.
ARG REFRESH
# A broken build leaves its downloads in the cache for the next one; the login is in memory.
RUN --mount=type=cache,id=modelscope,target=/build/unfinished,sharing=locked \
    --mount=type=secret,id=modelscope_token --mount=type=tmpfs,target=/login \
    set -eu; secret=/run/secrets/modelscope_token; \
    if [ -e $secret ]; then MODELSCOPE_API_TOKEN=$(cat $secret); export MODELSCOPE_API_TOKEN; fi; \
    cache=unfinished/${MODEL_ID-}@${MODEL_REVISION-}; \
    # Results go to log; progress and warnings to the screen and to warnings. The exit code goes
    # through a file, because the pipe's own is tee's.
    download() { \
        { MODELSCOPE_HOME=/login python3 download_model.py --revision "${MODEL_REVISION-}" \
            --cache_dir "$cache" 2>&1 >log || echo $? >code; } | tee warnings; \
        cat log; [ ! -e code ] || exit "$(cat code)"; }; \
    download; \
    # Stale files of an older revision must not get in. This downloads the model again in full.
    if grep -q '^WARNING: not in this revision' warnings; then rm -r "$cache"; download; fi; \
    main=$(sed -n 's/^Resolved model_dir: //p' log); \
    draft=$(sed -n 's/^\[spec\] Resolved draft_model_dir: //p' log); \
    python3 layers.py /layers "$main" ${draft:+"$draft"}; rm -r "$cache"

FROM ${SERVE_IMAGE} AS serve
# Ten layers, as registries limit the size of one; those that change with the draft come last.
# The owner is one without a name: Docker 20.10 writes the name into a layer, others do not.
# Without --link, which breaks Docker 20.10 and buildah before 1.41.
COPY --from=download --chown=65530:65530 /layers/1/ /
COPY --from=download --chown=65530:65530 /layers/2/ /
COPY --from=download --chown=65530:65530 /layers/3/ /
COPY --from=download --chown=65530:65530 /layers/4/ /
COPY --from=download --chown=65530:65530 /layers/5/ /
COPY --from=download --chown=65530:65530 /layers/6/ /
COPY --from=download --chown=65530:65530 /layers/7/ /
COPY --from=download --chown=65530:65530 /layers/8/ /
COPY --from=download --chown=65530:65530 /layers/9/ /
COPY --from=download --chown=65530:65530 /layers/0/ /
ARG MODEL_ID MODEL_REVISION SPEC_DRAFT_MODEL_ID SPEC_DRAFT_MODEL_REVISION
LABEL modelscope.model=${MODEL_ID} modelscope.revision=${MODEL_REVISION:-master} \
    modelscope.draft=${SPEC_DRAFT_MODEL_ID} \
    modelscope.draft_revision=${SPEC_DRAFT_MODEL_REVISION:-master}
# Never ask the hub at run time. Without a draft model, DRAFT_DIR does not exist.
ENV MODEL_DIR=/model/main DRAFT_DIR=/model/draft HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1
