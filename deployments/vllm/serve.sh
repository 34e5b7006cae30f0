#!/usr/bin/env bash
# vLLM on a GPU for the describe stage: vllm 0.32, settings from the environment, further flags as arguments.
#
#     SERVE_MODEL=Qwen/Qwen2.5-VL-7B-Instruct VLLM_API_KEY=... deployments/vllm/serve.sh
#
# NOT RUN ON A GPU YET. It was run on a CPU with the development model, on one engine: vLLM 0.32 takes these flags, and those about images, keys, patterns
# and queues do what is said here. What is said about speed, memory and several GPUs is from vLLM's documentation.
set -euo pipefail

model=${SERVE_MODEL:?the model, as Qwen/Qwen2.5-VL-7B-Instruct, or its folder}
data_parallel_size=${SERVE_DATA_PARALLEL_SIZE:-1}
max_num_seqs=${SERVE_MAX_NUM_SEQS:-256}

# The key is read by vLLM itself; as a flag, everybody on the machine would see it in the list of processes. An empty one is none.
# It guards /v1 only: /invocations does the same work for anyone who reaches the port, so nobody else may reach it.
export VLLM_API_KEY=${VLLM_API_KEY:-}
[ -n "$VLLM_API_KEY" ] || unset VLLM_API_KEY

export VLLM_NO_USAGE_STATS=${VLLM_NO_USAGE_STATS:-1} DO_NOT_TRACK=${DO_NOT_TRACK:-1}

flags=(
    --served-model-name "${SERVE_NAME:-$model}"
    # This machine only, unless asked for: see the key above.
    --host "${SERVE_HOST:-127.0.0.1}"
    --port "${SERVE_PORT:-8000}"

    # The strongest lever on speed: every 28 x 28 pixels are one token to Qwen's models, so 448 x 448 are 256. Larger images are shrunk to it.
    --mm-processor-kwargs "{\"max_pixels\": ${SERVE_MAX_PIXELS:-200704}}"
    # One image a request, and memory is not held ready for videos.
    --limit-mm-per-prompt '{"image": 1, "video": 0}'
    # The cache of prepared images, in GiB. No image comes twice, and every process would hold one.
    --mm-processor-cache-gb 0
    # Requests bring their images. Of the domains that images may be fetched from there is none, or a caller could make the server ask for any address.
    --allowed-media-domains none.invalid

    # Prompt, image and reply together. What vLLM would take from the model is far more, and asks for memory that requests under way could use.
    --max-model-len "${SERVE_MAX_MODEL_LEN:-4096}"
    # Requests under way at once on each GPU. The client's concurrency should reach it: what it does not send cannot be worked on together.
    --max-num-seqs "$max_num_seqs"
    # Accepted requests, under way or waiting; more are answered by 503 at once, and not only after the client has given up on them.
    --max-num-queued-reqs "${SERVE_MAX_QUEUED:-$((2 * data_parallel_size * max_num_seqs))}"
    # Copies of the model, a GPU each, for a model that fits on one: nothing has to be exchanged between them.
    --data-parallel-size "$data_parallel_size"
    # Processes that decode and shrink images: one is not enough for several GPUs.
    --api-server-count "${SERVE_API_SERVER_COUNT:-$data_parallel_size}"

    # Sampling as the request says and otherwise as vLLM does it; a model's own defaults, such as a repetition penalty, would change descriptions unasked.
    --generation-config vllm
    # Named, because under "auto" the first pattern after the start chooses for all later ones, and a pattern that the chosen one cannot read is
    # answered by 500, as if trying again could help. Named, it is a 400 each time.
    --structured-outputs-config '{"backend": "xgrammar"}'

    # Seconds after SIGTERM in which requests under way are finished. At 0 they are lost.
    --shutdown-timeout "${SERVE_SHUTDOWN_TIMEOUT:-60}"
    # No line for each request: there are as many as images. /metrics counts them. (Their contents are logged only with --enable-log-requests.)
    --disable-uvicorn-access-log
)

exec vllm serve "$model" "${flags[@]}" "$@"
