#!/bin/sh
# Installs one edgeedit patch on behalf of an update engine.  The patch's own signature is what is trusted, not the engine's.
# Settings of the device, read as shell from /etc/edgeedit/engine.conf:
#   EDGEEDIT        the command, in words; edgeedit by default, for example: runuser -u edgeedit -- /opt/edgeedit/bin/edgeedit
#   EDGEEDIT_STORE  the store; /var/lib/edgeedit/store by default
#   EDGEEDIT_MODE   apply: try the patch in an engine of its own (default)
#                   stage: leave it to the running application and wait for its verdict, EDGEEDIT_WAIT seconds (600)
#                   native: edgeedit-apply, for a camera without Python; there are no probes then, only digests.  Needs
#                   EDGEEDIT_BUNDLE, EDGEEDIT_TRUST (a .pub file) and EDGEEDIT_WEIGHTS (a folder: current/weights.bin is what to load)
# Exit codes are those of edgeedit: 0 runs or ran already, 4 does not fit, 5 signature or format, 6 refused, 7 reverted, 8 try later.
set -u
umask 022

conf=${EDGEEDIT_ENGINE_CONF:-/etc/edgeedit/engine.conf}
[ ! -r "$conf" ] || . "$conf"
: "${EDGEEDIT:=edgeedit}" "${EDGEEDIT_STORE:=/var/lib/edgeedit/store}" "${EDGEEDIT_MODE:=apply}" "${EDGEEDIT_WAIT:=600}"

say() { echo "edgeedit: $*" >&2; }

# install_patch FILE DIGEST
install_patch() {
    case "$EDGEEDIT_MODE" in
    apply | stage) install_in_store "$1" ;;
    native) install_native "$1" "$2" ;;
    *) say "EDGEEDIT_MODE is wrong: expected apply, stage or native, got $EDGEEDIT_MODE"; return 2 ;;
    esac
}

# The command may run as another user, who cannot read the engine's folders: it gets a copy.
install_in_store() {
    place=$(mktemp -d) || return 6
    chmod 755 "$place" && cp "$1" "$place/patch.eep" && chmod 644 "$place/patch.eep" || { rm -rf "$place"; return 6; }
    if [ "$EDGEEDIT_MODE" = apply ]; then
        # shellcheck disable=SC2086
        $EDGEEDIT apply "$place/patch.eep" --store "$EDGEEDIT_STORE"
    else
        # shellcheck disable=SC2086
        $EDGEEDIT stage "$place/patch.eep" --store "$EDGEEDIT_STORE" --wait "$EDGEEDIT_WAIT"
    fi
    code=$?
    rm -rf "$place"
    [ $code -ne 127 ] || code=6 # no such command on this device
    return $code
}

# return_from DIGEST: leave that patch, whether it runs or is on trial; nothing where it does neither.
return_from() {
    case "$EDGEEDIT_MODE" in
    native) return_native "$1" ;;
    *)
        # shellcheck disable=SC2086
        $EDGEEDIT rollback --patch "$1" --store "$EDGEEDIT_STORE"
        ;;
    esac
}

# A generation is a folder with its chain of patches, its weights and the name of its parent; `current` is replaced by one rename.
install_native() {
    for need in "${EDGEEDIT_BUNDLE:-}" "${EDGEEDIT_TRUST:-}" "${EDGEEDIT_WEIGHTS:-}"; do
        [ -n "$need" ] || { say "settings lack EDGEEDIT_BUNDLE, EDGEEDIT_TRUST or EDGEEDIT_WEIGHTS"; return 2; }
    done
    new=$EDGEEDIT_WEIGHTS/$2.new now=$(readlink "$EDGEEDIT_WEIGHTS/current")
    [ "$now" != "$2" ] || { say "runs already: $2"; return 0; }
    rm -rf "$new" && mkdir -p "$new/chain" && echo "$now" > "$new/parent" || return 6
    count=0
    if [ -n "$now" ]; then
        for file in "$EDGEEDIT_WEIGHTS/$now/chain/"*.eep; do
            cp "$file" "$new/chain/" || return 6
            count=$((count + 1))
        done
    fi
    cp "$1" "$new/chain/$(printf %02d $count)-$2.eep" || return 6
    edgeedit-apply --bundle "$EDGEEDIT_BUNDLE" --trust "$EDGEEDIT_TRUST" "$new/chain/"*.eep -o "$new/weights.bin"
    code=$?
    [ $code -eq 0 ] || { rm -rf "$new"; return $code; }
    rm -rf "${new%.new}" && mv "$new" "${new%.new}" && sync && point "$2"
}

return_native() {
    [ "$(readlink "$EDGEEDIT_WEIGHTS/current")" = "$1" ] || return 0
    point "$(cat "$EDGEEDIT_WEIGHTS/$1/parent")"
}

# point GENERATION: the one that `current` names; without one the base's own weights are what to load.
point() {
    link=$EDGEEDIT_WEIGHTS/current
    if [ -z "$1" ]; then
        rm -f "$link" || return 6
    else
        rm -f "$link.new" && ln -s "$1" "$link.new" && mv -T "$link.new" "$link" || return 6
    fi
    sync
}
