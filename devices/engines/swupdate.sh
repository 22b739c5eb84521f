
# A shellscript of SWUpdate: called as preinst, postinst and, by newer versions when another part failed, postfailure.
digest=@DIGEST@
incoming=@INCOMING@/$digest.eep
case "${1:-postinst}" in
postinst)
    install_patch "$incoming" "$digest"
    code=$?
    rm -f "$incoming"
    exit $code
    ;;
postfailure)
    rm -f "$incoming"
    return_from "$digest"
    ;;
*) ;;
esac
