#!/usr/bin/env bash
# See to a Vulkan driver (Debian's software driver where there is none). Never fails: without one, Tosaic runs on the
# simulator and on the TOSA reference model, and says that Vulkan is missing.
set -uo pipefail

packages="libvulkan1 mesa-vulkan-drivers"
[ "$(uname -s)" = Linux ] || exit 0

have_loader() { ldconfig -p 2>/dev/null | grep -q 'libvulkan\.so\.1' || /sbin/ldconfig -p 2>/dev/null | grep -q 'libvulkan\.so\.1'; }
have_driver() {
    [ -n "${VK_DRIVER_FILES:-}${VK_ICD_FILENAMES:-}" ] && return 0
    compgen -G '/usr/share/vulkan/icd.d/*.json' >/dev/null || compgen -G '/usr/local/share/vulkan/icd.d/*.json' >/dev/null ||
        compgen -G '/etc/vulkan/icd.d/*.json' >/dev/null
}

have_loader && have_driver && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing a Vulkan driver: apt-get install $packages"
    export DEBIAN_FRONTEND=noninteractive
    # word splitting of $packages is meant
    (apt-get update -qq && apt-get install -y -qq --no-install-recommends $packages) >/dev/null 2>&1 && exit 0
    echo "it could not be installed; Vulkan will be reported as missing" >&2
elif command -v apt-get >/dev/null; then
    echo "There is no Vulkan driver. For the third executor: sudo apt-get install $packages" >&2
else
    echo "There is no Vulkan driver. Install the Vulkan loader and a driver (Mesa's lavapipe will do) for the third executor." >&2
fi
exit 0
