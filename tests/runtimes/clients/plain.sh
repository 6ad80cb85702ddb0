#!/bin/sh
# An app that is a shell script: plain.sh curl|wget
# It says nothing of whom to trust. What the API says stays JSON, so no string is decoded here.
set -u
url=https://api.openai.com/v1/chat/completions
asked='{"model":"gpt-4o-mini","messages":[{"role":"user","content":"hi"}]}'
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

by_curl() {
    curl --silent --show-error --max-time 20 --output "$folder/body" \
        --header "Authorization: Bearer ${OPENAI_API_KEY:-}" \
        --header 'Content-Type: application/json' --data "$asked" \
        --write-out '%{response_code}' "$url" >"$folder/status" 2>"$folder/errors"
    tail -c 3 "$folder/status"
}

by_wget() {
    wget --no-verbose --timeout=20 --tries=1 --server-response --content-on-error \
        --header="Authorization: Bearer ${OPENAI_API_KEY:-}" \
        --header='Content-Type: application/json' --post-data="$asked" \
        --output-document="$folder/body" "$url" 2>"$folder/errors"
    sed -n 's|^ *HTTP/1\.[01] \([0-9]*\).*|\1|p' "$folder/errors" | tail -n 1
}

# As the inside of a JSON string.
escaped() {
    tr -s '\n\t\r' '   ' <"$1" | sed 's/["\\]/\\&/g'
}

status=$("by_${1:-curl}")
if [ "$status" = 200 ]; then
    text=$(sed -n 's/.*"content": *\("\([^"\\]\|\\.\)*"\).*/\1/p' "$folder/body")
    printf '{"ok": true, "status": 200, "text": %s, "error": null}\n' "$text"
else
    [ -s "$folder/body" ] && cat "$folder/body" >>"$folder/errors"
    case $status in '' | 000) status=null ;; esac
    printf '{"ok": false, "status": %s, "text": null, "error": "%s"}\n' \
        "$status" "$(escaped "$folder/errors")"
    exit 1
fi
