#!/usr/bin/env bash
# Installs Chromium, in which tests/browser looks at the pages that vila_mc writes: where apt and root
# are, and none is there yet. Whatever happens it says one line and ends well: without a browser those
# tests are skipped.
#
#   bash tools/setup/chromium.sh          a minute or two; 300 MB
set -uo pipefail

_chromium_seconds=300 # for all of it

if command -v chromium chromium-browser google-chrome google-chrome-stable >/dev/null; then
    exit 0
fi
if ! command -v apt-get >/dev/null || [[ $(id -u) != 0 ]]; then
    echo "no Chromium here, and no apt with root to install one: tests/browser will be skipped"
    exit 0
fi
echo "Installing Chromium for tests/browser ..."
if ! timeout "$_chromium_seconds" bash -c 'apt-get -qq update && DEBIAN_FRONTEND=noninteractive \
    apt-get -qq install --no-install-recommends --yes chromium' >/dev/null 2>&1; then
    echo "Chromium could not be installed: tests/browser will be skipped"
fi
