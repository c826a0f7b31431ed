//! Handlers, and what the scripts of `drbd-utils` expect to find when they are run (states spec 20.1).

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use udrbd_tests::pair::{Node, Pair, PairOptions};

/// What a handler has found; each writes its own file.
fn environment(folder: &Path, handler: &str, node: Node) -> Result<BTreeMap<String, String>> {
    let file = folder.join(format!("{handler}.{}", node.name()));
    let text = fs::read_to_string(&file).with_context(|| format!("{handler} did not run"))?;
    let pair = |line: &str| line.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
    Ok(text.lines().filter_map(pair).collect())
}

fn expect(found: &BTreeMap<String, String>, wanted: &[(&str, &str)]) -> Result<()> {
    for (name, value) in wanted {
        let own = found.get(*name).map(String::as_str);
        ensure!(own == Some(*value), "{name} is {own:?}, not {value:?}, in {found:?}");
    }
    Ok(())
}

/// A handler of a volume, run by the daemon when a resync begins, and one of the resource, run when fencing is due.
pub(crate) fn environment_is_drbds() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let note = |handler: &str| {
        format!("{handler} \"env >{}/{handler}.$__DRBD_NODE__; exit 0\";", folder.path().display())
    };
    let mut pair = Pair::new(PairOptions {
        disk: format!("{} fencing resource-only;", PairOptions::default().disk),
        handlers: note("before-resync-target") + &note("after-resync-target") + &note("fence-peer"),
        ..PairOptions::default()
    })?;
    pair.bring_up_and_sync()?;
    pair.kill(Node::Beta)?;
    pair.wait(Node::Alpha, "WFConnection", |status| status.connection == "WFConnection")?;
    let address = [
        ("DRBD_RESOURCE", "r0"),
        ("DRBD_PEER_AF", "ipv4"),
        ("DRBD_PEER_ADDRESS", "127.0.0.1"),
        // As the kernel starts its helper.
        ("HOME", "/"),
        ("TERM", "linux"),
    ];
    for handler in ["before-resync-target", "after-resync-target"] {
        let found = environment(folder.path(), handler, Node::Beta)?;
        expect(&found, &address)?;
        expect(&found, &[("DRBD_PEER", "alpha"), ("DRBD_PEERS", "alpha"), ("DRBD_VOLUME", "0")])?;
        for name in ["DRBD_MINOR", "DRBD_LL_DISK", "DRBD_CONF"] {
            ensure!(found.get(name).is_some_and(|value| !value.is_empty()), "no {name} in {found:?}");
        }
        if !Path::new(&found["DRBD_LL_DISK"]).exists() || !Path::new(&found["DRBD_CONF"]).exists() {
            bail!("no such disk or configuration: {found:?}");
        }
    }
    let found = environment(folder.path(), "fence-peer", Node::Alpha)?;
    expect(&found, &address)?;
    expect(&found, &[("DRBD_PEER", "beta"), ("DRBD_PEERS", "beta")])?;
    ensure!(found.contains_key("DRBD_MINOR"), "no minors in {found:?}");
    ensure!(!found.contains_key("DRBD_VOLUME"), "a volume for a handler of all of them: {found:?}");
    Ok(())
}

/// Scripts read `/proc/drbd`, as those of `drbd-utils` do: they find the states of this moment, whatever way they read.
pub(crate) fn scripts_find_our_devices() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = |name: &str| folder.path().join(name);
    let script = format!(
        "#!/bin/bash\nsed -n '/cs:/p' /proc/drbd >{out}.sed\ngrep cs: < /proc/drbd >{out}.grep\n\
         text=$(</proc/drbd); echo \"$text\" | grep cs: >{out}.bash\necho \"${{0##*/}} $*\" >{out}.words\nexit 7\n",
        out = path("found").display()
    );
    fs::write(path("fence.sh"), script)?;
    fs::set_permissions(path("fence.sh"), fs::Permissions::from_mode(0o755))?;
    // As drbd-utils calls one script by many names.
    std::os::unix::fs::symlink("fence.sh", path("fence-peer.sh"))?;
    let handler = format!("fence-peer \"{} --timeout 10 /etc/fstab\";", path("fence-peer.sh").display());
    let mut pair = Pair::new(PairOptions {
        disk: format!("{} fencing resource-and-stonith;", PairOptions::default().disk),
        handlers: handler,
        ..PairOptions::default()
    })?;
    pair.bring_up_and_sync()?;
    pair.kill(Node::Beta)?;
    pair.wait(Node::Alpha, "an outdated peer", |status| status.peer_disk == "Outdated")?;
    for way in ["sed", "grep", "bash"] {
        let found = fs::read_to_string(path(&format!("found.{way}")))?;
        // The peer is gone, and nobody knows yet what of its disk.
        ensure!(
            found.contains(" ro:Primary/Unknown ds:UpToDate/DUnknown ") && found.lines().count() == 1,
            "with {way} a script finds {found:?}"
        );
    }
    let words = fs::read_to_string(path("found.words"))?;
    ensure!(words == "fence-peer.sh --timeout 10 /etc/fstab\n", "the script was called as {words:?}");
    Ok(())
}
