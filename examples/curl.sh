#!/usr/bin/env bash
# The API with nothing but curl:
#
#     bash examples/curl.sh http://127.0.0.1:8000
set -euo pipefail
url=${1:-http://127.0.0.1:8000}

ask() { curl --silent --show-error --fail-with-body --no-buffer "$url$1" --json "$2"; echo; }

ask /v1/chat/completions '{
  "messages": [{"role": "user", "content": "What is activation sparsity?"}],
  "max_tokens": 20, "stream": true, "stream_options": {"include_usage": true}
}'
ask /v1/chat/completions '{
  "messages": [{"role": "user", "content": "Is ReLU sparse?"}],
  "guided_choice": ["yes", "no"], "sparsity": {"report": true}
}'
# What an evaluation asks: how likely each token of a text is.
ask /v1/completions '{"prompt": "The sky is blue", "echo": true, "logprobs": 1, "max_tokens": 0}'
ask /tokenize '{"prompt": "The sky is blue", "return_token_strs": true}'
curl --silent --fail-with-body "$url/version"
