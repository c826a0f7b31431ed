//! A split brain, its report, and whether the commands it prints end it.

use anyhow::{Context as _, Result, bail};
use udrbd_tests::nbd::Nbd;
use udrbd_tests::pair::{Node, Pair, PairOptions};
use udrbd_tests::target::TargetName;

use crate::compare;

/// What alpha and beta write where, while they are apart.
const ALPHA: (u64, u8) = (1 << 20, 0xA1);
const BETA: (u64, u8) = (5 << 20, 0xB2);
const BYTES: usize = 64 << 10;

pub(crate) fn device(pair: &Pair, node: Node) -> Result<Nbd> {
    let TargetName::Nbd(socket, export) = pair.export(node) else { bail!("an export is NBD") };
    Nbd::connect(&socket, &export)
}

/// Both nodes promoted behind each other's back, and met again.
fn split(pair: &mut Pair) -> Result<()> {
    pair.bring_up_and_sync()?;
    pair.adm(Node::Beta, "disconnect r0")?;
    pair.adm(Node::Beta, "primary r0")?;
    for (node, (offset, byte)) in [(Node::Alpha, ALPHA), (Node::Beta, BETA)] {
        device(pair, node)?.write(offset, &[byte; BYTES], false)?;
    }
    pair.adm(Node::Beta, "connect r0")?;
    for node in Node::BOTH {
        pair.wait(node, "StandAlone", |status| status.connection == "StandAlone")?;
    }
    Ok(())
}

fn report(pair: &Pair, node: Node) -> Result<String> {
    pair.adm(node, "split-brain-report r0")
}

/// Every part has to be there.
pub(crate) fn expect(text: &str, parts: &[&str]) -> Result<()> {
    match parts.iter().find(|part| !text.contains(**part)) {
        Some(missing) => bail!("'{missing}' is missing in:\n{text}"),
        None => Ok(()),
    }
}

/// The printed commands that keep the data of a node: where, and what.
fn commands(report: &str, keeps: Node) -> Result<Vec<(Node, &str)>> {
    let begin = format!("To keep the data of {},", keeps.name());
    let mut lines = report.lines().map(str::trim).skip_while(|line| !line.starts_with(&begin)).skip(1);
    let mut found = Vec::new();
    while let (Some(place), Some(command)) = (lines.next(), lines.next()) {
        if !command.starts_with("drbdadm ") {
            break;
        }
        let node = Node::BOTH.into_iter().find(|node| place.starts_with(&format!("on {}", node.name())));
        found.push((node.with_context(|| place.to_owned())?, command));
    }
    Ok(found)
}

pub(crate) fn explained() -> Result<()> {
    let mark = |name: &str| format!("{name} \"echo {name} on $__DRBD_NODE__ >&2\";");
    let mut pair = Pair::new(PairOptions {
        handlers: mark("initial-split-brain") + &mark("split-brain"),
        ..PairOptions::default()
    })?;
    split(&mut pair)?;
    for node in Node::BOTH {
        let name = node.name();
        let log = pair.whole_log(node)?;
        expect(
            &log,
            &[
                "Split-Brain detected, dropping connection!",
                "Split-Brain detected but unresolved, dropping connection!",
                &format!("initial-split-brain: initial-split-brain on {name}"),
                &format!("split-brain: split-brain on {name}"),
                "'drbdadm split-brain-report r0' says",
            ],
        )?;
        let (place, other) = match node {
            Node::Alpha => ("1024 KiB           64 KiB", "beta"),
            Node::Beta => ("5120 KiB           64 KiB", "alpha"),
        };
        let text = report(&pair, node)?;
        let title = format!("r0: SPLIT BRAIN between {name} (this node) and {other}");
        let rows = [
            title.as_str(),
            "changed               64 KiB (16 blocks)                  64 KiB (16 blocks)",
            "role                  Primary                             Primary",
            place,
            "after-sb-2pri, if both are Primary, as when it was found\n   * disconnect               they stay apart",
        ];
        expect(&text, &rows)?;
        let json = pair.adm(node, "split-brain-report r0 --json")?;
        expect(&json, &["\"option\": \"after-sb-2pri\"", "\"changed-blocks\": 16"])?;
    }
    // It is remembered when the daemon has died, and the device with it.
    let before = report(&pair, Node::Beta)?;
    pair.kill(Node::Beta)?;
    pair.start(Node::Beta)?;
    pair.adm(Node::Beta, "new-resource r0")?;
    pair.adm(Node::Beta, "new-minor r0")?;
    pair.adm(Node::Beta, "attach r0")?;
    let after = report(&pair, Node::Beta)?;
    let line = |text: &str, word: &str| {
        let begin = |line: &&str| line.trim_start().starts_with(word);
        let line = text.lines().find(begin).unwrap_or_default();
        // How long ago that is goes on.
        line.split(" (").next().unwrap_or_default().to_owned()
    };
    for word in ["apart since", "found", "bitmap", "current"] {
        if line(&before, word).is_empty() || line(&before, word) != line(&after, word) {
            bail!("another '{word}' after the restart:\n{before}\n{after}");
        }
    }
    // What it prints, word for word.
    let text = report(&pair, Node::Alpha)?;
    let commands = commands(&text, Node::Alpha)?;
    let places: Vec<Node> = commands.iter().map(|(node, _)| *node).collect();
    if places != [Node::Beta, Node::Alpha] {
        bail!("{commands:?} in:\n{text}");
    }
    for (node, command) in &commands {
        let output = pair.shell(*node, command)?;
        if output.status != 0 {
            bail!("'{command}' on {} ended with {}: {}", node.name(), output.status, output.stderr);
        }
    }
    pair.wait_healthy()?;
    compare(&pair, Node::Alpha)?;
    let mut device = device(&pair, Node::Alpha)?;
    let mut bytes = vec![0; BYTES];
    device.read(ALPHA.0, &mut bytes)?;
    if bytes != [ALPHA.1; BYTES] {
        bail!("the survivor's data are gone");
    }
    device.read(BETA.0, &mut bytes)?;
    if bytes != [0; BYTES] {
        bail!("the victim's changes are still there");
    }
    let ended = [
        "r0: no split brain is known. The connection is Connected.",
        "by discard-my-data: the data of alpha were kept",
    ];
    for node in Node::BOTH {
        expect(&report(&pair, node)?, &ended)?;
    }
    Ok(())
}
