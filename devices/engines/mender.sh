
# A Mender update module (v3): copy it to /usr/share/mender/modules/v3/edgeedit, once.  Called with a state and the payload's folder,
# whose one file is named <digest>.eep.
set -- "${1:-}" "${2:-.}"/files/*.eep
digest=$(basename "$2" .eep)
case "$1" in
NeedsArtifactReboot) echo No ;;
SupportsRollback) echo Yes ;;
ArtifactInstall)
    [ $# -eq 2 ] && [ -f "$2" ] || { say "expected one patch in the payload, got $*"; exit 5; }
    install_patch "$2" "$digest"
    ;;
ArtifactRollback) return_from "$digest" ;;
*) ;;
esac
