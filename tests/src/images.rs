//! Disk images of guests on a replicated device: what QEMU's tools do with them, as scripts for a node.
//!
//! The device is a name QEMU opens: a path, or `nbd+unix:///EXPORT?socket=PATH`.

use crate::shell::quoted;

/// Packages of the scripts, by their Debian names.
pub const PACKAGES: &[&str] = &["qemu-utils"];

/// `qemu-io` tells of a wrong pattern, and on some versions succeeds nevertheless.
const CHECKED: &str = "set -e\n\
    io() { qemu-io -t none \"$@\" >io.log 2>&1 && ! grep -i fail io.log || { cat io.log >&2; exit 1; }; }\n";

/// Puts a raw image on `device`, and makes one of its own in `folder` for the checks of either kind.
pub fn put_raw(device: &str, folder: &str) -> String {
    let device = quoted(device);
    format!(
        "{CHECKED}mkdir -p {folder}; cd {folder}\n\
         head -c 6000000 /dev/urandom >image; truncate -s 16M image; head -c 2M /dev/urandom >>image\n\
         qemu-img convert -n -t none -f raw -O raw image {device}\n\
         for c in 'write -P 0xa5 1M 256k' 'write -z 2M 64k' 'write -P 0x77 17M 4k' 'discard 3M 1M' flush; do\n\
             io -f raw -c \"$c\" {device}; io -f raw -c \"$c\" image\n\
         done\n\
         io -f raw -c 'discard 20M 1M' -c 'read -P 0 20M 1M' {device}\n"
    )
}

/// Checks, also on the other node, what [`put_raw`] has put there.
pub fn check_raw(device: &str, folder: &str) -> String {
    let device = quoted(device);
    format!(
        "{CHECKED}cd {folder}\n\
         io -f raw -r -c 'read -P 0xa5 1M 256k' -c 'read -P 0 2M 64k' -c 'read -P 0x77 17M 4k' {device}\n\
         qemu-img compare -f raw -F raw image {device}\n"
    )
}

/// Makes a qcow2 image on `device` after [`put_raw`], with a snapshot, and goes on writing.
pub fn put_qcow2(device: &str, folder: &str) -> String {
    let device = quoted(device);
    format!(
        "{CHECKED}cd {folder}\n\
         qemu-img convert -t none -f raw -O qcow2 image {device}\n\
         qemu-img snapshot -c before {device}\n\
         io -f qcow2 -c 'aio_write -P 0x5a 5M 1M' -c 'aio_write -P 0x5b 9M 64k' -c 'aio_flush' -c 'discard 12M 1M' {device}\n\
         io -f qcow2 -c 'read -P 0x5a 5M 1M' -c 'read -P 0x5b 9M 64k' -c 'read -P 0 12M 1M' {device}\n\
         if qemu-img compare -q -f raw -F qcow2 image {device}; then echo no difference >&2; exit 1; fi\n"
    )
}

/// Checks, also on the other node, what [`put_qcow2`] has made, and goes back to its snapshot.
pub fn check_qcow2(device: &str, folder: &str) -> String {
    let device = quoted(device);
    format!(
        "{CHECKED}cd {folder}\n\
         qemu-img info {device} | grep -q 'file format: qcow2'\n\
         qemu-img check -q -f qcow2 {device}\n\
         io -f qcow2 -r -c 'read -P 0x5a 5M 1M' -c 'read -P 0x5b 9M 64k' -c 'read -P 0 12M 1M' {device}\n\
         qemu-img snapshot -a before {device}\n\
         qemu-img check -q -f qcow2 {device}\n\
         qemu-img compare -f raw -F qcow2 image {device}\n"
    )
}
