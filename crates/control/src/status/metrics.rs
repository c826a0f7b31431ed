//! The metrics of a node in Prometheus' text format 0.0.4 (status spec 10.1, 12.5).
//!
//! Names, labels and types are those of drbd-reactor, so existing dashboards work; ours start with `drbdu_`.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use udrbd_units::{ConnectionState, DiskState, Role, SECTOR_BYTES};

use super::words::{connection_word, replication_word};
use super::{
    DRBD_VERSION, DeviceSnapshot, NodeSnapshot, ProgressKind, ProgressSnapshot, ResourceSnapshot, progress,
};

/// The name of the one connection.
const CONNECTION_NAME: &str = "peer";
const BLOCK_BYTES: u64 = udrbd_units::BLOCK_BYTES;
const DISK_WORDS: [&str; 10] = [
    "Diskless",
    "Attaching",
    "Detaching",
    "Failed",
    "Negotiating",
    "Inconsistent",
    "Outdated",
    "DUnknown",
    "Consistent",
    "UpToDate",
];

/// What only the daemon counts, besides the snapshot.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DaemonMetrics {
    /// The version of these utilities.
    pub version: String,
    /// When the daemon started, in seconds since the epoch.
    pub start_time_seconds: u64,
    /// Connections lost, by resource and reason (the connection state that followed).
    pub reconnects: BTreeMap<(String, String), u64>,
    /// Handlers run, by name and exit status.
    pub helper_exits: BTreeMap<(String, u32), u64>,
    /// Split brains detected, by resource.
    pub split_brains: BTreeMap<String, u64>,
    /// Messages logged, by level.
    pub log_messages: BTreeMap<String, u64>,
}

/// The text of the metrics page.
pub fn metrics(node: &NodeSnapshot, daemon: &DaemonMetrics) -> String {
    let mut page = Page::default();
    let version = vec![("kmod", DRBD_VERSION.to_owned()), ("utils", daemon.version.clone())];
    page.family(
        "drbd_version",
        Kind::Gauge,
        "Version of the driver and of the utilities",
        vec![(version, 1.0)],
    );
    resource_metrics(&mut page, node);
    connection_metrics(&mut page, node);
    peer_device_metrics(&mut page, node);
    device_metrics(&mut page, node);
    progress_metrics(&mut page, node);
    daemon_metrics(&mut page, daemon);
    page.text
}

type Labels = Vec<(&'static str, String)>;
type Sample = (Labels, f64);

#[derive(Clone, Copy)]
enum Kind {
    Gauge,
    Counter,
}

#[derive(Default)]
struct Page {
    text: String,
}

impl Page {
    fn family(&mut self, name: &str, kind: Kind, help: &str, samples: Vec<Sample>) {
        let kind = match kind {
            Kind::Gauge => "gauge",
            Kind::Counter => "counter",
        };
        // Writing to a string cannot fail.
        let _ = writeln!(self.text, "# TYPE {name} {kind}\n# HELP {name} {help}");
        for (labels, value) in samples {
            let labels: Vec<String> =
                labels.iter().map(|(key, value)| format!("{key}=\"{}\"", escaped(value))).collect();
            let braces = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
            let _ = writeln!(self.text, "{name}{braces} {value}");
        }
    }
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

const fn truth(value: bool) -> f64 {
    if value { 1.0 } else { 0.0 }
}

/// One sample per possible word, 1 for the one that is.
fn one_of(labels: &Labels, label: &'static str, words: &[&str], is: &str) -> Vec<Sample> {
    words
        .iter()
        .map(|word| {
            let mut labels = labels.clone();
            labels.push((label, (*word).to_owned()));
            (labels, truth(*word == is))
        })
        .collect()
}

fn resource_labels(resource: &ResourceSnapshot) -> Labels {
    vec![("name", resource.name.clone())]
}

fn connection_labels(resource: &ResourceSnapshot) -> Labels {
    vec![
        ("name", resource.name.clone()),
        ("conn_name", CONNECTION_NAME.to_owned()),
        ("peer_node_id", "0".to_owned()),
    ]
}

fn peer_device_labels(resource: &ResourceSnapshot, device: &DeviceSnapshot) -> Labels {
    let mut labels = connection_labels(resource);
    labels.push(("volume", device.volume.to_string()));
    labels
}

fn device_labels(resource: &ResourceSnapshot, device: &DeviceSnapshot) -> Labels {
    vec![
        ("name", resource.name.clone()),
        ("volume", device.volume.to_string()),
        ("minor", device.minor.to_string()),
    ]
}

/// Whether some node could be promoted, and how much this one is worth (status spec 9.2).
fn promotion(resource: &ResourceSnapshot) -> (bool, u64) {
    let up_to_date = |device: &DeviceSnapshot| {
        [device.disk, device.peer_disk].iter().filter(|disk| **disk == DiskState::UpToDate).count()
    };
    let Some(fewest) = resource.devices.iter().map(up_to_date).min() else { return (false, 0) };
    if fewest == 0 {
        return (false, 0);
    }
    let nobody_primary = resource.role() != Role::Primary && resource.peer_role() != Role::Primary;
    let local: Vec<DiskState> = resource.devices.iter().map(|device| device.disk).collect();
    let usable = |disk: &DiskState| {
        matches!(disk, DiskState::UpToDate | DiskState::Consistent | DiskState::Inconsistent)
    };
    let base = if local.iter().all(usable) { 10_000 } else { 0 };
    let local_up_to_date = local.iter().filter(|disk| **disk == DiskState::UpToDate).count();
    (nobody_primary, base + 100 * local_up_to_date.min(99) as u64 + fewest.min(99) as u64)
}

fn resource_metrics(page: &mut Page, node: &NodeSnapshot) {
    let each = |value: &dyn Fn(&ResourceSnapshot) -> f64| -> Vec<Sample> {
        node.resources.iter().map(|resource| (resource_labels(resource), value(resource))).collect()
    };
    let count = vec![(Vec::new(), node.resources.len() as f64)];
    page.family("drbd_resource_resources", Kind::Gauge, "Number of resources", count);
    let roles = node
        .resources
        .iter()
        .flat_map(|resource| {
            let words = ["Unknown", "Primary", "Secondary"];
            one_of(&resource_labels(resource), "drbd_resource_role", &words, resource.role().name())
        })
        .collect();
    page.family("drbd_resource_role", Kind::Gauge, "Role of the resource", roles);
    let suspended = each(&|resource| truth(resource.suspended.any()));
    page.family("drbd_resource_suspended", Kind::Gauge, "Whether I/O is suspended", suspended);
    let may_promote = each(&|resource| truth(promotion(resource).0));
    page.family("drbd_resource_maypromote", Kind::Gauge, "Whether the resource may be promoted", may_promote);
    let score = each(&|resource| promotion(resource).1 as f64);
    page.family("drbd_resource_promotionscore", Kind::Gauge, "The promotion score", score);
    let failing = each(&|_| 0.0);
    page.family("drbd_resource_forceiofailures", Kind::Gauge, "Whether I/O is made to fail", failing);
}

fn connection_metrics(page: &mut Page, node: &NodeSnapshot) {
    let connections: Vec<&ResourceSnapshot> =
        node.resources.iter().filter(|resource| resource.connection.addresses.is_some()).collect();
    let states = connections
        .iter()
        .flat_map(|resource| {
            let words = [
                "StandAlone",
                "Disconnecting",
                "Unconnected",
                "Timeout",
                "BrokenPipe",
                "NetworkFailure",
                "ProtocolError",
                "TearDown",
                "Connecting",
                "Connected",
            ];
            let is = connection_word(resource.connection.state);
            one_of(&connection_labels(resource), "drbd_connection_state", &words, is)
        })
        .collect();
    page.family("drbd_connection_state", Kind::Gauge, "State of the connection", states);
    let each = |value: &dyn Fn(&ResourceSnapshot) -> f64| -> Vec<Sample> {
        connections.iter().map(|resource| (connection_labels(resource), value(resource))).collect()
    };
    let congested = each(&|resource| truth(resource.connection.congested));
    page.family("drbd_connection_congested", Kind::Gauge, "Whether the connection is congested", congested);
    let application =
        each(&|resource| (resource.connection.application_in_flight_sectors * SECTOR_BYTES) as f64);
    page.family("drbd_connection_apinflight_bytes", Kind::Gauge, "Application data in flight", application);
    let resync = each(&|resource| (resource.connection.resync_in_flight_sectors * SECTOR_BYTES) as f64);
    page.family("drbd_connection_rsinflight_bytes", Kind::Gauge, "Resync data in flight", resync);
    let version = each(&|resource| f64::from(resource.connection.protocol_version.unwrap_or(0)));
    page.family(
        "drbdu_protocol_version",
        Kind::Gauge,
        "Agreed protocol version, 0 while not connected",
        version,
    );
}

/// Samples of every volume of every resource.
fn volumes(
    node: &NodeSnapshot,
    labels: fn(&ResourceSnapshot, &DeviceSnapshot) -> Labels,
    value: impl Fn(&DeviceSnapshot) -> f64,
) -> Vec<Sample> {
    let of_resource = |resource: &'_ ResourceSnapshot| -> Vec<Sample> {
        resource.devices.iter().map(|device| (labels(resource, device), value(device))).collect()
    };
    node.resources.iter().flat_map(of_resource).collect()
}

fn peer_device_metrics(page: &mut Page, node: &NodeSnapshot) {
    let mut family = |name: &str, kind: Kind, help: &str, value: fn(&DeviceSnapshot) -> u64| {
        let samples = volumes(node, peer_device_labels, |device| value(device) as f64);
        page.family(name, kind, help, samples);
    };
    family("drbd_peerdevice_outofsync_bytes", Kind::Gauge, "Data out of sync", |device| {
        device.counters.out_of_sync_blocks * BLOCK_BYTES
    });
    family("drbd_peerdevice_sent_bytes", Kind::Counter, "Data sent", |device| {
        device.counters.sent_sectors * SECTOR_BYTES
    });
    family("drbd_peerdevice_received_bytes", Kind::Counter, "Data received", |device| {
        device.counters.received_sectors * SECTOR_BYTES
    });
    let mut words: Vec<&str> = ConnectionState::ALL.iter().map(|state| replication_word(*state)).collect();
    words.dedup();
    let states = node
        .resources
        .iter()
        .flat_map(|resource| resource.devices.iter().map(move |device| (resource, device)))
        .flat_map(|(resource, device)| {
            let labels = vec![
                ("name", resource.name.clone()),
                ("conn_name", CONNECTION_NAME.to_owned()),
                ("volume", device.volume.to_string()),
            ];
            one_of(&labels, "drbdu_replication_state", &words, replication_word(device.connection))
        })
        .collect();
    page.family("drbdu_replication_state", Kind::Gauge, "State of the replication", states);
}

fn device_metrics(page: &mut Page, node: &NodeSnapshot) {
    let states = node
        .resources
        .iter()
        .flat_map(|resource| resource.devices.iter().map(move |device| (resource, device)))
        .flat_map(|(resource, device)| {
            one_of(&device_labels(resource, device), "drbd_device_state", &DISK_WORDS, device.disk.name())
        })
        .collect();
    page.family("drbd_device_state", Kind::Gauge, "State of the disk", states);
    type Value = fn(&DeviceSnapshot) -> u64;
    let families: [(&str, Kind, &str, Value); 12] = [
        ("drbd_device_client", Kind::Gauge, "Whether the device is meant to have no disk", |_| 0),
        ("drbd_device_unintentionaldiskless", Kind::Gauge, "Whether the device lost its disk", |device| {
            u64::from(device.disk == DiskState::Diskless)
        }),
        ("drbd_device_quorum", Kind::Gauge, "Whether the device has quorum", |_| 1),
        ("drbd_device_open", Kind::Gauge, "Whether the device is open", |device| u64::from(device.open)),
        ("drbd_device_alsuspended", Kind::Gauge, "Whether the activity log is suspended", |device| {
            u64::from(device.activity_log_suspended)
        }),
        ("drbd_device_size_bytes", Kind::Gauge, "Size", |device| device.size_sectors * SECTOR_BYTES),
        ("drbd_device_read_bytes_total", Kind::Counter, "Data read from the disk", |device| {
            device.counters.read_sectors * SECTOR_BYTES
        }),
        ("drbd_device_written_bytes_total", Kind::Counter, "Data written to the disk", |device| {
            device.counters.written_sectors * SECTOR_BYTES
        }),
        ("drbd_device_alwrites_total", Kind::Counter, "Writes of the activity log", |device| {
            device.counters.activity_log_writes
        }),
        ("drbd_device_bmwrites_total", Kind::Counter, "Writes of the bitmap", |device| {
            device.counters.bitmap_writes
        }),
        ("drbd_device_upperpending", Kind::Gauge, "Application requests not completed", |device| {
            device.counters.application_pending
        }),
        ("drbd_device_lowerpending", Kind::Gauge, "Requests at the disk", |device| {
            device.counters.local_pending
        }),
    ];
    for (name, kind, help, value) in families {
        page.family(name, kind, help, volumes(node, device_labels, |device| value(device) as f64));
    }
}

fn progress_metrics(page: &mut Page, node: &NodeSnapshot) {
    let running = |value: fn(&DeviceSnapshot, &ProgressSnapshot) -> f64| -> Vec<Sample> {
        let mut samples = Vec::new();
        for resource in &node.resources {
            for device in &resource.devices {
                if let Some(progress) = &device.progress {
                    samples.push((peer_device_labels(resource, device), value(device, progress)));
                }
            }
        }
        samples
    };
    let done = running(|device, progress| {
        let (left, _) = progress::left_and_per_mille(device, progress);
        1.0 - left as f64 / progress.total_blocks.max(1) as f64
    });
    page.family("drbdu_resync_done_ratio", Kind::Gauge, "Part of a resync or verify that is done", done);
    let rate = running(|device, progress| progress::estimate(device, progress).1 as f64);
    page.family("drbdu_resync_rate_bytes", Kind::Gauge, "Bytes per second of a resync or verify", rate);
    let remaining = running(|device, progress| progress::estimate(device, progress).0 as f64);
    page.family("drbdu_resync_eta_seconds", Kind::Gauge, "Estimated time to the end", remaining);
    let differing = running(|device, progress| match progress.kind {
        ProgressKind::Verify => (device.counters.out_of_sync_blocks * BLOCK_BYTES) as f64,
        ProgressKind::Resync => 0.0,
    });
    page.family(
        "drbdu_verify_outofsync_bytes",
        Kind::Gauge,
        "Data a running verify knows to differ",
        differing,
    );
}

fn daemon_metrics(page: &mut Page, daemon: &DaemonMetrics) {
    let start = vec![(Vec::new(), daemon.start_time_seconds as f64)];
    page.family("drbdu_daemon_start_time_seconds", Kind::Gauge, "When the daemon started", start);
    let reconnects = daemon
        .reconnects
        .iter()
        .map(|((name, reason), count)| {
            (vec![("name", name.clone()), ("reason", reason.clone())], *count as f64)
        })
        .collect();
    page.family("drbdu_reconnects_total", Kind::Counter, "Connections lost", reconnects);
    let helpers = daemon
        .helper_exits
        .iter()
        .map(|((helper, code), count)| {
            (vec![("helper", helper.clone()), ("code", code.to_string())], *count as f64)
        })
        .collect();
    page.family("drbdu_helper_exit_total", Kind::Counter, "Handlers run", helpers);
    let split_brains = daemon
        .split_brains
        .iter()
        .map(|(name, count)| (vec![("name", name.clone())], *count as f64))
        .collect();
    page.family("drbdu_split_brain_total", Kind::Counter, "Split brains detected", split_brains);
    let messages = daemon
        .log_messages
        .iter()
        .map(|(level, count)| (vec![("level", level.clone())], *count as f64))
        .collect();
    page.family("drbdu_log_messages_total", Kind::Counter, "Messages logged", messages);
}

#[cfg(test)]
mod tests {
    use udrbd_units::{Minor, VolumeNumber};

    use super::*;

    fn healthy() -> NodeSnapshot {
        let mut resource = ResourceSnapshot::new("r0");
        let mut device = DeviceSnapshot::new(VolumeNumber(0), Minor(7));
        device.disk = DiskState::UpToDate;
        device.peer_disk = DiskState::UpToDate;
        device.connection = ConnectionState::Connected;
        device.size_sectors = 130_992;
        device.counters.sent_sectors = 6_000_000_000;
        resource.devices.push(device);
        NodeSnapshot { resources: vec![resource] }
    }

    #[test]
    fn samples_have_the_names_and_labels_dashboards_know() {
        let page =
            metrics(&healthy(), &DaemonMetrics { version: "1".to_owned(), ..DaemonMetrics::default() });
        for line in [
            "drbd_version{kmod=\"8.4.11\",utils=\"1\"} 1",
            "drbd_resource_resources 1",
            "drbd_resource_role{name=\"r0\",drbd_resource_role=\"Secondary\"} 1",
            "drbd_resource_maypromote{name=\"r0\"} 1",
            "drbd_resource_promotionscore{name=\"r0\"} 10102",
            "drbd_peerdevice_sent_bytes{name=\"r0\",conn_name=\"peer\",peer_node_id=\"0\",volume=\"0\"} 3072000000000",
            "drbd_device_size_bytes{name=\"r0\",volume=\"0\",minor=\"7\"} 67067904",
            "drbd_device_state{name=\"r0\",volume=\"0\",minor=\"7\",drbd_device_state=\"UpToDate\"} 1",
            "drbdu_replication_state{name=\"r0\",conn_name=\"peer\",volume=\"0\",drbdu_replication_state=\"Established\"} 1",
            "# TYPE drbd_device_read_bytes_total counter",
        ] {
            assert!(page.lines().any(|known| known == line), "{line}\n{page}");
        }
    }

    #[test]
    fn every_family_is_declared_once_and_before_its_samples() {
        let page = metrics(&healthy(), &DaemonMetrics::default());
        let mut declared = Vec::new();
        for line in page.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let name = rest.split(' ').next().unwrap();
                assert!(!declared.contains(&name), "{name} twice");
                declared.push(name);
            } else if !line.starts_with('#') {
                let name = line.split(['{', ' ']).next().unwrap();
                assert_eq!(declared.last(), Some(&name));
            }
        }
    }

    #[test]
    fn nothing_is_promotable_without_data() {
        let mut node = healthy();
        node.resources[0].devices[0].disk = DiskState::Inconsistent;
        node.resources[0].devices[0].peer_disk = DiskState::Unknown;
        assert_eq!(promotion(&node.resources[0]), (false, 0));
        node.resources[0].devices[0].peer_disk = DiskState::UpToDate;
        node.resources[0].devices[0].peer_role = Role::Primary;
        assert_eq!(promotion(&node.resources[0]), (false, 10_001));
    }
}
