#!/bin/sh
# Fetches SmolLM2-135M, quantizes it to 4 bits a weight and generates text.
set -eu
cd "$(dirname "$0")/.."
./scripts/get-smollm2.sh
exec cargo run --release --quiet -- generate --model smollm2-135m-ws4 --chat --temperature 0 --max-tokens 64 "${1:-Explain in two sentences why the sky is blue.}"
