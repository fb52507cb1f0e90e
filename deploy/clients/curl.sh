#!/usr/bin/env bash
# What the HTTP API can be asked, with curl: bash deploy/clients/curl.sh [URL]. With API keys, set KEY.
set -euo pipefail
url=${1:-http://127.0.0.1:8000}
ask() { curl --silent --show-error --fail-with-body -H "Authorization: Bearer ${KEY:-}" -H "Content-Type: application/json" "$@"; }

# A picture file.
ask "$url/v1/images" -d '{"prompt": "红苹果", "style": "noto", "seed": 1, "response_format": "png"}' -o apple.png

# Two pictures as JSON.
ask "$url/v1/images" -d '{"prompt": "红苹果", "n": 2}' | head -c 200; echo

# The picture as it grows, then the finished one: server-sent events.
ask --no-buffer "$url/v1/images" -d '{"prompt": "红苹果", "stream": true}' | cut -c 1-80

# A caption. The picture goes through a file, since it may be longer than an argument can be.
printf '{"image": "%s"}' "$(base64 < apple.png | tr -d '\n')" > caption.json
ask "$url/v1/captions" -d @caption.json; echo

# The lower half anew.
printf '{"prompt": "绿苹果", "keep_rows": 4, "response_format": "png", "image": "%s"}' "$(base64 < apple.png | tr -d '\n')" > complete.json
ask "$url/v1/images" -d @complete.json -o completed.png

# Paddle Serving's form and PaddleHub's.
ask "$url/ernievilg/prediction" -d '{"key": ["prompt", "seed"], "value": ["红苹果", "1"]}' | head -c 200; echo
ask "$url/predict/ernie_vilg" -d '{"text_prompts": ["红苹果"], "style": "noto", "topk": 1}' | head -c 200; echo
