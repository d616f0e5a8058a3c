#!/bin/sh
# Makes texts of three styles to measure perplexity on, in the folder that is given: documentation.txt and code.txt (Flask, BSD-3-Clause),
# dialogue.txt (ChatterBot corpus, BSD-3-Clause), from public Python packages of fixed versions.
set -eu

folder=${1:?"usage: $0 FOLDER"}
mkdir -p "$folder"
work=$(mktemp -d "$folder/.fetch.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
fetch() {
    python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest "$work" "$@"
}
fetch --no-binary :all: flask==3.0.3
fetch chatterbot-corpus==1.2.0
tar -xzf "$work/flask-3.0.3.tar.gz" -C "$work"
python3 -m zipfile -e "$work"/chatterbot_corpus-*.whl "$work"
export LC_ALL=C
cat "$work"/flask-3.0.3/docs/*.rst > "$work/documentation.txt"
cat "$work"/flask-3.0.3/src/flask/*.py > "$work/code.txt"
# A turn a line, the two speakers told apart, an empty line between conversations.
sed -n -e 's/^- - */\nA: /p' -e 's/^  - */B: /p' "$work"/chatterbot_corpus/data/english/*.yml > "$work/dialogue.txt"
mv "$work/documentation.txt" "$work/code.txt" "$work/dialogue.txt" "$folder"
wc -c "$folder/documentation.txt" "$folder/code.txt" "$folder/dialogue.txt" >&2
