//! Handlers, and what the scripts of `drbd-utils` expect to find when they are run (states spec 20.1).

use std::collections::BTreeMap;
use std::fs;
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
