#!/usr/bin/env bash
# Six novels by Jane Austen, from Debian's package r-cran-janeaustenr, unpacked into a folder (R itself is not installed).
#
#     scripts/novels.sh [FOLDER]        (default: .cache/novels)
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$(realpath -m "${1:-.cache/novels}")
inside=usr/lib/R/site-library/janeaustenr/data

[ -f "$folder/Rdata.rdb" ] && exit 0
for tool in apt-get dpkg-deb; do
    command -v "$tool" >/dev/null || {
        echo "$tool is missing: the novels come as a Debian package, r-cran-janeaustenr" >&2
        exit 1
    }
done
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cd "$scratch"
apt-get download -qq r-cran-janeaustenr 2>/dev/null || {
    echo "apt-get finds no r-cran-janeaustenr: run 'apt-get update' first" >&2
    exit 1
}
dpkg-deb -x r-cran-janeaustenr_*.deb unpacked
mkdir -p "$folder"
cp "unpacked/$inside"/Rdata.* "$folder"
