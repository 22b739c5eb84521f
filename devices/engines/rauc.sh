
# A RAUC handler: replaces RAUC's own installation, so no slot is written.  RAUC calls it from the mounted and verified bundle.
bundle=${RAUC_BUNDLE_MOUNT_POINT:-${RAUC_UPDATE_SOURCE:-$(dirname "$0")}}
set -- "$bundle"/*.eep
[ $# -eq 1 ] && [ -f "$1" ] || { say "expected one patch in the bundle, got $*"; exit 5; }
install_patch "$1" "$(basename "$1" .eep)"
