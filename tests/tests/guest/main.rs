//! The real DRBD of a Debian kernel as the judge: as peer of ours, in both parts, in one guest and in two.
//!
//! Every scenario is written for two sides of any kind. It is also played by two real ones where that
//! proves the scenario itself.

mod block;
mod cluster;
mod commands;
mod counters;
mod digests;
mod disks;
mod duo;
mod failover;
mod handover;
mod link;
mod load;
mod meetings;
mod metadata;
mod moved;
mod pacemaker;
mod packaging;
mod power;
mod recorded;
mod replication;
mod scripts;
mod startup;
mod thin;
mod tools;
mod undo;
mod upkeep;
mod volumes;

use std::process::ExitCode;

use udrbd_tests::runner::{self, Case};
use udrbd_tests::{guest, machine};

const CASES: &[Case] = &[
    Case::new("kernel_pair_replicates_as_the_scenario_expects", replication::kernel_pair),
    Case::new("udrbd_syncs_a_kernel_peer_and_both_take_writes", replication::udrbd_first),
    Case::new("kernel_syncs_an_udrbd_peer_and_both_take_writes", replication::kernel_first),
    Case::new("udrbd_and_kernel_authenticate_each_other", replication::authenticated),
    Case::new("a_wrong_secret_keeps_the_pair_apart", replication::wrong_secret),
    Case::new("different_protocols_keep_the_pair_apart", replication::wrong_protocol),
    Case::new("the_smaller_side_decides_the_size", replication::smaller_side_decides),
    Case::new("a_verify_finds_what_was_planted_whoever_starts_it", upkeep::verify_finds_what_was_planted),
    Case::new("both_count_alike_what_they_do", counters::count_as_the_kernel_does),
    Case::new("resync_by_checksums_moves_what_two_kernels_move", moved::by_checksums),
    Case::new("thin_resync_moves_and_leaves_what_two_kernels_do", moved::thin),
    Case::new("sparse_disks_stay_equal_and_as_thin_as_two_kernels_leave_them", thin::sparse),
    Case::new("thin_volumes_stay_equal_and_as_thin_as_two_kernels_leave_them", thin::pool),
    Case::new("flipped_bits_are_found_and_mended_as_between_two_kernels", digests::flips_are_found),
    Case::new("a_larger_configured_size_is_adopted_and_resynced", upkeep::size_grows),
    Case::new("a_failing_disk_of_the_secondary_costs_no_write", disks::of_the_secondary),
    Case::new("a_failing_disk_of_the_primary_costs_no_write", disks::of_the_primary),
    Case::new("a_disk_that_hangs_is_given_up_and_taken_back", disks::hanging),
    Case::long("a_part_that_cannot_be_written_is_passed_on_and_resynced", disks::passed_on),
    Case::long("a_part_that_cannot_be_read_comes_from_the_peer", disks::unreadable_part),
    Case::new("sectors_that_a_scsi_disk_cannot_read_come_from_the_peer", disks::medium_errors),
    Case::long("a_disk_that_fails_at_times_costs_no_write", disks::flaky),
    Case::long("a_slow_disk_is_waited_for", disks::slow),
    Case::new("meetings_of_udrbd_and_kernel_end_as_between_two_kernels", meetings::udrbd_first),
    Case::new("meetings_of_kernel_and_udrbd_end_as_between_two_kernels", meetings::kernel_first),
    Case::new("courses_of_udrbd_and_kernel_end_as_between_two_kernels", recorded::udrbd_first),
    Case::new("courses_of_kernel_and_udrbd_end_as_between_two_kernels", recorded::kernel_first),
    Case::long("both_wait_alike_for_their_peer_at_the_start", startup::both_wait_alike),
    Case::new("kernel_pair_resyncs_after_a_cut_link", link::kernel_pair),
    Case::new("udrbd_resyncs_a_kernel_peer_after_a_cut_link", link::udrbd_primary),
    Case::new("kernel_resyncs_an_udrbd_peer_after_a_cut_link", link::kernel_primary),
    Case::new("udrbd_pulls_ahead_of_a_kernel_peer_on_a_slow_link", link::udrbd_congested),
    Case::new("kernel_pulls_ahead_of_an_udrbd_peer_on_a_slow_link", link::udrbd_behind),
    Case::new("killed_udrbd_primary_recovers_against_a_kernel_peer", link::killed_primary),
    Case::new("block_device_is_mounted_on_one_node_after_the_other", block::fails_over),
    Case::new("block_device_is_not_taken_from_whoever_has_it_open", block::openers_are_named),
    Case::new("block_device_and_kernel_peer_agree_under_fio", block::kernel_peer),
    Case::new("block_device_is_of_the_kernels_size_and_discards", block::figures),
    Case::new("block_device_that_cannot_start_leaves_a_secondary", block::failing_start),
    Case::new("block_devices_leave_nothing_behind", block::nothing_stale),
    Case::new("block_device_grows_when_nobody_has_it_open", block::grows),
    Case::new("block_device_grows_under_a_file_system_in_use", block::grows_under_use),
    Case::new("block_device_is_not_taken_from_whom_only_the_driver_knows", block::hidden_opener),
    Case::new("block_device_carries_xfs_and_lvm", block::carries_xfs_and_lvm),
    Case::new("mounted_block_device_survives_the_death_of_its_daemon", block::live_restart),
    Case::new("mounted_block_device_is_handed_over_to_another_daemon", handover::udrbd_peer),
    Case::long("mounted_block_device_is_handed_over_beside_a_kernel_peer", handover::kernel_peer),
    Case::long(
        "mounted_block_device_outlives_restarts_of_its_daemon_by_systemd",
        handover::restarted_by_systemd,
    ),
    Case::new("waiting_requests_never_reach_data_the_peer_has_written", block::foreign_data),
    Case::new("partitions_of_a_block_device_keep_it_primary_and_go_with_it", volumes::partitions),
    Case::new("block_devices_of_two_volumes_take_writes_at_once", volumes::two_volumes),
    Case::long("block_device_carries_images_of_guests", tools::images_of_guests),
    Case::long("block_device_does_what_the_block_layer_asks_of_disks", tools::block_layer),
    Case::long("block_device_passes_blktests", tools::blktests),
    Case::long("ext4_under_load_is_whole_on_a_udrbd_peer", load::ext4_and_udrbd),
    Case::long("ext4_under_load_is_whole_on_a_kernel_peer", load::ext4_and_kernel),
    Case::long("xfs_under_load_is_whole_on_a_udrbd_peer", load::xfs_and_udrbd),
    Case::long("xfs_under_load_is_whole_on_a_kernel_peer", load::xfs_and_kernel),
    Case::long("mounted_block_device_survives_many_deaths_of_its_daemon", load::many_deaths),
    Case::new("backing_device_moves_from_kernel_to_udrbd_and_back_without_resync", metadata::moves_between),
    Case::new("real_drbdmeta_reads_our_metadata_as_we_do", metadata::dumps_are_equal),
    Case::new(
        "our_drbdmeta_reads_the_kernels_metadata_as_the_real_one_does",
        metadata::kernel_dumps_are_equal,
    ),
    Case::new("the_kernel_runs_on_metadata_our_drbdmeta_created", metadata::kernel_takes_our_metadata),
    Case::new("both_drbdmeta_apply_a_hot_activity_log_alike", metadata::activity_log_is_applied_alike),
    Case::new("a_killed_emulator_is_told_from_a_guest_that_went_down", power::emulator_is_told_from_guest),
    Case::new("kernel_pair_survives_a_power_cut_of_its_primary", power::kernel_pair),
    Case::new("power_cut_kernel_primary_recovers_against_udrbd", power::kernel_primary),
    Case::new("power_cut_udrbd_primary_recovers_against_kernel", power::udrbd_primary),
    Case::new("survivor_takes_a_file_system_under_load_over", failover::under_load),
    Case::long("an_undo_outlives_power_cuts_of_its_victim", undo::power_cuts),
    Case::long("two_primaries_share_an_ocfs2_file_system", cluster::udrbd_pair_ocfs2),
    Case::long("two_primaries_share_a_gfs2_file_system", cluster::udrbd_pair_gfs2),
    Case::long("pacemaker_moves_a_file_system_from_node_to_node", pacemaker::with_the_stock_agent),
    Case::long("pacemaker_needs_no_module_with_our_agent", pacemaker::without_the_module),
    Case::new("scripts_of_drbd_utils_do_their_work_as_handlers", scripts::do_their_work),
    Case::new(
        "the_package_beside_drbd_utils_takes_its_names_and_gives_them_back",
        packaging::beside_drbd_utils,
    ),
    Case::new("the_package_alone_works_and_leaves_nothing_behind", packaging::alone),
    Case::new("systemd_starts_the_daemon_for_drbdadm_and_again_after_a_crash", packaging::under_systemd),
    Case::new("a_netdev_mount_follows_its_resource_at_boot_and_shutdown", packaging::netdev_mount),
];

/// What the tests need of the machine, by its Debian names; below what those of the long run need as well.
const PACKAGES: &[&str] = &[
    "drbd-utils",
    "kmod",
    "fio",
    "xfsprogs",
    "e2fsprogs",
    "lvm2",
    "udev",
    "fdisk",
    "python3",
    "bsdutils",
    "qemu-utils",
];
const PACKAGES_LONG: &[&str] = &[
    "pacemaker",
    "corosync",
    "crmsh",
    "resource-agents",
    "ocfs2-tools",
    "gfs2-utils",
    "dlm-controld",
    "libnbd-bin",
    "bsdextrautils",
    "gawk",
];

/// Installs it all before the first guest boots. A guest has this machine's root as its own: one that reads dpkg's records, or runs
/// a program, while another test has something installed goes wrong in ways nobody can tell.
fn install_packages() {
    let long: &[&str] = if runner::is_long() { PACKAGES_LONG } else { &[] };
    let packages = [guest::PACKAGES, PACKAGES, long].concat();
    // Each test says itself what it lacks.
    let _told_later = machine::ensure_packages(&packages);
}

fn main() -> ExitCode {
    let whole = std::env::args().skip(1).all(|word| word.starts_with('-'));
    if whole && !std::env::args().any(|word| word == "--list") {
        install_packages();
    }
    // An emulated guest leaves much of two processors idle; more than two at a time only get in each other's way.
    let code = runner::main_together(CASES, 2);
    duo::forget_guests();
    code
}
