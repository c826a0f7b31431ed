//! `drbdsetup status --json` in the form of the 9 series (status spec 9.3, 12.4).
//!
//! The original 8.4 tool has no such option; tools of today read this form. Written out by hand because the order
//! of the members and the two decimals of the fractions are part of the form.

use udrbd_units::{BLOCK_SECTORS, ConnectionState};

use super::words::{blocks_kib, connection_word, kib, replication_word};
use super::{DeviceSnapshot, NodeSnapshot, ProgressKind, ProgressSnapshot, ResourceSnapshot, progress};
use crate::address::Address;

/// What the estimate says while nothing moves.
const NO_ESTIMATE_SECONDS: u64 = 987_654_321;

/// The resources, sorted by name, as a JSON array.
pub fn status_json(node: &NodeSnapshot) -> String {
    let mut resources: Vec<&ResourceSnapshot> = node.resources.iter().collect();
    resources.sort_by(|one, other| one.name.cmp(&other.name));
    let objects: Vec<String> = resources.into_iter().map(resource).collect();
    format!("[\n{}]\n", objects.join(",\n") + if objects.is_empty() { "" } else { "\n" })
}

/// An object under construction.
struct Object(Vec<String>);

impl Object {
    const fn new() -> Self {
        Self(Vec::new())
    }

    /// A value that is JSON already.
    fn raw(mut self, key: &str, value: impl std::fmt::Display) -> Self {
        self.0.push(format!("{}: {value}", text(key)));
        self
    }

    fn text(self, key: &str, value: &str) -> Self {
        self.raw(key, text(value))
    }

    fn fraction(self, key: &str, value: f64) -> Self {
        self.raw(key, format_args!("{value:.2}"))
    }

    fn list(self, key: &str, items: Vec<String>) -> Self {
        self.raw(key, format_args!("[ {} ]", items.join(",\n")))
    }

    fn finish(self) -> String {
        format!("{{ {} }}", self.0.join(", "))
    }
}

fn text(value: &str) -> String {
    serde_json::Value::from(value).to_string()
}

fn resource(resource: &ResourceSnapshot) -> String {
    let suspended = resource.suspended;
    Object::new()
        .text("name", &resource.name)
        .raw("node-id", -1)
        .text("role", resource.role().name())
        .raw("suspended", suspended.any())
        .raw("suspended-user", suspended.user)
        .raw("suspended-no-data", suspended.no_data)
        .raw("suspended-fencing", suspended.fencing)
        .raw("suspended-quorum", false)
        .raw("force-io-failures", false)
        .text("write-ordering", resource.write_ordering.word())
        .list("devices", resource.devices.iter().map(device).collect())
        .list("connections", connections(resource))
        .finish()
}

fn device(device: &DeviceSnapshot) -> String {
    let counters = &device.counters;
    Object::new()
        .raw("volume", device.volume)
        .raw("minor", device.minor)
        .text("disk-state", device.disk.name())
        .raw("client", false)
        .raw("open", device.open)
        .raw("quorum", true)
        .raw("size", kib(device.size_sectors))
        .raw("read", kib(counters.read_sectors))
        .raw("written", kib(counters.written_sectors))
        .raw("al-writes", counters.activity_log_writes)
        .raw("bm-writes", counters.bitmap_writes)
        .raw("upper-pending", counters.application_pending)
        .raw("lower-pending", counters.local_pending)
        .finish()
}

fn connections(resource: &ResourceSnapshot) -> Vec<String> {
    let connection = &resource.connection;
    let Some((local, peer)) = &connection.addresses else { return Vec::new() };
    let path = Object::new()
        .raw("this_host", endpoint(local))
        .raw("remote_host", endpoint(peer))
        .raw("established", connection.state >= ConnectionState::WFReportParams);
    let object = Object::new()
        .raw("peer-node-id", 0)
        .text("name", "peer")
        .text("connection-state", connection_word(connection.state))
        .raw("congested", connection.congested)
        .text("peer-role", resource.peer_role().name())
        .raw("tls", false)
        .raw("ap-in-flight", connection.application_in_flight_sectors)
        .raw("rs-in-flight", connection.resync_in_flight_sectors)
        .list("paths", vec![path.finish()])
        .list("peer_devices", resource.devices.iter().map(peer_device).collect());
    vec![object.finish()]
}

fn endpoint(address: &Address) -> String {
    Object::new()
        .text("address", &address.socket.ip().to_string())
        .raw("port", address.socket.port())
        .text("family", address.family.name())
        .finish()
}

fn peer_device(device: &DeviceSnapshot) -> String {
    let counters = &device.counters;
    let in_sync = if device.size_sectors == 0 {
        0.0
    } else {
        100.0 * (1.0 - (counters.out_of_sync_blocks * BLOCK_SECTORS) as f64 / device.size_sectors as f64)
    };
    let verifying = device.progress.as_ref().is_some_and(|progress| progress.kind == ProgressKind::Verify);
    let object = Object::new()
        .raw("volume", device.volume)
        .text("replication-state", replication_word(device.connection))
        .text("peer-disk-state", device.peer_disk.name())
        .raw("peer-client", false)
        .text("resync-suspended", &device.resync_paused.words())
        .raw("received", kib(counters.received_sectors))
        .raw("sent", kib(counters.sent_sectors))
        .raw("out-of-sync", blocks_kib(counters.out_of_sync_blocks))
        .raw("pending", counters.peer_pending + counters.resync_pending)
        .raw("unacked", counters.unacknowledged)
        .raw("has-sync-details", device.progress.is_some())
        .raw("has-online-verify-details", verifying)
        .fraction("percent-in-sync", in_sync);
    match &device.progress {
        Some(progress) => sync_details(object, device, progress).finish(),
        None => object.finish(),
    }
}

fn sync_details(object: Object, device: &DeviceSnapshot, progress: &ProgressSnapshot) -> Object {
    let (left, _) = progress::left_and_per_mille(device, progress);
    let total = progress.total_blocks;
    let done = total - left;
    let since_mid = progress.mid_mark.left_blocks.saturating_sub(left);
    let since_short = progress.short_mark.left_blocks.saturating_sub(left);
    let object = object
        .raw("rs-total", total * BLOCK_SECTORS)
        .raw("rs-dt-start-ms", progress.elapsed_ms)
        .raw("rs-paused-ms", progress.paused_ms)
        .raw("rs-dt0-ms", progress.mid_mark.age_ms)
        .raw("rs-db0-sectors", since_mid * BLOCK_SECTORS)
        .raw("rs-dt1-ms", progress.short_mark.age_ms)
        .raw("rs-db1-sectors", since_short * BLOCK_SECTORS);
    let object = match progress.kind {
        ProgressKind::Verify => object
            .raw("ov-start-sector", progress.verify_start_sector)
            .raw("ov-stop-sector", progress.verify_stop_sector.unwrap_or(0))
            .raw("ov-position", progress.position_blocks * BLOCK_SECTORS)
            .raw("ov-left", progress.verify_left_blocks * BLOCK_SECTORS)
            .raw("ov-skipped", 0),
        ProgressKind::Resync => object
            .raw("rs-failed", progress.failed_blocks * BLOCK_SECTORS)
            .raw("rs-same-csum", progress.equal_checksum_blocks * BLOCK_SECTORS),
    };
    let remaining = if since_short == 0 {
        NO_ESTIMATE_SECONDS
    } else {
        (left as f64 / since_short as f64 * progress.short_mark.age_ms as f64 / 1000.0) as u64
    };
    let percent = if total == 0 { 100.0 } else { 100.0 * done as f64 / total as f64 };
    object
        .fraction("want", progress.wanted_kib_per_second as f64 / 1024.0)
        .fraction("db0/dt0 [MiB/s]", mebi_per_second(since_mid, progress.mid_mark.age_ms))
        .fraction("db1/dt1 [MiB/s]", mebi_per_second(since_short, progress.short_mark.age_ms))
        .raw("estimated-seconds-to-finish", remaining)
        .fraction(
            "db/dt [MiB/s]",
            mebi_per_second(done, progress.elapsed_ms.saturating_sub(progress.paused_ms)),
        )
        .fraction("percent-resync-done", percent)
}

fn mebi_per_second(blocks: u64, milliseconds: u64) -> f64 {
    blocks as f64 / 256.0 / (milliseconds.max(1) as f64 / 1000.0)
}

#[cfg(test)]
mod tests {
    use udrbd_units::{DiskState, Minor, Role, VolumeNumber};

    use super::*;
    use crate::status::SpeedMark;

    /// The example of status spec 12.4.
    fn syncing() -> NodeSnapshot {
        let mut resource = ResourceSnapshot::new("r0");
        let address = |text: &str| text.parse().unwrap();
        resource.connection.addresses = Some((address("10.1.1.31:7789"), address("10.1.1.32:7789")));
        resource.connection.state = ConnectionState::WFReportParams;
        resource.connection.resync_in_flight_sectors = 256;
        let mut device = DeviceSnapshot::new(VolumeNumber(0), Minor(0));
        (device.role, device.peer_role) = (Role::Primary, Role::Secondary);
        (device.disk, device.peer_disk) = (DiskState::UpToDate, DiskState::Inconsistent);
        device.connection = ConnectionState::SyncSource;
        device.size_sectors = 130_992;
        device.counters.sent_sectors = 32_768;
        device.counters.out_of_sync_blocks = 12_278;
        device.progress = Some(ProgressSnapshot {
            kind: ProgressKind::Resync,
            total_blocks: 16_374,
            failed_blocks: 0,
            verify_left_blocks: 0,
            equal_checksum_blocks: 0,
            elapsed_ms: 16_012,
            paused_ms: 0,
            short_mark: SpeedMark { age_ms: 16_012, left_blocks: 16_374 },
            mid_mark: SpeedMark { age_ms: 3001, left_blocks: 13_058 },
            wanted_kib_per_second: 1024,
            position_blocks: 0,
            verify_start_sector: 0,
            verify_stop_sector: None,
        });
        resource.devices.push(device);
        NodeSnapshot { resources: vec![resource] }
    }

    #[test]
    fn a_running_resync_has_the_figures_of_the_specification() {
        let json = status_json(&syncing());
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        let connection = &value[0]["connections"][0];
        assert_eq!(connection["paths"][0]["remote_host"]["address"], "10.1.1.32");
        let peer = &connection["peer_devices"][0];
        assert_eq!(peer["rs-total"], 130_992);
        assert_eq!(peer["rs-db0-sectors"], 6240);
        assert_eq!(peer["rs-db1-sectors"], 32_768);
        assert_eq!(peer["estimated-seconds-to-finish"], 47);
        for text in [
            "\"percent-in-sync\": 25.02",
            "\"want\": 1.00",
            "\"db/dt [MiB/s]\": 1.00",
            "\"percent-resync-done\": 25.02",
        ] {
            assert!(json.contains(text), "{text}\n{json}");
        }
    }

    #[test]
    fn members_come_in_the_order_of_the_form() {
        let json = status_json(&syncing());
        let order = [
            "\"name\"",
            "\"node-id\"",
            "\"role\"",
            "\"devices\"",
            "\"volume\"",
            "\"connections\"",
            "\"paths\"",
        ];
        let places: Vec<Option<usize>> = order.iter().map(|key| json.find(key)).collect();
        assert!(places.is_sorted() && places.iter().all(Option::is_some), "{places:?}");
    }

    #[test]
    fn no_resources_are_an_empty_array_and_names_are_escaped() {
        assert_eq!(status_json(&NodeSnapshot::default()), "[\n]\n");
        let odd = NodeSnapshot { resources: vec![ResourceSnapshot::new("a\"b\\")] };
        let value: serde_json::Value = serde_json::from_str(&status_json(&odd)).unwrap();
        assert_eq!(value[0]["name"], "a\"b\\");
    }
}
