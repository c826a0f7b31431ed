# The names that udrbd takes over from drbd-utils, and how. Part of the maintainer scripts that say so.
#
# Debian 12's package has its files in /sbin and /lib, Debian 13's the same ones in /usr/sbin and /usr/lib. To dpkg
# these are different files, so both names are diverted, each to a place of its own. Only the one that the package
# really has is moved: the other is the same file seen through a link.

KEPT=/usr/lib/udrbd/diverted

each_name() {
    for name in drbdadm drbdsetup drbdmeta drbd-overview; do
        "$1" "/sbin/$name"
        "$1" "/usr/sbin/$name"
    done
    for name in systemd/system/drbd.service systemd/system/drbd@.service systemd/system/drbd@.target \
        modules-load.d/drbd.conf; do
        "$1" "/lib/$name"
        "$1" "/usr/lib/$name"
    done
}

whether_to_move() {
    if dpkg-query --listfiles drbd-utils 2>/dev/null | grep -qxF "$1"; then
        echo --rename
    else
        echo --no-rename
    fi
}

divert() {
    mkdir -p "$KEPT${1%/*}"
    dpkg-divert --quiet --package udrbd --add "$(whether_to_move "$1")" --divert "$KEPT$1" "$1"
}

restore() {
    # An upgrade of drbd-utils from one name of a folder to the other can have removed the folder it saw as empty.
    if [ -e "$KEPT$1" ]; then
        mkdir -p "${1%/*}"
    fi
    dpkg-divert --quiet --package udrbd --remove "$(whether_to_move "$1")" --divert "$KEPT$1" "$1"
    rmdir -p --ignore-fail-on-non-empty "$KEPT${1%/*}" 2>/dev/null || true
}
